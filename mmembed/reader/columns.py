"""What a sample says: columns of the Parquet files by the names that users ask for, and their values by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.errors import UsageError
from mmembed.reader.order import Numbers
from mmembed.tables import vectors_of

EMBEDDING, FEATURE = "embedding", "feature"
VECTORS = {EMBEDDING: "project", FEATURE: "extract"}
"""Columns of vectors, and the stage that makes them."""

OF_SEGMENTS = {EMBEDDING: "vector", FEATURE: "vector", "media": "text", "segment": "number", "span": "object"}
"""Columns of a modality and their kinds: "image.media"; "media" alone is that of each modality."""

Values = Any
"""Of a column, row by row: vectors (n, dim) and numbers (n,) as numpy arrays, all else as an Arrow array."""

Batch = dict[str, Any]
"""By name, numpy arrays, and lists of what is no number."""


@dataclass(frozen=True)
class Column:
    """A column that was asked for.

    Attributes:
        name: in a batch.
        modality: whose it is; "" if it is the record's, which each of its segments repeats.
        path: where it is in a Parquet file: ("metadata", "year").
        kind: "vector", "number", "text", "json" or "object".
    """

    name: str
    modality: str
    path: tuple[str, ...]
    kind: str

    @property
    def folder(self) -> str:
        """The top folder of its files."""
        return "features" if self.path == (FEATURE,) else "embeddings"

    @property
    def leaf(self) -> str:
        """Its name in the Parquet file."""
        return ".".join(self.path)


def columns_of(names: Sequence[str], modalities: Sequence[str], metadata: Mapping[str, str]) -> list[Column]:
    """The columns that some names mean.

    Args:
        metadata: the kind of each of its keys, see `mmembed.tables.metadata_kinds`.

    Raises:
        UsageError: there is no such column, or none is named.
    """
    known = {"id": Column("id", "", ("id",), "text")}
    for key, kind in metadata.items():
        shown = "number" if kind in ("int", "float", "bool") else "json" if kind == "json" else "text"
        known[f"metadata.{key}"] = Column(f"metadata.{key}", "", ("metadata", key), shown)
    for modality in modalities:
        for what in OF_SEGMENTS:
            known[f"{modality}.{what}"] = Column(f"{modality}.{what}", modality, (what,), OF_SEGMENTS[what])
    found = {}
    for name in names:
        for one in [f"{modality}.{name}" for modality in modalities] if name in OF_SEGMENTS else [name]:
            if one not in known:
                near = "".join(f"; did you mean {like}?" for like in get_close_matches(one, known, 1))
                raise UsageError(f"there is no column {one!r}{near}; there are {', '.join([*OF_SEGMENTS, *known])}")
            found[one] = known[one]
    if not found:
        raise UsageError(f"columns: name at least one of {', '.join([*OF_SEGMENTS, *known])}")
    return list(found.values())


def values_of(table: pa.Table, column: Column, kept: NDArray[np.bool_], has_nulls: bool) -> Values:
    """The values of a column in a unit's file, of the rows that are kept.

    Args:
        has_nulls: whether the column has nulls anywhere: then integers are float64 and nulls NaN, and truth values are
            objects. So that batches don't differ in their types.
    """
    if column.kind == "vector":
        vectors = vectors_of(table[column.path[0]])
        return vectors if kept.all() else vectors[kept]
    values = table[column.path[0]].combine_chunks()
    if len(column.path) > 1:
        values = pc.struct_field(values, list(column.path[1:]))
    values = values.filter(pa.array(kept))
    if column.kind == "number" and has_nulls and not pa.types.is_boolean(values.type):
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if column.kind == "number" and not has_nulls:
        return np.asarray(values.to_numpy(zero_copy_only=False))
    return values.cast(pa.large_string()) if pa.types.is_string(values.type) else values  # more than 2 GB in all


def joined(parts: Sequence[Values]) -> Values:
    """Values one after the other."""
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)


def taken(values: Values, rows: Numbers, is_json: bool) -> Any:
    """The values at rows (n,) or (n, segments), of which -1 is none: numpy arrays of that shape with zeros there;
    all else as lists, with None there, or without it within lists.

    Rows that follow each other are a view, which can't be written into.
    """
    if isinstance(values, np.ndarray):
        return _taken(values, rows)
    flat = rows.reshape(-1)
    objects = values.take(pa.array(flat, mask=flat < 0)).to_pylist()
    if is_json:
        objects = [None if text is None else json.loads(text) for text in objects]
    if rows.ndim == 1:
        return objects
    width = rows.shape[1]
    return [
        [item for item, row in zip(objects[start : start + width], line) if row >= 0]
        for start, line in zip(range(0, len(objects), width), rows.tolist())
    ]


def _taken(values: NDArray[Any], rows: Numbers) -> NDArray[Any]:
    lacks_some = bool(rows.size) and rows.min() < 0
    if rows.ndim == 1 and len(rows) and not lacks_some:
        first, last = int(rows[0]), int(rows[-1])
        if last - first == len(rows) - 1 and (np.diff(rows) == 1).all():
            view = values[first : last + 1]
            view.flags.writeable = False
            return view
    if not lacks_some:
        return values.take(rows, axis=0, mode="clip")  # which looks at no place twice
    if not len(values):
        return np.zeros((*rows.shape, *values.shape[1:]), values.dtype)
    found = values.take(rows, axis=0, mode="clip")
    found[rows < 0] = 0
    return found


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches one after the other as one."""
    if len(batches) == 1:
        return batches[0]
    return {
        name: np.concatenate([batch[name] for batch in batches])
        if isinstance(value, np.ndarray)
        else [item for batch in batches for item in batch[name]]
        for name, value in batches[0].items()
    }
