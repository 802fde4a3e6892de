"""Arrow schemas of the files in OUT/, and rows to and from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.types import Dropped, Failure, Record, Segment

_MEDIA = pa.list_(pa.struct([("modality", pa.string()), ("content_hash", pa.string()), ("signature", pa.binary())]))
RECORDS = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("record", pa.string()), ("media", _MEDIA), ("digest", pa.string())]
)
ERRORS = pa.schema(
    [
        ("id", pa.string()),
        ("modality", pa.string()),
        ("segment", pa.int32()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("source", pa.string()),
        ("attempts", pa.int32()),
    ]
)
DROPPED = pa.schema(
    [
        ("id", pa.string()),
        ("modality", pa.string()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        ("twin", pa.string()),
        ("source", pa.string()),
    ]
)
STAMPS = pa.schema(
    [("name", pa.string()), ("bytes", pa.int64()), ("modified", pa.int64()), ("content_hash", pa.string())]
)
_SEGMENT_COLUMNS = [
    ("id", pa.string()),
    ("segment", pa.int32()),
    ("span", pa.list_(pa.float64())),
    ("media", pa.string()),
]
_ARROW_OF_KIND = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}
_JSON_KIND = "json"


def features_schema(dim: int) -> pa.Schema:
    """features/<modality>: a row a segment."""
    vector = pa.list_(pa.float32(), dim)
    return pa.schema([*_SEGMENT_COLUMNS, ("content_hash", pa.string()), ("feature", vector)])


def embeddings_schema(dim: int, dtype: str, kinds: Mapping[str, str]) -> pa.Schema:
    """embeddings/<modality>: a row a segment, its record's metadata beside it.

    Args:
        dtype: "float32" or "float16".
        kinds: of each metadata key, see `metadata_kinds`.
    """
    fields = [(key, _ARROW_OF_KIND.get(kind, pa.string())) for key, kind in sorted(kinds.items())]
    metadata = [("metadata", pa.struct(fields))] if fields else []  # Parquet knows no empty struct
    vector = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)
    return pa.schema([*_SEGMENT_COLUMNS, ("split", pa.string()), *metadata, ("embedding", vector)])


def vectors_to_arrow(vectors: NDArray[Any], type: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    """A matrix (n, dim) as a column of fixed-size lists, without a copy where the dtype is right."""
    dtype = np.float16 if pa.types.is_float16(type.value_type) else np.float32
    flat = np.ascontiguousarray(vectors, dtype).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type.value_type), type=type)


def vectors_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of fixed-size lists as a matrix (n, dim) of its own dtype; a view, where it is of one piece."""
    dim = column.type.list_size
    parts = [np.asarray(chunk.flatten()).reshape(-1, dim) for chunk in column.chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, dim), column.type.value_type.to_pandas_dtype())


def vectors_from_arrow(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of fixed-size lists as a float32 matrix (n, dim)."""
    return vectors_of(column).astype(np.float32, copy=False)


def first_of_runs(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where a value of a column of strings stands that is not the one before: of rows that lie one after the other by
    record, the first of each record."""
    last, starts, row = None, [np.empty(0, np.int64)], 0
    for chunk in (chunk.cast(pa.binary()) for chunk in column.chunks if len(chunk)):
        if chunk[0] != last:
            starts.append(np.array([row]))
        starts.append(row + 1 + np.flatnonzero(pc.not_equal(chunk[1:], chunk[:-1])))
        last, row = chunk[-1], row + len(chunk)
    return np.concatenate(starts)


def features_table(segments: Sequence[Segment], dim: int) -> pa.Table:
    """Encoded segments (`data` is the feature) as rows of features/<modality>."""
    schema = features_schema(dim)
    matrix = np.stack([segment.data for segment in segments]) if segments else np.empty((0, dim), np.float32)
    columns = [
        pa.array([segment.id for segment in segments], pa.string()),
        pa.array([segment.number for segment in segments], pa.int32()),
        pa.array([segment.span for segment in segments], schema.field("span").type),
        pa.array([segment.media for segment in segments], pa.string()),
        pa.array([segment.content_hash for segment in segments], pa.string()),
        vectors_to_arrow(matrix, schema.field("feature").type),
    ]
    return pa.table(columns, schema=schema)


def records_table(records: Sequence[Record], usable: Mapping[str, Sequence[Mapping[str, Any]]]) -> pa.Table:
    """Records as rows of records/: the JSON of all that the user gave, media as text or path.

    Args:
        usable: by record id, modality, content hash and signature of each medium that gave a segment.
    """
    rows = []
    for record in records:
        text, media = json.dumps(record_json(record), ensure_ascii=False), list(usable.get(record.id, ()))
        hashes = [f"{medium['modality']}:{medium['content_hash']}" for medium in media]
        digest = hashlib.blake2b("\n".join([text, *hashes]).encode("utf-8", "surrogatepass"), digest_size=8)
        rows.append(
            {"id": record.id, "source": record.source, "record": text, "media": media, "digest": digest.hexdigest()}
        )
    return pa.Table.from_pylist(rows, RECORDS)


def record_json(record: Record) -> dict[str, Any]:
    """A record's media (as text or path) and metadata by the user's own keys."""
    names: dict[str, list[str]] = {}
    for modality, items in record.media.items():
        for media in items:
            names.setdefault(media.column or modality, []).append(media.name)
    return {key: several[0] if len(several) == 1 else several for key, several in names.items()} | dict(record.metadata)


def errors_table(failures: Sequence[Failure]) -> pa.Table:
    """Failures as rows of errors/."""
    return pa.Table.from_pylist([vars(failure) for failure in failures], ERRORS)


def dropped_table(dropped: Sequence[Dropped]) -> pa.Table:
    """What was left out, as rows of dropped/."""
    return pa.Table.from_pylist([vars(item) for item in dropped], DROPPED)


def metadata_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """What a column for each key must hold: bool, int, float, string, json; None while only nulls were seen."""
    return merge_kinds({key: _kind(value) for key, value in row.items()} for row in rows)


def merge_kinds(several: Iterable[Mapping[str, str | None]]) -> dict[str, str | None]:
    """The narrowest kinds that hold all of several; the order does not matter."""
    return reduce(
        lambda left, right: left | {key: _wider(left.get(key), kind) for key, kind in right.items()}, several, {}
    )


def metadata_column(rows: Sequence[Mapping[str, Any]], type: pa.StructType, kinds: Mapping[str, str]) -> pa.Array:
    """Metadata of any shape as a struct column of the global type; what fits no simple type becomes JSON text."""
    return pa.array(
        [{key: _stored(row.get(key), kind) for key, kind in kinds.items()} for row in rows],
        type,
    )


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else _JSON_KIND
    return {float: "float", str: "string"}.get(type(value), _JSON_KIND)


def _wider(left: str | None, right: str | None) -> str | None:
    if left is None or right is None or left == right:
        return left or right
    return "float" if {left, right} == {"int", "float"} else _JSON_KIND


def _stored(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == _JSON_KIND:
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == "float" else value
