"""Files by their location: a path of this machine, or a URL of a file system that Beam knows (gs://, s3://, hdfs://).

The one place below `transforms` that imports Beam, and only for such URLs: whoever opens a file opens it here.
"""

from __future__ import annotations

import fnmatch
import glob
import importlib.util
import io
import os
import posixpath
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, BinaryIO, NamedTuple, cast

from mmembed.errors import ReadError

WEB = ("http://", "https://")

_MAGIC = re.compile(r"[*?\[]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CLIENTS = {
    "gs": ("gcp", "google.cloud.storage"),
    "s3": ("aws", "boto3"),
    "hdfs": ("hadoop", "hdfs"),
    "azfs": ("azure", "azure.storage.blob"),
}
"""By scheme, the extra of apache-beam that reads it, and a module that comes with that."""


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


def is_web(location: str) -> bool:
    """Whether this is an http(s) URL, which only a `mmembed.fetch.Fetcher` opens."""
    return location[:8].lower().startswith(WEB)


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

    A remote file system is asked as `use_flags` says, or else as the environment does.

    Raises:
        ReadError: the file is missing, can't be opened, or is none (a folder, a pipe, a device).
    """
    if is_url(location):
        return _open_remote(location)
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
    try:
        return bool(_file_systems(location).exists(location))
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't look for {location}: {_remote_reason(location, error)}") from error


def is_folder(location: str) -> bool:
    """Whether there is a folder of this name; on a remote file system, whether anything lies below it.

    Raises:
        ReadError: its file system can't be asked.
    """
    return bool(_match(f"{location.rstrip('/')}/**", 1)) if is_url(location) else os.path.isdir(location)


def below(folder: str) -> Iterator[str]:
    """The files below a folder, as paths relative to it, sorted folder by folder; hidden ones are left out.

    Links to folders are followed, but none that leads back to a folder it lies in.
    Of hdfs:// Beam lists one folder, and not those in it: name its files by a pattern of * instead.

    Raises:
        ReadError: the folder, or one in it, can't be listed.
    """
    if is_url(folder):
        prefix = folder.rstrip("/") + "/"
        names = (found.removeprefix(prefix) for found in _files(prefix + "**"))
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
        return sorted(_files(pattern))
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
        raise ReadError(f"can't read {location}: {_remote_reason(location, error)}") from error
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


def use_flags(flags: Sequence[str]) -> None:
    """Open URLs as some flags of Beam say: credentials, end points, projects.

    Of s3://: --s3_endpoint_url, --s3_access_key_id, --s3_secret_access_key, --s3_session_token, --s3_region_name,
    --s3_verify, --s3_disable_ssl. Without one of them boto3 goes by the environment and by ~/.aws, as its own
    programs do: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
    AWS_DEFAULT_REGION, AWS_PROFILE, AWS_CA_BUNDLE. hdfs:// needs --hdfs_host, --hdfs_port and --hdfs_user.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(flags)))


def _file_systems(location: str) -> Any:
    """Beam's file systems; without flags of the user's they go by what the environment says.

    Raises:
        ReadError: the location is of none of them, or they have no credentials; the message is the reason alone.
    """
    if is_web(location):
        raise ReadError("web addresses are fetched where media are read, and only there")
    from apache_beam.io.filesystems import FileSystems

    if FileSystems._pipeline_options is None:  # some refuse to work without any
        use_flags(())
    if location.startswith("s3://"):
        from apache_beam.options.pipeline_options import S3Options

        if not FileSystems._pipeline_options.view_as(S3Options).s3_access_key_id:
            _check_credentials()
    return FileSystems


@cache
def _check_credentials() -> None:
    """Raise where boto3 has no credentials: Beam would ask again and again for ten minutes before it says so."""
    import boto3

    if boto3.session.Session().get_credentials() is None:
        raise ReadError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def _match(pattern: str, limit: int | None = None) -> list[str]:
    """What a pattern names on a remote file system; * stays within a folder, ** does not.

    Raises:
        ReadError: there is no such file system, or it can't be asked.
    """
    try:
        [result] = _file_systems(pattern).match([pattern], [limit])
        return [found.path for found in result.metadata_list]
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't list {pattern}: {_remote_reason(pattern, error)}") from error


def _files(pattern: str) -> Iterator[str]:
    """The files among what a pattern names: an object whose name ends in / stands for a folder."""
    return (path for path in _match(pattern) if not path.endswith("/"))


def _open_remote(location: str) -> BinaryIO:
    try:
        system = _file_systems(location)
        return cast(BinaryIO, system.open(location, compression_type="uncompressed"))  # of CompressionTypes
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't open {location}: {_remote_reason(location, error)}") from error


def _remote_reason(location: str, error: Exception) -> str:
    scheme = location.partition("://")[0]
    extra, module = _CLIENTS.get(scheme, ("", ""))
    if module and not _is_installed(module):
        return f"Beam reads {scheme}:// with more packages: pip install 'apache-beam[{extra}]'"
    if "Unable to get filesystem" in str(error):
        return f"{scheme}:// is no file system; there are {', '.join(f'{known}://' for known in _CLIENTS)}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False
