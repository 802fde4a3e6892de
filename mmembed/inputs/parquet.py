"""Parquet: a record a row; media as paths, or as structs {bytes, path} in the way of Hugging Face."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmembed.errors import ReadError, UsageError
from mmembed.inputs import FILE_KEYS, TEXT_KEYS, UNIT_BYTES, parse_records
from mmembed.shards import checksum, fingerprint
from mmembed.types import Failure, Record, Unit


@dataclass(frozen=True)
class Parquet:
    """A Parquet file. A unit is some rows of one row group, or some small row groups as a whole: its place is (first
    row group, how many, first row in it, first row in the file)."""

    path: Path

    def units(self, records: int) -> list[Unit]:
        """Units of at most `records` rows and, by the mean of a row group's rows, UNIT_BYTES.

        A unit's fingerprint is that of the file's footer (sizes, offsets, statistics) and its place: data sets
        with media inside are too large to be read for a fingerprint.
        """
        footer = checksum(_footer(self.path))
        metadata = pq.read_metadata(self.path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        places = _places([(group.num_rows, group.total_byte_size) for group in groups], records)
        return [
            Unit(number, rows, fingerprint(footer, place, rows), place) for number, (place, rows) in enumerate(places)
        ]

    def read(self, unit: Unit) -> tuple[list[Record], list[Failure]]:
        """The records of a unit. Pages before it in its row group are passed over, one batch in memory at a time."""
        return parse_records(self._rows(unit), str(self.path.parent))

    def _rows(self, unit: Unit) -> Iterator[tuple[str, Any]]:
        group, count, start, first = unit.place
        skip, wanted = start, unit.records
        groups = range(group, group + count)
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=unit.records, row_groups=groups, use_threads=False):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                rows = _values(batch.slice(skip, wanted))
                for offset, row in enumerate(rows, first + unit.records - wanted):
                    yield f"{self.path.name}:row {offset}", row
                skip, wanted = 0, wanted - len(rows)
                if not wanted:
                    return


def _places(groups: Sequence[tuple[int, int]], records: int) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    """The places of units and their rows, from the rows and bytes of row groups: small ones whole, large ones cut."""
    start = first = count = rows = size = 0  # of the groups that wait to become one unit
    for number, (group_rows, group_size) in enumerate(groups):
        if count and (rows + group_rows > records or size + group_size > UNIT_BYTES):
            yield (start, count, 0, first), rows
            start, first, count, rows, size = number, first + rows, 0, 0, 0
        if group_rows <= records and group_size <= UNIT_BYTES:
            count, rows, size = count + 1, rows + group_rows, size + group_size
            continue
        step = max(1, min(records, UNIT_BYTES * group_rows // max(1, group_size)))
        for row in range(0, group_rows, step):
            yield (number, 1, row, first + row), min(step, group_rows - row)
        start, first = number + 1, first + group_rows
    if rows:
        yield (start, count, 0, first), rows


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | ReadError]:
    """The rows of a batch as dictionaries, metadata as JSON has it; an error for a row that Python can't hold."""
    try:
        rows = _without_nanoseconds(batch).to_pylist()
    # Text that is no UTF-8; a date, duration or time zone that Python doesn't know.
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        if batch.num_rows == 1:
            return [ReadError(f"a value of the row can't be read: {error}")]
        return [value for row in range(batch.num_rows) for value in _values(batch.slice(row, 1))]
    media = {"id", *FILE_KEYS, *TEXT_KEYS}
    return [{key: row[key] if key in media else _json_value(row[key]) for key in row} for row in rows]


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
