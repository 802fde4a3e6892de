"""A built data set wherever it lies: its manifest, and its Parquet files, each compared with what that says of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mmembed.dataset import MANIFEST, Dataset
from mmembed.encryption import reader_properties
from mmembed.errors import DatasetError, UsageError
from mmembed.files import Stamp, is_url, stamp
from mmembed.shards import checksum, read_table


@dataclass(frozen=True)
class Source:
    """A built data set.

    Attributes:
        location: as the user wrote it.
        file_system: of pyarrow, that it lies on.
        root: its folder there.
        checked: by path, size and time of local files when they were compared with their checksums.
    """

    location: str
    file_system: Any
    root: PurePosixPath
    dataset: Dataset
    checked: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def open(cls, location: Path | str, file_system: fs.FileSystem | None = None) -> Source:
        """Read the manifest.

        Args:
            location: a folder, a URL that pyarrow knows (s3://, gs://, hdfs://, file://), or a folder of `file_system`.

        Raises:
            UsageError: there is none, or no such file system.
            DatasetError: it is damaged.
        """
        if file_system is None and not is_url(str(location)):
            location = Path(location)
            dataset = Dataset.open(location)
            return cls(str(location), fs.LocalFileSystem(), PurePosixPath(dataset.folder), dataset)
        try:
            system, root = (file_system, str(location)) if file_system else fs.FileSystem.from_uri(str(location))
            path = PurePosixPath(root) / MANIFEST
            data = _open(system, path).read()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{location} holds no data set that can be read ({_reason(error)})") from error
        name = f"{str(location).rstrip('/')}/{MANIFEST}"
        return cls(str(location), system, path.parent, Dataset.parse(data, Path(root), name))

    @property
    def is_local(self) -> bool:
        """Whether its files are ordinary ones of this machine."""
        return isinstance(self.file_system, fs.LocalFileSystem)

    @property
    def threads(self) -> int:
        """How many files are best read at once: remote ones keep nobody busy for most of their time."""
        return min(os.cpu_count() or 1, 8) if self.is_local else 16

    def name(self, path: str) -> str:
        """A file of the data set, for messages."""
        return f"{self.location.rstrip('/')}/{path}"

    def peek(self, path: str, columns: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
        """Some columns of a Parquet file, and how many nulls each of its leaves has.

        Only these columns are read, so that the file is not compared with its checksum, but with its size, and pages
        with checksums of their own: for what is compared with the whole file before anybody gets it.

        Raises:
            DatasetError: the file is missing, has another size, or is damaged.
        """
        try:
            file = _open(self.file_system, self.root / path)
            if file.size() != self.dataset.files[path].bytes:
                raise DatasetError(
                    f"{self.name(path)} has another size than dataset.json says: delete it and build again"
                )
            keys = reader_properties(file.read_at(4, 0), self.name(path))
            with pq.ParquetFile(
                file, pre_buffer=not self.is_local, page_checksum_verification=True, decryption_properties=keys
            ) as parquet:
                return parquet.read(columns, use_threads=False), _nulls(parquet.metadata)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error

    def read(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a Parquet file, which is read as a whole and compared with its checksum.

        A local file is compared once: as long as its size and time stay, the checksums of its pages do.

        Raises:
            DatasetError: the file is missing, or not the one that the manifest names.
        """
        now = stamp(str(self.root / path)) if self.is_local else None
        try:
            data = _open(self.file_system, self.root / path).read_buffer()
            if now is not None and self.checked.get(path) == now:
                return read_table(data, columns)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error
        if checksum(data) != self.dataset.files[path].sha256:
            raise DatasetError(
                f"{self.name(path)} is not the file that dataset.json names (its checksum differs): if it was built "
                "meanwhile, open the data set again; else delete the file and build again"
            )
        if now is not None:
            self.checked[path] = now
        return read_table(data, columns, check_pages=False)

    def _unreadable(self, path: str, error: Exception) -> DatasetError:
        return DatasetError(f"can't read {self.name(path)} ({_reason(error)}): build the data set again")


def _open(file_system: fs.FileSystem, path: PurePosixPath) -> pa.NativeFile:
    return file_system.open_input_file(str(path))


def _nulls(metadata: pq.FileMetaData) -> dict[str, int]:
    """The nulls of each leaf of a Parquet file; all of its rows where the file does not say."""
    found: dict[str, int] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(metadata.num_columns)):
            known = column.statistics is not None and column.statistics.has_null_count
            nulls = column.statistics.null_count if known else group.num_rows
            found[column.path_in_schema] = found.get(column.path_in_schema, 0) + nulls
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
