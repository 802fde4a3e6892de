"""Parquet: a record a row; media as paths, or as structs {bytes, path} in the way of Hugging Face."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmembed.errors import UsageError
from mmembed.inputs import FILE_KEYS, TEXT_KEYS, parse_records
from mmembed.shards import checksum
from mmembed.types import Failure, Record, Unit


@dataclass(frozen=True)
class Parquet:
    """A Parquet file. A unit is some rows of one row group: its place is (row group, first row in it, first row)."""

    path: Path

    def units(self, records: int) -> list[Unit]:
        """Units of at most `records` rows, within row groups.

        A unit's fingerprint is that of the file's footer (sizes, offsets, statistics) and its place: data sets
        with media inside are too large to be read for a fingerprint.
        """
        footer = checksum(_footer(self.path))
        metadata = pq.read_metadata(self.path)
        units: list[Unit] = []
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            for start in range(0, rows, records):
                count = min(records, rows - start)
                place = (group, start, first + start)
                units.append(Unit(len(units), count, f"{footer}:{group}:{start}:{count}", place))
            first += rows
        return units

    def read(self, unit: Unit) -> tuple[list[Record], list[Failure]]:
        """The records of a unit. Pages before it in its row group are passed over, one batch in memory at a time."""
        return parse_records(self._rows(unit), str(self.path.parent))

    def _rows(self, unit: Unit) -> Iterator[tuple[str, Any]]:
        group, start, first = unit.place
        skip, wanted = start, unit.records
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=unit.records, row_groups=[group], use_threads=False):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                rows = _without_nanoseconds(batch.slice(skip, wanted)).to_pylist()
                for offset, row in enumerate(rows, first + unit.records - wanted):
                    metadata = {key: _json_value(row[key]) for key in row if key not in ("id", *FILE_KEYS, *TEXT_KEYS)}
                    yield f"{self.path.name}:row {offset}", row | metadata
                skip, wanted = 0, wanted - len(rows)
                if not wanted:
                    return


def _footer(path: Path) -> bytes:
    """The bytes of a Parquet footer: at the end, before its length (4 bytes) and the magic (4 bytes)."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} is no Parquet file: {error}") from error
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return file.read(length)


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns of nanoseconds in microseconds, which is what Python's own types hold."""
    for index, field in enumerate(batch.schema):
        if getattr(field.type, "unit", "") == "ns":
            column = batch.column(index).cast(_microseconds(field.type), safe=False)
            batch = batch.set_column(index, field.name, column)
    return batch


def _microseconds(type: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type):
        return pa.timestamp("us", type.tz)
    return pa.duration("us") if pa.types.is_duration(type) else pa.time64("us")


def _json_value(value: Any) -> Any:
    """Values that JSON lacks, at any depth: dates in ISO form, bytes in base64, no number that is not finite."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
