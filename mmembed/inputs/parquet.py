"""Parquet: a record a row; media as paths, or as structs {bytes, path} in the way of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mmembed import files
from mmembed.errors import ReadError
from mmembed.inputs import UNIT_BYTES, Plan
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row
from mmembed.shards import checksum, fingerprint

COLUMNS = MANIFEST_COLUMNS

BAD_DATA = (
    OSError,
    ValueError,  # with ArrowInvalid and errors of Unicode
    pa.ArrowException,
    MemoryError,  # sizes that can't be
    OverflowError,
)
"""What pyarrow raises for damaged files."""

MAX_PARTS = 10_000
"""Row groups of a file, and columns with those nested in them, at most: pyarrow dies of a stack that overflows where
12,800 columns are nested in each other."""


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` rows and, by the mean of a row group's rows, UNIT_BYTES.

    A unit is some rows of one row group, or some small row groups as a whole; its place is (first row group, how many,
    first row in it, first row in the file, rows). Its fingerprint is that of the file's footer (sizes, offsets,
    statistics) and its place: data sets with media inside are too large to be read for a fingerprint.
    """
    footer, metadata = _footer(location)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for place, count in places([(group.num_rows, group.total_byte_size) for group in groups], records):
        yield count, fingerprint(footer, place, count), (*place, count)


def rows(location: str, name: str, place: tuple[int, int, int, int, int]) -> Iterator[Row]:
    """Some rows. Pages before them in their row group are passed over, one batch in memory at a time."""
    group, count, skip, first, wanted = place
    yield from taken(_batches(location, range(group, group + count), wanted), name, skip, first, wanted)


def taken(batches: Iterable[pa.RecordBatch], name: str, skip: int, first: int, wanted: int) -> Iterator[Row]:
    """Some rows of batches; errors from where they can't be read, for what comes after a damaged page can't be either.

    Args:
        skip: how many rows come before them.
        first: the number of the first one, for its source.
    """
    found = 0
    try:
        for batch in batches:
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            for value in values(batch.slice(skip, wanted - found)):
                yield f"{name}:row {first + found}", value
                found += 1
            skip = 0
            if found == wanted:
                return
    except BAD_DATA as error:
        reason = ReadError(f"can't read {name} from here: {' '.join(str(error).split())}")
        yield from ((f"{name}:row {first + row}", reason) for row in range(found, wanted))


def _batches(location: str, groups: Iterable[int], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups, in batches of so many. Pages that have checksums are held to them."""
    with files.open_binary(location) as binary, _opened(binary) as file:
        yield from file.iter_batches(batch_size=rows, row_groups=groups, use_threads=False)


def _opened(binary: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(binary, thrift_container_size_limit=MAX_PARTS, page_checksum_verification=True)


def places(groups: Iterable[tuple[int, int]], records: int) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    """The places of units and their rows, from the rows and bytes of row groups: small ones whole, large ones cut.

    A place is (first row group, how many, first row in it, first row in the file).
    """
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


def values(batch: pa.RecordBatch) -> list[dict[str, Any] | ReadError]:
    """The rows of a batch as dictionaries; an error for a row that Python can't hold."""
    try:
        found: list[dict[str, Any] | ReadError] = _without_nanoseconds(batch).to_pylist()
    # Text that is no UTF-8; a date, duration, decimal or time zone that Python doesn't know.
    except (ValueError, ArithmeticError, KeyError, pa.ArrowException) as error:
        if batch.num_rows == 1:
            return [ReadError(f"a value of the row can't be read: {error}")]
        return [value for row in range(batch.num_rows) for value in values(batch.slice(row, 1))]
    return found


def _footer(location: str) -> tuple[str, pq.FileMetaData]:
    """The checksum of a Parquet footer, which lies before its length (4 bytes) and the magic (4 bytes), and its sense.

    Raises:
        ReadError: this is no Parquet file, or one that was cut short.
    """
    with files.open_binary(location) as file:
        try:
            metadata = _opened(file).metadata
            counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            if min(counts, default=0) < 0 or sum(counts) > 8 * file.seek(0, 2):  # no record takes less than a bit
                raise ValueError(f"its footer claims {sum(counts):,} rows")
            file.seek(-8, 2)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, 2)
            return checksum(file.read(length)), metadata
        except BAD_DATA as error:
            reason = " ".join(str(error).split())
            if "Exceeded size limit" in reason:
                reason = f"its footer is damaged, or has more than {MAX_PARTS:,} row groups or columns"
            raise ReadError(f"{location} is no Parquet file that can be read: {reason}") from error


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
