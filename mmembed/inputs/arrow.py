"""Data sets of Hugging Face as `save_to_disk` leaves them: Arrow files, a record a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from mmembed import files
from mmembed.errors import ReadError, UsageError
from mmembed.inputs import UNIT_BYTES, Plan
from mmembed.inputs.parquet import BAD_DATA, values
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row
from mmembed.shards import fingerprint

COLUMNS = MANIFEST_COLUMNS


def saved_files(location: str, names: Sequence[str]) -> list[str]:
    """The Arrow files of a saved data set, or of each of its splits, in order.

    Args:
        names: of all files below the folder.

    Raises:
        UsageError: what describes the data set can't be read, or it is a selection whose rows lie elsewhere.
    """
    states = sorted(name for name in names if name.rpartition("/")[2] == "state.json")
    if "dataset_dict.json" in names:
        splits = _description(location, "dataset_dict.json").get("splits", [])
        states = [f"{split}/state.json" for split in splits]
    found = [file for name in states for file in _data_files(location, name)]
    if missing := [file for file in found if file not in set(names)]:
        raise UsageError(f"{files.join(location, missing[0])} is missing: copy the data set as a whole")
    return found


def _data_files(location: str, name: str) -> list[str]:
    """The Arrow files that a state.json names."""
    state = _description(location, name)
    if state.get("_indices_files"):
        raise UsageError(f"{location} is a selection of rows: save it again after flatten_indices()")
    try:
        return [name.removesuffix("state.json") + str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{files.join(location, name)} names no data files: save the data set again") from error


def _description(location: str, name: str) -> dict[str, Any]:
    try:
        with files.open_binary(files.join(location, name)) as file:
            value = json.loads(file.read())
    except (ReadError, OSError, ValueError) as error:
        raise UsageError(f"{files.join(location, name)} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{files.join(location, name)} is no JSON object: save the data set again")
    return value


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` rows and, by the mean of a batch's rows, UNIT_BYTES; place: first row, rows.

    The fingerprint is of the schema and of the batches' rows and bytes: data sets with media inside are too large to be
    read for one.
    """
    first = 0
    for batch in _batches(location):
        step = max(1, min(records, UNIT_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for row in range(0, batch.num_rows, step):
            count = min(step, batch.num_rows - row)
            mark = fingerprint(batch.schema.to_string(), batch.num_rows, batch.nbytes, first + row, count)
            yield count, mark, (first + row, count)
        first += batch.num_rows


def rows(location: str, name: str, place: tuple[int, int]) -> Iterator[Row]:
    """Some rows; the batches before them are passed over."""
    start, wanted = place
    found, first = 0, 0
    try:
        for batch in _batches(location):
            skip = max(0, start - first)
            if skip < batch.num_rows:
                part = batch.slice(skip, wanted - found)
                part.validate(full=True)
                for value in values(part):
                    yield f"{name}:row {start + found}", value
                    found += 1
            first += batch.num_rows
            if found == wanted:
                return
    except (ReadError, *BAD_DATA) as error:
        reason = error if isinstance(error, ReadError) else _unreadable(location, error)
        yield from ((f"{name}:row {start + row}", reason) for row in range(found, wanted))


def _batches(location: str) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, in the form of a stream or of a file; a local one is not held in memory.

    Raises:
        ReadError: it can't be read, or not to its end.
    """
    with files.open_binary(location) as file:
        source = file if files.is_url(location) else pa.memory_map(location)
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            yield from _of_file(source, location)
            return
        except BAD_DATA as error:
            raise _unreadable(location, error) from error
        try:
            for batch in reader:
                batch.validate()
                yield batch
        except BAD_DATA as error:
            raise _unreadable(location, error) from error


def _of_file(source: BinaryIO | pa.NativeFile, location: str) -> Iterator[pa.RecordBatch]:
    try:
        source.seek(0)
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            yield batch
    except BAD_DATA as error:
        raise _unreadable(location, error) from error


def _unreadable(location: str, error: Exception) -> ReadError:
    return ReadError(f"can't read {location} as Arrow: {' '.join(str(error).split())}")
