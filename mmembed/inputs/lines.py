"""Files of lines, plain or compressed by gzip: blocks of lines by their place, and a place's bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import BinaryIO, cast

from mmembed import files
from mmembed.errors import ReadError
from mmembed.files import Stamp


def open_lines(location: str) -> BinaryIO:
    """The bytes of a file, decompressed where its name ends in .gz."""
    file = files.open_binary(location)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if location.endswith(".gz") else file


def read_place(location: str, start: int, size: int) -> bytes:
    """Some bytes of a file; places are of the decompressed bytes.

    Raises:
        ReadError: the file can't be read, or has changed.
    """
    try:
        if location.endswith(".gz"):
            file = _opened(location, files.stamp(location))
            file.seek(start)
            return file.read(size)
        with files.open_binary(location) as file:
            file.seek(start)
            return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"can't read {location}: {error}") from error


@lru_cache(maxsize=1)  # of a compressed file what comes before a place must be read: units follow each other
def _opened(location: str, stamp: Stamp) -> BinaryIO:
    return open_lines(location)


def readable(lines: Iterable[bytes], location: str) -> Iterator[bytes]:
    """Lines of a file as it is read.

    Raises:
        ReadError: the file can't be read to its end.
    """
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"can't read {location} to its end: {error}") from error
