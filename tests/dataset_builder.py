"""Small data sets made by hand from given vectors, through the project's own writers and without Beam."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed.config import Config, IndexConfig, to_json
from mmembed.dataset import Dataset, Stage, describe
from mmembed.index import ENTRIES
from mmembed.indexing import PARTS, Indexing
from mmembed.linear import LinearMap, normalize_rows
from mmembed.project import GROUPS
from mmembed.shards import shard_path, write_bytes, write_json, write_table
from mmembed.splits import HELD_OUT, TRAIN
from mmembed.tables import (
    embeddings_schema,
    features_table,
    metadata_column,
    metadata_kinds,
    records_table,
    vectors_to_arrow,
)
from mmembed.types import Media, Record, Segment, Space

STAGES = ("extract", "fit", "project", "index")


@dataclass(frozen=True)
class Row:
    """A record: its embeddings by modality, (segments, k), made unit vectors on writing."""

    id: str
    vectors: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Of its media, by modality; made from the id where there is none."""


def random_rows(count: int, modalities: Collection[str], dim: int, seed: int = 0) -> list[Row]:
    """Records with one to three segments of each modality, at random places near the record's own direction."""
    random = np.random.default_rng(seed)
    return [
        Row(
            f"r{number:03d}",
            {
                name: (center + random.normal(size=(random.integers(1, 4), dim))).astype(np.float32)
                for name in modalities
            },
        )
        for number, center in enumerate(random.normal(size=(count, dim)))
    ]


