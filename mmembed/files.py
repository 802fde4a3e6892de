"""Files by their location: a path of this machine, or a URL of a file system that Beam knows (gs://, s3://, hdfs://).

The one place below `transforms` that imports Beam, and only for such URLs: whoever opens a file opens it here.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, cast

from mmembed.errors import ReadError

_MAGIC = re.compile(r"[*?\[]")
WEB = ("http://", "https://")


class Stamp(NamedTuple):
    """What tells a changed file without reading it; (-1, 0) where there is none.

    Attributes:
        bytes: its size.
        modified: when it was written, nanoseconds.
    """

    bytes: int
    modified: int


NO_FILE = Stamp(-1, 0)


def is_url(location: str) -> bool:
    """Whether this is a URL and no path."""
    return "://" in location


def is_web(location: str) -> bool:
    """Whether this is an http(s) URL, which only a `mmembed.fetch.Fetcher` opens."""
    return location.startswith(WEB)


def is_text(name: str) -> bool:
    """Whether a name can be written down: what is no UTF-8 on disk comes with halves of surrogate pairs."""
    return name.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in name)


def join(folder: str, path: str) -> str:
    """The location of a path that is relative to a folder, absolute, or a URL of its own."""
    if is_url(path) or not folder:
        return path
    return f"{folder.rstrip('/')}/{path}" if is_url(folder) else os.path.join(folder, path)


def parent(location: str) -> str:
    """The location of the folder that a file lies in."""
    return location.rsplit("/", 1)[0] if is_url(location) else os.path.dirname(location)


def open_binary(location: str) -> BinaryIO:
    """A file, readable and seekable; nothing is decompressed.

    Raises:
        ReadError: the file is missing, can't be opened, or is none (a folder, a pipe, a device).
    """
    if is_web(location):
        raise ReadError(f"can't open {location}: web addresses are fetched where media are read, and only there")
    if is_url(location):
        return _open_remote(location)
    try:
        if not stat.S_ISREG(os.stat(location).st_mode):  # a pipe or a device might never end
            raise ReadError(f"can't open {location}: it is no regular file")
        return open(location, "rb")
    except OSError as error:
        raise ReadError(f"can't open {location}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name, or one that the file system can't encode
        raise ReadError(f"{location!r} is no path: {error}") from error


def stamp(location: str) -> Stamp:
    """The stamp of a file; of a URL always the same one, for asking each of many would cost more than reading them."""
    if is_url(location):
        return Stamp(0, 0)
    try:
        found = os.stat(location)
    except (OSError, ValueError):
        return NO_FILE
    return Stamp(found.st_size, found.st_mtime_ns)


def exists(location: str) -> bool:
    """Whether there is a file (not a folder) of this name."""
    if not is_url(location):
        return os.path.isfile(location)
    return bool(_match(location))


def is_folder(location: str) -> bool:
    """Whether there is a folder of this name; on a remote file system, whether anything lies below it."""
    return bool(_match(f"{location.rstrip('/')}/*")) if is_url(location) else os.path.isdir(location)


def below(folder: str) -> Iterator[str]:
    """The files below a folder, as paths relative to it, sorted folder by folder; hidden ones are left out.

    Links to folders are followed, but none that leads back to a folder it lies in.

    Raises:
        ReadError: the folder, or one in it, can't be listed.
    """
    if is_url(folder):
        prefix = folder.rstrip("/") + "/"
        names = (found.removeprefix(prefix) for found in _match(prefix + "**"))
        yield from sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    else:
        yield from _below(folder, "", (os.path.realpath(folder),))


def matching(pattern: str) -> list[str]:
    """The files that a pattern of *, ?, [..] and ** names, sorted."""
    if is_url(pattern):
        return sorted(_match(pattern))
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def is_pattern(location: str) -> bool:
    """Whether this is a pattern; a file whose name holds such signs is meant itself."""
    return bool(_MAGIC.search(location)) and not (not is_url(location) and os.path.exists(location))


class Slice(io.RawIOBase):
    """Some bytes of a file as a file of their own: a member of an archive. It closes the file that it is of."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file; a place before the beginning is refused."""
        place = offset + (0, self._place, self._size)[whence]
        if place < 0:
            raise ValueError(f"a seek to {place}: before the beginning")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the slice goes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        self._file.seek(self._start + self._place)
        data = self._file.read(count)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        """Close it and the file."""
        self._file.close()
        super().close()


def open_slice(location: str, start: int, size: int) -> BinaryIO:
    """Some bytes of a file as a file, readable and seekable.

    Raises:
        ReadError: as of `open_binary`.
    """
    return cast(BinaryIO, io.BufferedReader(Slice(open_binary(location), start, size)))


def read_part(location: str, start: int, size: int) -> bytes:
    """Some bytes of a remote file. It stays open for the next call: what is read one after the other is fetched once.

    Raises:
        ReadError: it can't be opened or read.
    """
    try:
        file = _kept_open(location)
        file.seek(start)
        return file.read(size)
    except ReadError:
        raise
    except Exception as error:  # the client of each file system has errors of its own
        _kept_open.cache_clear()
        raise ReadError(f"can't read {location}: {_remote_reason(location, error)}") from error


@lru_cache(maxsize=1)
def _kept_open(location: str) -> BinaryIO:
    return open_binary(location)


def _below(folder: str, prefix: str, parents: tuple[str, ...]) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ReadError(f"can't list {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield prefix + entry.name
        elif (real := os.path.realpath(entry.path)) not in parents:
            yield from _below(entry.path, f"{prefix}{entry.name}/", (*parents, real))


def use_flags(flags: Sequence[str]) -> None:
    """Open URLs as some flags of Beam say: credentials, end points, projects."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(flags)))


def _file_systems() -> Any:
    """Beam's file systems; without flags of the user's they go by what the environment says."""
    from apache_beam.io.filesystems import FileSystems

    if FileSystems._pipeline_options is None:  # some refuse to work without any
        use_flags(())
    return FileSystems


def _match(pattern: str) -> list[str]:
    """The files on a remote file system that a pattern names; * stays within a folder, ** does not.

    Raises:
        ReadError: there is no such file system, or it can't be asked.
    """
    try:
        return [found.path for result in _file_systems().match([pattern]) for found in result.metadata_list]
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't list {pattern}: {_remote_reason(pattern, error)}") from error


def _open_remote(location: str) -> BinaryIO:
    from apache_beam.io.filesystem import CompressionTypes

    try:
        opened = _file_systems().open(location, compression_type=CompressionTypes.UNCOMPRESSED)
        return cast(BinaryIO, opened)
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't open {location}: {_remote_reason(location, error)}") from error


def _remote_reason(location: str, error: Exception) -> str:
    scheme = location.partition("://")[0]
    extra = {"gs": "gcp", "s3": "aws", "hdfs": "hadoop", "azfs": "azure"}.get(scheme)
    if "Unable to get filesystem" in str(error) and extra:
        return f"Beam reads {scheme}:// with more packages: pip install 'apache-beam[{extra}]'"
    return " ".join(str(error).split()) or type(error).__name__
