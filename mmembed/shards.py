"""Files that are whole or absent: write beside, fsync, rename; to a remote file system, send; checksums; Parquet."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmembed import encryption
from mmembed.errors import DatasetError, UsageError
from mmembed.files import Place
from mmembed.remote import RemotePath, each

TEMPORARY_SUFFIX = ".mmembed-tmp"
_FOOTER_KEY, _FOOTER_CHECKSUM_KEY = b"mmembed", b"mmembed_sha256"
_ROW_GROUP_ROWS = 8192  # 4 MB of 128 float32: large enough to scan fast, small enough to read a few rows
_SENT_BYTES = 1 << 22
_HEAD_BYTES = 8  # enough to see whether a file is encrypted
_LEAVES = re.compile(r"[\\:\0]")  # of a path: Windows, a drive or a URL, and the end of a C string

T = TypeVar("T")
R = TypeVar("R")


def inside(path: str) -> str:
    """A relative path that stays within its folder on every system, as it is.

    Raises:
        DatasetError: it doesn't. No data set that was written here has one: it comes from somebody else.
    """
    if not isinstance(path, str) or _LEAVES.search(path) or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise DatasetError(f"the data set names {path!r}, which is no path within its folder: don't use it")
    return path


def shard_path(folder: str, number: int) -> str:
    """The relative path of a unit's file: `features/image/part-00017.parquet`.

    Raises:
        DatasetError: as of `inside`.
    """
    return inside(f"{folder}/part-{number:05d}.parquet")


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A temporary file to write into, which takes the place of `path` at the end, so that this is never seen
    half-written. On this machine it lies beside `path`: fsync, rename, fsync of the folder. A remote one is sent.

    Two attempts at the same file may race: each has a temporary file of its own, and both carry the same bytes.

    Where files are encrypted, the temporary one lies in memory, and is encrypted from there.
    """
    if encryption.seals():
        with _in_memory() as temporary:
            yield temporary
            data = encryption.seal(temporary.read_bytes())
        _write(path, data)
        return
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="mmembed-") as beside:
            temporary = Path(beside, path.name)
            yield temporary
            with temporary.open("rb") as file:
                path.write_from(iter(partial(file.read, _SENT_BYTES), b""))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    temporary = Path(name)
    try:
        os.fchmod(descriptor, 0o644)  # mkstemp's 0600 would hide the data set from a colleague
        yield temporary
        os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_bytes(path: Place, data: bytes | memoryview, *, plain: bool = False) -> None:
    """Write a file at once, as `replacing` does.

    Args:
        plain: never encrypted.
    """
    _write(path, encryption.seal(data) if encryption.seals() and not plain else data)


def _write(path: Place, data: bytes | memoryview) -> None:
    if isinstance(path, RemotePath):
        path.write_from([data])
        return
    with encryption.sealing(False), replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextmanager
def _in_memory() -> Iterator[Path]:
    """A file that lies on no disk.

    Raises:
        UsageError: the system has none.
    """
    if not hasattr(os, "memfd_create"):
        raise UsageError("encrypted data sets need files in memory, which Linux has")
    descriptor = os.memfd_create("mmembed")
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def is_sealed(path: Place) -> bool:
    """Whether a file is encrypted."""
    with path.open("rb") as file:
        return encryption.is_sealed(file.read(_HEAD_BYTES))


def read_bytes(path: Place) -> bytes | memoryview:
    """The bytes of a file of a data set, decrypted if need be.

    Raises:
        OSError: it can't be read.
    """
    return encryption.unsealed(path.read_bytes(), path)


@contextmanager
def fetched(path: Place) -> Iterator[Path]:
    """A file of this machine with the content of `path`: itself, or a copy as long as it is needed; of an encrypted one
    a decrypted copy in memory."""
    with path.open("rb") as source:
        head = source.read(_HEAD_BYTES)
        if encryption.is_sealed(head):
            content = encryption.unsealed(head + source.read(), path)
            with _in_memory() as local:
                local.write_bytes(content)
                del content
                yield local
            return
        if isinstance(path, Path):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="mmembed-") as beside:
            local = Path(beside, path.name)
            with local.open("wb") as file:
                file.write(head)
                shutil.copyfileobj(source, file, _SENT_BYTES)
            yield local