def clustered_rows(count: int, dim: int, seed: int = 0, shift: float = 0.0) -> list[Row]:
    """Records whose picture and text are near each other, in 30 clusters, with a gap between the modalities."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(30, dim)) + shift
    gap = random.normal(size=dim)
    found = []
    for number in range(count):
        center = centers[number % 30] + 0.5 * random.normal(size=dim)
        values = {"image": center, "text": center + gap / 2 + 0.4 * random.normal(size=dim)}
        vectors = {name: value[np.newaxis].astype(np.float32) for name, value in values.items()}
        found.append(Row(f"{seed}-{number:05d}", vectors))
    return found


def input_space(modality: str, dim: int) -> Space:
    """The space of the features of a data set made here."""
    return Space(f"test-{modality}", "1", dim)


@patch("os.fsync", lambda descriptor: None)  # nobody needs test data after a power cut, and it takes most of the time
def build(
    root: Path,
    rows: Sequence[Row],
    modalities: Sequence[str] = ("image", "text"),
    dim: int = 6,
    unit: int = 4,
    held_out: Collection[str] = (),
    dtype: str = "float32",
    until: str = "index",
) -> Dataset:
    """A data set whose features are the vectors at double length and whose maps are the identity.

    Args:
        unit: records a file.
        held_out: ids.
        until: the last stage that is done.
    """
    units = [rows[start : start + unit] for start in range(0, len(rows), unit)]
    kinds = {key: kind or "string" for key, kind in metadata_kinds(row.metadata for row in rows).items()}
    dataset = Dataset(root)
    done = STAGES[: STAGES.index(until) + 1]
    if "extract" in done:
        dataset = _extract(dataset, units, modalities, dim, kinds)
    if "fit" in done:
        dataset = _fit(dataset, modalities, dim)
    if "project" in done:
        dataset = _project(dataset, units, modalities, dim, held_out, dtype, kinds)
    if "index" in done:
        dataset = index(dataset, IndexConfig())
    return dataset


def rewrite(dataset: Dataset, path: str, table: pa.Table) -> Dataset:
    """The data set with another table in place of a file, and a manifest that fits it: a fault of the contents."""
    write_table(dataset.folder / path, table, {})
    changed = Dataset(
        dataset.folder,
        dataset.input,
        dataset.config,
        dataset.stages,
        {**dataset.files, path: describe(dataset.folder, path, table.num_rows)},
    )
    changed.save()
    return changed


def _segments(row: Row, modality: str) -> list[Segment]:
    hash = row.hashes.get(modality, f"{modality} of {row.id}")
    return [
        Segment(row.id, number, (float(number), number + 1.0), f"{modality}/{row.id}", hash, 2 * vector)
        for number, vector in enumerate(normalize_rows(row.vectors[modality]))
    ]


def _unit_segments(rows: Sequence[Row], modality: str) -> list[Segment]:
    return [segment for row in rows if modality in row.vectors for segment in _segments(row, modality)]


def _extract(
    dataset: Dataset, units: Sequence[Sequence[Row]], modalities: Sequence[str], dim: int, kinds: Mapping[str, str]
) -> Dataset:
    counts: dict[str, int] = {}
    for number, rows in enumerate(units):
        records = [
            Record(row.id, {name: (Media(path=f"{name}/{row.id}"),) for name in row.vectors}, row.metadata)
            for row in rows
        ]
        write_table(dataset.folder / shard_path("records", number), records_table(records, {}), {})
        counts[shard_path("records", number)] = len(records)
        for name in modalities:
            table = features_table(_unit_segments(rows, name), dim)
            write_table(dataset.folder / shard_path(f"features/{name}", number), table, {})
            counts[shard_path(f"features/{name}", number)] = table.num_rows
    given = {name: sum(name in row.vectors for rows in units for row in rows) for name in modalities}
    summary = {
        "folders": ["features", "records", "errors", "dropped"],
        "spaces": {name: asdict(input_space(name, dim)) for name in modalities},
        "records": sum(map(len, units)),
        "segments": {name: sum(len(_unit_segments(rows, name)) for rows in units) for name in modalities},
        "rows": sum(map(len, units)),
        "media": given,
        "used": given,
        **{what: dict.fromkeys(modalities, 0) for what in ("filtered", "duplicates", "failed")},
        **dict.fromkeys(("repeated", "duplicate_records", "kept_out", "failed_records", "errors", "dropped"), 0),
        "redacted": {},
        "columns": list(modalities),
        "ignored": {},
        "kinds": kinds,
    }
    files = {path: describe(dataset.folder, path, rows) for path, rows in counts.items()}
    return dataset.commit("extract", Stage("e", summary), files, "made by hand", config=to_json(Config()))


def _fit(dataset: Dataset, modalities: Sequence[str], dim: int) -> Dataset:
    output = Space("test-shared", "1", dim)
    for name in modalities:
        identity = LinearMap(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32), input_space(name, dim), output)
        write_bytes(dataset.folder / f"maps/{name}.safetensors", identity.to_bytes())
    write_json(dataset.folder / "maps/fit.json", {"modalities": list(modalities)})
    write_json(dataset.folder / GROUPS, {"column": "", "twins": {}})
    paths = [*(f"maps/{name}.safetensors" for name in modalities), "maps/fit.json", GROUPS]
    summary = {
        "folders": ["maps"],
        "spaces": {name: asdict(input_space(name, dim)) for name in modalities},
        "output": asdict(output),
        "spectrum": None,
    }
    return dataset.commit(
        "fit", Stage("f", summary), {path: describe(dataset.folder, path) for path in paths}, "made by hand"
    )


def _project(
    dataset: Dataset,
    units: Sequence[Sequence[Row]],
    modalities: Sequence[str],
    dim: int,
    held_out: Collection[str],
    dtype: str,
    kinds: Mapping[str, str],
) -> Dataset:
    files = {}
    schema = embeddings_schema(dim, dtype, kinds)
    for number, rows in enumerate(units):
        metadata = {row.id: row.metadata for row in rows}
        for name in modalities:
            segments = _unit_segments(rows, name)
            vectors = np.array([segment.data for segment in segments], np.float32).reshape(-1, dim)
            columns = {
                "id": pa.array([segment.id for segment in segments], pa.string()),
                "segment": pa.array([segment.number for segment in segments], pa.int32()),
                "span": pa.array([segment.span for segment in segments], schema.field("span").type),
                "media": pa.array([segment.media for segment in segments], pa.string()),
                "split": pa.array([HELD_OUT if s.id in held_out else TRAIN for s in segments], pa.string()),
                "embedding": vectors_to_arrow(normalize_rows(vectors), schema.field("embedding").type),
            }
            if kinds:
                columns["metadata"] = metadata_column(
                    [metadata[segment.id] for segment in segments], schema.field("metadata").type, kinds
                )
            path = shard_path(f"embeddings/{name}", number)
            write_table(
                dataset.folder / path, pa.table([columns[key] for key in schema.names], schema=schema), {"unit": number}
            )
            files[path] = describe(dataset.folder, path, len(segments))
    spaces = {name: asdict(Space("test-shared", "1", dim)) for name in modalities}
    summary = {
        "folders": ["embeddings"],
        "spaces": spaces,
        "segments": {name: sum(len(_unit_segments(rows, name)) for rows in units) for name in modalities},
        "dtype": dtype,
        "kinds": kinds,
    }
    return dataset.commit("project", Stage("p", summary), files, "made by hand")


def index(dataset: Dataset, config: IndexConfig) -> Dataset:
    """The data set with another index, as the stage builds it."""
    work, entries = Indexing(dataset, config), {}
    files: dict[str, int | None] = {ENTRIES: None}
    for name in dataset.modalities("project"):
        work.finish(name, [work.encode(block)[1] for block in work.prepare(name)])
        entries[name] = work.entry(name)
        work.publish(name)
        files |= work.files(entries[name], name)
    write_json(dataset.folder / ENTRIES, entries)
    shutil.rmtree(dataset.folder / PARTS)
    for path in sorted((dataset.folder / "index").iterdir()):
        if path.relative_to(dataset.folder).as_posix() not in files:
            path.unlink()
    described = {path: describe(dataset.folder, path, rows) for path, rows in files.items()}
    rows = {name: entry["rows"] for name, entry in entries.items()}
    return dataset.commit("index", Stage("i", {"folders": ["index"], "rows": rows}), described, "made by hand")
