"""Files of lines, plain or compressed by gzip: blocks of lines by their place, and a place's bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from threading import get_ident
from typing import BinaryIO, TypeVar, cast

from mmembed import files
from mmembed.errors import ReadError
from mmembed.files import Stamp
from mmembed.inputs import UNIT_BYTES

T = TypeVar("T")


def open_lines(location: str) -> BinaryIO:
    """The bytes of a file, decompressed where its name ends in .gz."""
    file = files.open_binary(location)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if location.lower().endswith(".gz") else file


def read_place(location: str, start: int, size: int) -> bytes:
    """Some bytes of a file; places are of the decompressed bytes.

    Raises:
        ReadError: the file can't be read, or has changed.
    """
    try:
        if location.lower().endswith(".gz"):
            file = _opened(location, files.stamp(location), get_ident())
            file.seek(start)
            return file.read(size)
        with files.open_binary(location) as file:
            file.seek(start)
            return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"can't read {location}: {error}") from error


@lru_cache(maxsize=4)  # of a packed file what comes before a place must be read, and units follow each other
def _opened(location: str, stamp: Stamp, thread: int) -> BinaryIO:
    return open_lines(location)


MAX_LINE = 128 << 20
"""Bytes of a line, at most: a few packed ones can hold more than the memory."""


def readable(file: BinaryIO, location: str) -> Iterator[bytes]:
    """Lines of a file as it is read.

    Raises:
        ReadError: the file can't be read to its end, or a line is longer than MAX_LINE.
    """
    try:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ReadError(f"can't read {location} to its end: a line has more than {MAX_LINE:,} bytes")
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"can't read {location} to its end: {error}") from error


def blocks(items: Iterable[T], count: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of at most so many items and, but for a larger one, UNIT_BYTES.

    Where the items break off with a ReadError, those before it come first.
    """
    block: list[T] = []
    held = 0
    try:
        for item in items:
            if block and (len(block) == count or held + size(item) > UNIT_BYTES):
                yield block
                block, held = [], 0
            block.append(item)
            held += size(item)
    except ReadError:
        if block:
            yield block
        raise
    if block:
        yield block
