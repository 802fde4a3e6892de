"""Files of remote file systems (gs://, s3://, hdfs://, azfs://), by their URL, as Beam reads and writes them.

The one place below `transforms` that imports Beam, and only where such a URL is met.
"""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from mmembed.errors import ReadError

WEB = ("http://", "https://")

AT_ONCE = 16
"""Files that are asked for at once: each keeps its client waiting for most of the time."""

_CLIENTS = {
    "gs": ("gcp", "google.cloud.storage"),
    "s3": ("aws", "boto3"),
    "hdfs": ("hadoop", "hdfs"),
    "azfs": ("azure", "azure.storage.blob"),
}
"""By scheme, the extra of apache-beam that reads it, and a module that comes with that."""

T = TypeVar("T")
R = TypeVar("R")


class Found(NamedTuple):
    """A file that was listed: its URL, bytes, and the time of its last change, seconds since 1970."""

    location: str
    bytes: int
    modified: float


def is_web(location: str) -> bool:
    """Whether this is an http(s) URL, which only a `mmembed.fetch.Fetcher` opens."""
    return location[:8].lower().startswith(WEB)


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


def open_binary(location: str) -> BinaryIO:
    """A file, readable and seekable; nothing is decompressed.

    Raises:
        ReadError: it is missing, or can't be opened.
    """
    try:
        return _open(location)
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't open {location}: {reason(location, error)}") from error


def exists(location: str) -> bool:
    """Whether there is a file of this name.

    Raises:
        ReadError: its file system can't be asked.
    """
    try:
        return bool(_file_systems(location).exists(location))
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't look for {location}: {reason(location, error)}") from error


def match(pattern: str) -> list[Found]:
    """The files that a pattern names; * stays within a folder, ** does not.

    Raises:
        ReadError: there is no such file system, or it can't be asked.
    """
    # An object whose name ends in / stands for a folder.
    return [found for found in _match(pattern) if not found.location.endswith("/")]


def is_folder(location: str) -> bool:
    """Whether anything lies below a folder of this name.

    Raises:
        ReadError: as of `match`.
    """
    return bool(_match(f"{location.rstrip('/')}/**", 1))


def _match(pattern: str, limit: int | None = None) -> list[Found]:
    try:
        [result] = _file_systems(pattern).match([pattern], [limit])
    except Exception as error:  # the client of each file system has errors of its own
        raise ReadError(f"can't list {pattern}: {reason(pattern, error)}") from error
    return [Found(file.path, file.size_in_bytes, file.last_updated_in_seconds) for file in result.metadata_list]


def each(function: Callable[[T], R], items: Iterable[T], *, at_once: int = AT_ONCE) -> Iterator[R]:
    """`map`, with several threads: for what waits for a remote file system most of the time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(function, items)


@dataclass(frozen=True, order=True)
class RemotePath:
    """A URL of a remote file system, with as much of pathlib.Path as data sets need; what fails raises OSError.

    A folder is a beginning that names have in common: none is ever made. A file appears whole, under its final name,
    when all of it has been sent, and takes the place of an earlier one.
    """

    location: str

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(f"{self.location.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.location

    @property
    def name(self) -> str:
        """What stands behind the last /."""
        return self.location.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self.location.rsplit("/", 1)[0])

    def absolute(self) -> RemotePath:
        """Itself: it means the same everywhere."""
        return self

    resolve = absolute

    def relative_to(self, folder: RemotePath) -> PurePosixPath:
        """The path from a folder that it lies in."""
        return PurePosixPath(self.location.removeprefix(folder.location.rstrip("/") + "/"))

    def exists(self) -> bool:
        """Whether there is a file of this name."""
        with _failing(self.location, "look for"):
            return bool(_file_systems(self.location).exists(self.location))

    def is_dir(self) -> bool:
        """Whether anything lies below it."""
        with _failing(self.location, "list"):
            return is_folder(self.location)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file, to be read; seekable."""
        assert mode == "rb"
        with _failing(self.location, "open"):
            return _open(self.location)

    def read_bytes(self) -> bytes:
        """All of it."""
        with _failing(self.location, "read"), _open(self.location) as file:
            return file.read()

    def read_text(self, encoding: str) -> str:
        """All of it as text."""
        return self.read_bytes().decode(encoding)

    def write_from(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the file."""
        with _failing(self.location, "write"):
            file = _file_systems(self.location).create(self.location, compression_type="uncompressed")
            try:
                for chunk in chunks:
                    file.write(chunk)
            except BaseException:
                _abandon(file)
                raise
            file.close()  # this is what makes it a file

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file; one that is missing is no error, whatever `missing_ok` says."""
        if self.exists():
            with _failing(self.location, "remove"):
                _file_systems(self.location).delete([self.location])

    def replace(self, target: RemotePath) -> None:
        """Move the file: it is copied, then removed."""
        with _failing(self.location, "move"):
            _file_systems(self.location).rename([self.location], [target.location])

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The files of the folder that a pattern names."""
        return (RemotePath(found.location) for found in self._match(pattern))

    def rglob(self) -> Iterator[RemotePath]:
        """The files below the folder, however deep."""
        return self.glob("**")

    def sizes(self) -> dict[str, int]:
        """The bytes of the files below the folder, by their path from it."""
        return {str(RemotePath(found.location).relative_to(self)): found.bytes for found in self._match("**")}

    def found(self) -> Found | None:
        """What is listed of the file, None where there is none."""
        with _failing(self.location, "look for"):
            return next(iter(match(self.location)), None)

    def _match(self, pattern: str) -> list[Found]:
        with _failing(self.location, "list"):
            return match(f"{self.location.rstrip('/')}/{pattern}")


@contextmanager
def _failing(location: str, verb: str) -> Iterator[None]:
    """What is raised within becomes an OSError, as it would be of a file of this machine."""
    try:
        yield
    except Exception as error:  # the client of each file system has errors of its own
        if verb in ("open", "read") and _is_missing(location):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", location) from error
        why = str(error) if isinstance(error, ReadError) else f"can't {verb} it: {reason(location, error)}"
        raise OSError(errno.EIO, why, location) from error


def _abandon(file: Any) -> None:
    """What was sent so far must not become the file, as it would when Python closes it."""
    raw = getattr(file, "raw", file)
    if hasattr(raw, "terminate"):  # of Google's client
        raw.terminate()
    elif hasattr(raw, "_uploader"):  # of Beam's own streams: where it closes, this is what finishes the file
        raw._uploader = SimpleNamespace(put=lambda data: None, finish=lambda: None)


def _open(location: str) -> BinaryIO:
    return cast(BinaryIO, _file_systems(location).open(location, compression_type="uncompressed"))  # CompressionTypes


def _is_missing(location: str) -> bool:
    try:
        return not exists(location)
    except ReadError:
        return False


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


def reason(location: str, error: Exception) -> str:
    """Why a remote file can't be had, in one line."""
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