def move(path: Place, target: Place) -> None:
    """Give a file another name within a data set."""
    if isinstance(path, RemotePath) and isinstance(target, RemotePath):
        path.replace(target)
    elif isinstance(path, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    else:
        raise TypeError(f"{path} and {target} are not in one data set")


def remove_folder(folder: Place) -> None:
    """Remove a folder and all that lies in it; none is as good."""
    if isinstance(folder, RemotePath):
        deque(each(RemotePath.unlink, folder.rglob()), maxlen=0)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def several(function: Callable[[T], R], items: Iterable[T], root: Place) -> Iterator[R]:
    """`map` over what lies in a data set: what is remote is asked for by several threads."""
    return each(function, items) if isinstance(root, RemotePath) else map(function, items)


def write_json(path: Place, value: Any, *, plain: bool = False) -> None:
    """Write readable JSON with a final newline, atomically; `plain` as of `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), plain=plain)


def write_table(path: Place, table: pa.Table, footer: Mapping[str, Any]) -> tuple[int, str]:
    """Write a table as Parquet, atomically; the bytes depend on the table and the footer alone. Gives how
    many they are, and their checksum.

    Args:
        footer: JSON values kept in the file's own metadata; `read_footer` gives them back.
    """
    value = json.dumps(footer, sort_keys=True).encode()
    table = table.replace_schema_metadata({_FOOTER_KEY: value, _FOOTER_CHECKSUM_KEY: checksum(value)})
    buffer = pa.BufferOutputStream()
    # Vectors don't repeat: a dictionary of them costs time and space.
    plain = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    # Compression saves a tenth of embeddings, and doubles the time of reading them; of features it saves more.
    codecs = {
        leaf: "none" if leaf.startswith("embedding.") else "zstd" for leaf in _leaves(table.schema.remove_metadata())
    }
    pq.write_table(
        table,
        buffer,
        compression=codecs,
        use_dictionary=plain,
        row_group_size=_ROW_GROUP_ROWS,
        write_page_checksum=True,  # what is taken over from an earlier run is in no manifest
        encryption_properties=encryption.writer_properties(),
    )
    data = memoryview(buffer.getvalue())
    _write(path, data)
    return data.nbytes, checksum(data)


@cache
def _leaves(schema: pa.Schema) -> list[str]:
    """What a table's columns, and those within them, are called in Parquet."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    names = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return [names.column(place).path for place in range(len(names))]


def read_table(data: bytes, columns: Sequence[str] | None = None, *, check_pages: bool = True) -> pa.Table:
    """The table of a Parquet file's bytes, or some of its columns.

    Args:
        check_pages: by their own checksums; of use where the whole file has not just been checked.
    """
    # Not pq.read_table: it starts a thread, which may let go of the bytes last. Where Python is ending by then, the
    # thread can't have the interpreter's lock and takes the process down (apache/arrow#34314).
    keys = encryption.reader_properties(data)
    with pq.ParquetFile(
        pa.BufferReader(data), page_checksum_verification=check_pages, decryption_properties=keys
    ) as file:
        return file.read(columns, use_threads=False)


def read_footer(path: Place) -> dict[str, Any] | None:
    """What `write_table` put into the footer; None where there is no such file, or a footer not ours."""
    try:
        with path.open("rb") as file:  # a name given to pyarrow may be taken for a URL
            keys = encryption.reader_properties(file.read(4), path)
            file.seek(0)
            metadata = pq.read_metadata(file, decryption_properties=keys).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    footer = metadata.get(_FOOTER_KEY, b"")
    return json.loads(footer) if metadata.get(_FOOTER_CHECKSUM_KEY) == checksum(footer).encode() else None


def checksum(data: bytes | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(*parts: Any) -> str:
    """A short name for JSON values: the same values, the same 32 hex digits."""
    return checksum(json.dumps(parts, sort_keys=True).encode())[:32]


def read_checked(path: Place, sha256: str) -> bytes:
    """The bytes of a file whose checksum is known.

    Raises:
        DatasetError: the file is missing or not the one that the manifest names.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: build again") from error
    except OSError as error:
        raise DatasetError(f"can't read {path}: {error.strerror}") from error
    if checksum(data) != sha256:
        raise DatasetError(
            f"{path} is not the file that dataset.json names (its checksum differs): delete it and build again"
        )
    return bytes(encryption.unsealed(data, path))


def remove_temporaries(folder: Place) -> None:
    """Delete what killed writers left behind in a folder, not below. Only for the one process that owns it."""
    if isinstance(folder, RemotePath):
        return  # they leave nothing there
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
