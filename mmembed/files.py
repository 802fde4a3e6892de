"""Files by their location: a path of this machine, or a URL of a remote file system: whoever opens a file opens it
here."""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import posixpath
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mmembed import remote
from mmembed.errors import ReadError
from mmembed.remote import RemotePath

Place = Path | RemotePath
"""Where a file or folder of a data set lies: on this machine, or on a remote file system."""

_MAGIC = re.compile(r"[*?\[]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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
    return "://" in location and bool(_SCHEME.match(location))


def place(location: str | Path | RemotePath) -> Place:
    """A location as a path."""
    return RemotePath(str(location).rstrip("/")) if is_url(str(location)) else Path(str(location))


def listed(folder: Place) -> list[Place]:
    """The files below the folder of a data set, hidden ones too, in the order of their names."""
    if isinstance(folder, RemotePath):
        return sorted(folder.rglob(), key=str)
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=str)


def size(path: Place) -> int | None:
    """Bytes of a file of a data set, None where there is none."""
    if isinstance(path, RemotePath):
        there = path.found()
        return there.bytes if there else None
    found = stamp(str(path))
    return None if found == NO_FILE else found.bytes


def is_text(name: str) -> bool:
    """Whether a name can be written down: what is no UTF-8 on disk comes with halves of surrogate pairs."""
    return name.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in name)


def join(folder: str, path: str) -> str:
    """The location of a path that is relative to a folder, absolute, or a URL of its own."""
    if is_url(path) or not folder:
        return path
    if not is_url(folder):
        return os.path.join(folder, path)
    scheme, _, place = f"{folder.rstrip('/')}/{path}".partition("://")
    if not {".", ".."}.isdisjoint(path.split("/")):  # which mean nothing in a bucket: its names are taken as they are
        place = posixpath.normpath(place)
    return f"{scheme}://{place}"


def parent(location: str) -> str:
    """The location of the folder that a file lies in."""
    return location.rsplit("/", 1)[0] if is_url(location) else os.path.dirname(location)


def open_binary(location: str) -> BinaryIO:
    """A file, readable and seekable; nothing is decompressed.

    A remote file system is asked as `remote.use_flags` says, or else as the environment does.

    Raises:
        ReadError: the file is missing, can't be opened, or is none (a folder, a pipe, a device).
    """
    if is_url(location):
        return remote.open_binary(location)
    try:
        if not stat.S_ISREG(os.stat(location).st_mode):  # a pipe or a device might never end
            raise ReadError(f"can't open {_shown(location)}: it is no regular file")
        return open(location, "rb")
    except OSError as error:
        raise ReadError(f"can't open {_shown(location)}: {error.strerror}") from error
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
    """Whether there is a file of this name, and no folder (but on hdfs://, where Beam doesn't tell them apart).

    Raises:
        ReadError: its file system can't be asked.
    """
    if not is_url(location):
        return os.path.isfile(location)
    return remote.exists(location)


def is_folder(location: str) -> bool:
    """Whether there is a folder of this name; on a remote file system, whether anything lies below it.

    Raises:
        ReadError: its file system can't be asked.
    """
    return remote.is_folder(location) if is_url(location) else os.path.isdir(location)


def below(folder: str) -> Iterator[str]:
    """The files below a folder, as paths relative to it, sorted folder by folder; hidden ones are left out.

    Links to folders are followed, but none that leads back to a folder it lies in.
    Of hdfs:// Beam lists one folder, and not those in it: name its files by a pattern of * instead.

    Raises:
        ReadError: the folder, or one in it, can't be listed.
    """
    if is_url(folder):
        prefix = folder.rstrip("/") + "/"
        names = (found.location.removeprefix(prefix) for found in remote.match(prefix + "**"))
        yield from sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    else:
        yield from _below(folder, "", (os.path.realpath(folder),))


def matching(pattern: str) -> list[str]:
    """The files that a pattern of *, ?, [..] and ** names, sorted.

    In a path, ** as a whole part stands for any number of folders, none among them, as `below` goes through them. In a
    URL it stands for any signs, as in Beam: `s3://data/in/**.png` names all below `in`, `s3://data/in/**/*.png` only
    those in folders of it.

    Raises:
        ReadError: a folder can't be listed.
    """
    if is_url(pattern):
        return sorted(found.location for found in remote.match(pattern))
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
    at = parts.index("**")  # glob itself follows links that go in circles
    folders = glob.glob("/".join(parts[:at]) + "/") if at else [""]
    found = (os.path.join(folder, name) for folder in folders for name in _fitting(folder or ".", parts[at:]))
    return sorted(path for path in found if os.path.isfile(path))


def _fitting(folder: str, pattern: Sequence[str]) -> Iterator[str]:
    """The files below a folder whose parts fit those of a pattern."""
    return (name for name in below(folder) if _fits(name.split("/"), pattern))


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        rest = pattern[1:]
        return any(_fits(parts[start:], rest) for start in range(len(parts))) if rest else bool(parts)
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


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
    """Some bytes of a remote file. It stays open for the thread's next call: what is read in order is fetched once.

    Raises:
        ReadError: it can't be opened or read, or ends before.
    """
    try:
        if getattr(_kept, "location", None) != location:
            _kept.location, _kept.file = None, None
            _kept.file, _kept.location = open_binary(location), location
        _kept.file.seek(start)
        data = cast(bytes, _kept.file.read(size))
    except ReadError:
        raise
    except Exception as error:  # the client of each file system has errors of its own
        _kept.location = None
        raise ReadError(f"can't read {location}: {remote.reason(location, error)}") from error
    if len(data) < size:
        raise ReadError(f"can't read {location}: it ends before byte {start + size:,}")
    return data


_kept = threading.local()  # threads that shared a file would move each other's place in it


def _below(folder: str, prefix: str, parents: tuple[str, ...]) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ReadError(f"can't list {_shown(folder)}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not _is_folder(entry):
            yield prefix + entry.name
        elif (real := os.path.realpath(entry.path)) not in parents:
            yield from _below(entry.path, f"{prefix}{entry.name}/", (*parents, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and no file either, as whoever opens it is told
        return False


def _shown(location: str) -> str:
    """A path as a message can hold it, which is written as UTF-8."""
    return location if is_text(location) else location.encode("utf-8", "backslashreplace").decode()
