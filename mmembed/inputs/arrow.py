"""Data sets of Hugging Face as `save_to_disk` leaves them: Arrow files, a record a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from mmembed import files
from mmembed.errors import ReadError, UsageError
from mmembed.inputs import Plan
from mmembed.inputs.jsonl import parse_json
from mmembed.inputs.parquet import BAD_DATA, places, taken
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row
from mmembed.shards import fingerprint

COLUMNS = MANIFEST_COLUMNS

_MAGIC = b"ARROW1"


def saved_files(location: str, names: Sequence[str]) -> list[str]:
    """The Arrow files of a saved data set, or of each of its splits, in order.

    Args:
        names: of all files below the folder.

    Raises:
        UsageError: what describes the data set can't be read, or it is a selection whose rows lie elsewhere.
    """
    states = sorted(name for name in names if name.rpartition("/")[2] == "state.json")
    if "dataset_dict.json" in names:
        splits = _description(location, "dataset_dict.json").get("splits")
        if not isinstance(splits, list):
            raise UsageError(f"{files.join(location, 'dataset_dict.json')} names no splits: save the data set again")
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
            value = parse_json(file.read())
    except (ReadError, OSError) as error:
        raise UsageError(f"{files.join(location, name)} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{files.join(location, name)} is no JSON object: save the data set again")
    return value


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` rows and, by the mean of a batch's rows, UNIT_BYTES: small batches together, large
    ones cut.

    A unit's place is (where to begin, rows to pass over from there, first row in the file, rows). Its fingerprint is
    of the schema, the rows and bytes of its batches and its place in them: data sets with media inside are too large
    to be read for one.

    Raises:
        ReadError: it can't be read; after the units before that, where it can't be read to its end.
    """
    found: list[tuple[int, int, int]] = []
    schema, error = "", None
    try:
        for begin, batch in _batches(location):
            schema = schema or batch.schema.to_string()
            found.append((begin, batch.num_rows, batch.nbytes))
    except BAD_DATA as caught:
        error = caught
    sizes = [(rows, size) for _, rows, size in found]
    for (number, count, skip, first), rows in places(sizes, records):
        begin = found[number][0]
        mark = fingerprint(schema, sizes[number : number + count], skip, first, rows)
        yield rows, mark, (begin, skip if begin else first, first, rows)
    if error:
        raise ReadError(f"can't read {location} as Arrow: {' '.join(str(error).split())}") from error


def rows(location: str, name: str, place: tuple[int, int, int, int]) -> Iterator[Row]:
    """Some rows; those before them in their batch are passed over."""
    begin, skip, first, wanted = place
    yield from taken((batch for _, batch in _batches(location, begin)), name, skip, first, wanted)


def _batches(location: str, begin: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of an Arrow file, and where to begin to read each alone; 0 says from the beginning.

    A local file is mapped, not held in memory. Raises some of BAD_DATA where it can't be read.
    """
    with files.open_binary(location) as file:
        is_file = file.read(len(_MAGIC)) == _MAGIC
        size = file.seek(0, 2)
        file.seek(0)
        with pa.PythonFile(file, "r") if files.is_url(location) else pa.memory_map(location) as source:
            for place, batch in (_of_file if is_file else _of_stream)(source, begin):
                batch.validate(full=True)
                if batch.num_rows > 8 * size:  # no record takes less than a bit
                    raise ValueError(f"a batch claims {batch.num_rows:,} rows")
                yield place, batch


def _of_file(source: pa.NativeFile, begin: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of the form with a footer, by their numbers."""
    reader = pa.ipc.open_file(source)
    for number in range(begin, reader.num_record_batches):
        yield number, reader.get_batch(number)


def _of_stream(source: pa.NativeFile, begin: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of the form without, by their first bytes; dictionaries come before some, so that none is alone."""
    reader = pa.ipc.open_stream(source)
    alone = not any(_has_dictionary(field.type) for field in reader.schema)
    if begin:
        source.seek(begin)
    while True:
        place = source.tell()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        yield place if alone else 0, batch
    if not place < source.tell() == source.size():  # zeros, or a cut between two batches, look like an end
        raise ValueError("it is damaged or cut off: the mark of its end is not where it ends")


def _has_dictionary(type: pa.DataType) -> bool:
    return pa.types.is_dictionary(type) or any(
        _has_dictionary(type.field(number).type) for number in range(type.num_fields)
    )
