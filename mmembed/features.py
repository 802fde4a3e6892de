"""What extraction leaves of a unit, and how the later stages read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.shards import fingerprint, read_footer, read_table, shard_path, write_table
from mmembed.tables import errors_table, features_table, metadata_kinds, records_table, vectors_from_arrow
from mmembed.types import Failure, Record, Segment, Unit


def unit_fingerprint(unit: Unit, configuration: str) -> str:
    """What decides the content of a unit's files: its records and the configuration of the stage."""
    return fingerprint(unit.fingerprint, unit.number, configuration)


def write_unit(
    root: Path,
    unit: Unit,
    records: Sequence[Record],
    segments: Mapping[str, Sequence[Segment]],
    failures: Sequence[Failure],
    dims: Mapping[str, int],
    configuration: str,
) -> None:
    """Write a unit's files: features by modality, errors if there are any, and last the records: the unit's receipt."""
    number, mark = unit.number, {"fingerprint": unit_fingerprint(unit, configuration)}
    for name, items in segments.items():
        write_table(root / shard_path(f"features/{name}", number), features_table(items, dims[name]), mark)
    if failures:
        write_table(root / shard_path("errors", number), errors_table(failures), mark)
    receipt = {
        **mark,
        "records": len(records),
        "lost": unit.records - len(records),
        "segments": {name: len(items) for name, items in segments.items()},
        "media": {name: sum(name in record.media for record in records) for name in segments},
        "used": {name: len({segment.id for segment in items}) for name, items in segments.items()},
        "errors": len(failures),
        "kinds": metadata_kinds(record.metadata for record in records),
    }
    write_table(root / shard_path("records", number), records_table(records), receipt)


def read_receipt(root: Path, unit: Unit, configuration: str) -> dict[str, Any] | None:
    """The receipt of a unit whose files are all there and of this configuration, None of any other."""
    mark = unit_fingerprint(unit, configuration)
    receipt = read_footer(root / shard_path("records", unit.number))
    if receipt is None or receipt["fingerprint"] != mark:
        return None
    footers = [read_footer(root / path) for path in unit_files(unit.number, receipt)]
    return receipt if all(footer and footer["fingerprint"] == mark for footer in footers) else None


def unit_files(number: int, receipt: Mapping[str, Any]) -> dict[str, int]:
    """The files of a finished unit, by relative path, and their rows."""
    files = {shard_path(f"features/{name}", number): rows for name, rows in receipt["segments"].items()}
    if receipt["errors"]:
        files[shard_path("errors", number)] = receipt["errors"]
    return files | {shard_path("records", number): receipt["records"]}


def repeated_ids(root: Path, numbers: Iterable[int]) -> list[tuple[str, list[str]]]:
    """Ids that several records have, and where each of those was read; 8 bytes a record are in memory meanwhile."""
    paths = [root / shard_path("records", number) for number in numbers]
    hashes = np.concatenate([np.empty(0, np.uint64), *(_id_hashes(path) for path in paths)])
    values, counts = np.unique(hashes, return_counts=True)
    if not (suspects := values[counts > 1]).size:
        return []
    places: dict[str, list[str]] = {}
    for path in paths:
        if not np.isin(_id_hashes(path), suspects).any():
            continue
        for id, source in zip(*read_table(path.read_bytes()).select(["id", "source"]).to_pydict().values()):
            places.setdefault(id, []).append(source)
    return [(id, found) for id, found in places.items() if len(found) > 1]


def _id_hashes(path: Path) -> NDArray[np.uint64]:
    ids = read_table(path.read_bytes()).column("id").to_pylist()
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(digests, np.uint64)


@dataclass(frozen=True, eq=False)
class UnitFeatures:
    """The features of a unit pooled by record: one row for each record, the mean over its segments.

    Attributes:
        ids: of the records, n.
        records: what the user gave, by key, n.
        pooled: by modality float64 (n, d); rows of records that lack it are zero.
        present: by modality which records have it, bool (n,).
    """

    ids: list[str]
    records: list[dict[str, Any]]
    pooled: dict[str, NDArray[np.float64]]
    present: dict[str, NDArray[np.bool_]]


def read_unit(dataset: Dataset, number: int, modalities: Sequence[str]) -> UnitFeatures:
    """Read a unit's features, checked against the manifest."""
    ids, records = read_records(dataset, number)
    row_of = {id: row for row, id in enumerate(ids)}
    pooled, present = {}, {}
    for name in modalities:
        table = read_table(dataset.read(shard_path(f"features/{name}", number)))
        rows = np.array([row_of[id] for id in table.column("id").to_pylist()], np.intp)
        pooled[name], present[name] = pool(vectors_from_arrow(table.column("feature")), rows, len(ids))
    return UnitFeatures(ids, records, pooled, present)


def read_records(dataset: Dataset, number: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of a unit's records, and what the user gave, by key."""
    table = read_table(dataset.read(shard_path("records", number)))
    return table.column("id").to_pylist(), [json.loads(text) for text in table.column("record").to_pylist()]


def pool(
    vectors: NDArray[np.float32], rows: NDArray[np.intp], count: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Means of vectors (n, d) by row number: float64 (count, d), and which rows had any, bool (count,)."""
    counts = np.bincount(rows, minlength=count)
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return sums / np.maximum(counts, 1)[:, None], counts > 0
