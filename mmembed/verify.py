"""Does OUT/ hold what its manifest says, and does all of it fit together?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.dataset import Dataset, describe, relative
from mmembed.errors import DatasetError, MmembedError
from mmembed.files import listed
from mmembed.index import (
    ENTRIES,
    Index,
    blocks,
    index_path,
    known_of,
    open_modality,
    rows_path,
    scoring_of,
    vectors_path,
)
from mmembed.linear import LinearMap
from mmembed.shards import TEMPORARY_SUFFIX, read_table
from mmembed.splits import HELD_OUT, TRAIN
from mmembed.tables import DROPPED, ERRORS, RECORDS, embeddings_schema, features_schema, vectors_from_arrow
from mmembed.types import Space

Problems = Iterator[tuple[str, str]]
"""A path relative to OUT/, and what is wrong with it."""

FOLDERS = ("records", "features", "errors", "dropped", "maps", "embeddings", "index")
"""What is mmembed's own below OUT/; anything else there is the user's."""

_NORM_TOLERANCE = {"float32": 1e-3, "float16": 4e-3}  # float16 rounds each value by up to 0.05 %
_SHOWN_ROWS = 3
_ASKED = 500  # rows of a compressed index that are asked for


def verify(dataset: Dataset) -> list[str]:
    """All that is wrong with a data set, as "path: what"; empty when all is well.

    Stages that have not been run are no problem. Every file is read, one at a time; only an index is held meanwhile.
    """
    damaged = {path: what for path in dataset.files if (what := _damage(dataset, path))}
    # What is damaged is named once and not looked into.
    sound = replace(dataset, files={path: file for path, file in dataset.files.items() if path not in damaged})
    checks = (
        _leftovers(dataset),
        _counts(dataset),
        _forgotten(dataset, sound),
        _features(sound),
        _embeddings(sound),
        _maps(sound),
        *(_index(dataset, sound, modality) for modality in _spaces(dataset, "project") if "index" in dataset.stages),
    )
    return [f"{path}: {what}" for path, what in chain(damaged.items(), *checks)]


def _spaces(dataset: Dataset, stage: str) -> dict[str, Space]:
    return dataset.modalities(stage) if stage in dataset.stages else {}


def _damage(dataset: Dataset, path: str) -> str:
    """Why a file can't be used; "" if it can."""
    known = dataset.files[path]
    try:
        if describe(dataset.root, path).sha256 != known.sha256:
            return "changed: its checksum is not the one in dataset.json"
        return _table_damage(dataset, path, dataset.read(path)) if path.endswith(".parquet") else ""
    except (OSError, DatasetError):
        return "missing, or it can't be read"


def _table_damage(dataset: Dataset, path: str, data: bytes) -> str:
    try:
        table = read_table(data)
    except (OSError, pa.ArrowException) as error:
        return f"no Parquet that can be read: {error}"
    schema, rows = _schema(dataset, path), dataset.files[path].rows
    if schema is None:
        return "a file of no stage that dataset.json names"
    if not table.schema.remove_metadata().equals(schema):
        return f"its columns are not those that mmembed writes: {_differences(table.schema, schema)}"
    if table.num_rows != rows:
        return f"{table.num_rows} rows, but {rows} in dataset.json"
    notes = path.startswith(("errors/", "dropped/"))  # which say of a whole record that it has no segment
    holes = [name for name in ("id", "segment", "feature", "embedding") if name in schema.names and _nulls(table[name])]
    return f"nulls in {', '.join(holes)}" if holes and not notes else ""


def _schema(dataset: Dataset, path: str) -> pa.Schema | None:
    """The schema of a table by its path; None where no stage writes such a file."""
    folder, _, rest = path.partition("/")
    modality = rest.partition("/")[0]
    if folder == "features" and modality in (extracted := _spaces(dataset, "extract")):
        return features_schema(extracted[modality].dim)
    if folder == "embeddings" and modality in (projected := _spaces(dataset, "project")):
        summary = dataset.stage("project").summary
        return embeddings_schema(projected[modality].dim, summary["dtype"], summary["kinds"])
    return {"records": RECORDS, "errors": ERRORS, "dropped": DROPPED}.get(folder)


def _differences(found: pa.Schema, expected: pa.Schema) -> str:
    fields = [set(map(str, schema)) for schema in (found, expected)]
    return f"it has {sorted(fields[0] - fields[1])} and lacks {sorted(fields[1] - fields[0])}"


def _nulls(column: pa.ChunkedArray) -> bool:
    nested = pa.types.is_fixed_size_list(column.type)
    return bool(column.null_count or (nested and any(chunk.flatten().null_count for chunk in column.chunks)))


def _leftovers(dataset: Dataset) -> Problems:
    """Files that the manifest does not name: a reader that lists a folder would take them for the data set's."""
    for folder in FOLDERS:
        for path in listed(dataset.root / folder):
            name = relative(dataset.root, path)
            if name not in dataset.files:
                origin = "of a stopped writer" if name.endswith(TEMPORARY_SUFFIX) else "that is not in dataset.json"
                yield name, f"a file {origin}: run `mmembed build` (its stage is not done), or delete it"


def _counts(dataset: Dataset) -> Problems:
    """The stages' own counts against the manifest's rows (which are checked against the files)."""

    def rows(folder: str) -> dict[str, int]:
        return {path.removeprefix(folder): file.rows or 0 for path, file in dataset.below(folder).items()}

    if "extract" in dataset.stages:
        summary = dataset.stage("extract").summary
        said = {name: summary[name] for name in ("errors", "dropped")}
        said["records"] = summary["records"] + summary["repeated"]
        said |= {f"features/{modality}": count for modality, count in summary["segments"].items()}
        for folder, count in said.items():
            if sum(rows(folder).values()) != count:
                yield folder, f"{sum(rows(folder).values())} rows, but the stage extract wrote {count}"
        for modality, count in summary["media"].items():
            outcomes = {what: summary[what][modality] for what in ("used", "filtered", "duplicates", "failed")}
            if sum(outcomes.values()) != count:
                yield "dataset.json", f"{count} media of {modality} went in, but {outcomes} came out"
    for modality in _spaces(dataset, "project"):
        if rows(f"embeddings/{modality}") != rows(f"features/{modality}"):
            yield f"embeddings/{modality}", "not the files and rows of the features: run `mmembed project`"


def _forgotten(dataset: Dataset, sound: Dataset) -> Problems:
    """What is to be forgotten, and is there."""
    if dataset.forgotten.pending:
        yield "dataset.json", "records that are to be forgotten are not removed yet: run `mmembed forget` again"
    for path, table in sound.tables("records") if dataset.forgotten else ():
        yield from _named(
            path, "to be forgotten", np.array([id in dataset.forgotten for id in table["id"].to_pylist()])
        )


def _features(sound: Dataset) -> Problems:
    for modality in _spaces(sound, "extract"):
        for path, table in sound.tables(f"features/{modality}"):
            yield from _named(path, "not finite", ~np.all(np.isfinite(vectors_from_arrow(table["feature"])), axis=1))
            yield from _named(path, "out of order", _disorder(table))


def _embeddings(sound: Dataset) -> Problems:
    for modality in _spaces(sound, "project"):
        tolerance = _NORM_TOLERANCE[sound.stage("project").summary["dtype"]]
        unit = scoring_of(sound).spectrum is None
        for path, table in sound.tables(f"embeddings/{modality}"):
            vectors = vectors_from_arrow(table["embedding"])
            norms = np.sqrt(np.einsum("nk,nk->n", vectors, vectors, dtype=np.float64))
            finite, zero = np.isfinite(norms), norms == 0
            yield from _named(path, "not finite", ~finite)
            yield from _named(path, "all zeros", zero)
            yield from _named(path, "not of length 1", finite & ~zero & unit & (np.abs(norms - 1) > tolerance))
            splits = pc.is_in(table["split"], pa.array([TRAIN, HELD_OUT]))
            yield from _named(path, "of no known split", ~splits.to_numpy())
            yield from _same_rows(sound, path, table)


def _same_rows(sound: Dataset, path: str, table: pa.Table) -> Problems:
    features_path = path.replace("embeddings/", "features/", 1)
    if features_path not in sound.files:
        return  # reported as damaged, or by the counts
    columns = ["id", "segment", "span", "media"]
    if not read_table(sound.read(features_path)).select(columns).equals(table.select(columns)):
        yield path, f"its rows are not those of {features_path}: run `mmembed project`"


def _disorder(table: pa.Table) -> NDArray[np.bool_]:
    """Rows that don't follow: a record's segments lie together, in ascending order, and no id comes twice."""
    ids, segments = table["id"].to_pylist(), table["segment"].to_pylist()
    seen: set[str] = set()
    disorder = np.zeros(len(ids), bool)
    for row, id in enumerate(ids):
        follows = row > 0 and id == ids[row - 1]
        disorder[row] = segments[row] <= segments[row - 1] if follows else id in seen
        seen.add(id)
    return disorder


def _named(path: str, what: str, rows: NDArray[np.bool_]) -> Problems:
    """One problem for all the rows of a file that have it."""
    found = [str(row) for row in np.flatnonzero(rows)]
    if found:
        more = f" and {len(found) - _SHOWN_ROWS} more" if len(found) > _SHOWN_ROWS else ""
        yield path, f"{what}: row {', '.join(found[:_SHOWN_ROWS])}{more}"


def _maps(sound: Dataset) -> Problems:
    """Maps against the spaces of what they take and give."""
    if "fit" not in sound.stages:
        return
    output, features = Space(**sound.stage("fit").summary["output"]), _spaces(sound, "extract")
    for modality in sound.modalities("fit"):
        path = f"maps/{modality}.safetensors"
        if path not in sound.files:
            continue
        try:
            linear_map = LinearMap.from_bytes(sound.read(path))
        except DatasetError as error:
            yield path, str(error)
            continue
        if modality in features and linear_map.input != features[modality]:
            yield path, f"takes {linear_map.input}, but the features are {features[modality]}: run `mmembed fit`"
        if linear_map.output != output:
            yield path, f"gives {linear_map.output}, but dataset.json says {output}: run `mmembed fit`"
    for modality, space in _spaces(sound, "project").items():
        if space != output:
            yield f"embeddings/{modality}", f"of space {space}, but the maps give {output}: run `mmembed project`"


def _index(dataset: Dataset, sound: Dataset, modality: str) -> Problems:
    """An index against the embeddings, vector by vector, and what its rows say."""
    path = index_path(modality)
    if {path, rows_path(modality), vectors_path(modality), ENTRIES} & (dataset.files.keys() - sound.files.keys()):
        return  # reported as damaged
    try:
        index = open_modality(dataset, modality)
    except MmembedError as error:
        yield path, str(error)
        return
    if index.entry["hubness"] != "none" and len(sound.files) < len(dataset.files):
        return  # its rows depend on files that are reported as damaged
    files = dataset.below(f"embeddings/{modality}")
    starts = dict(zip(files, accumulate((file.rows or 0 for file in files.values()), initial=0)))
    kinds = dataset.stage("project").summary["kinds"]
    for name, table, rows in blocks(sound, modality, index.columns):
        place = starts[name]
        stored = index.vectors_of(np.arange(place, place + len(rows))) if len(rows) else rows
        holder = path if index.vectors is None else vectors_path(modality)
        yield from _named(holder, f"other vectors than {name}", (stored != rows).any(axis=1))
        said, known = index.rows.slice(place, len(rows)), known_of(table, kinds)
        # In the metadata NaN equals nothing; ANSWER says the same, as text.
        names = [name for name in known.column_names if name != "metadata"]
        if said.schema != known.schema or not said.select(names).equals(known.select(names)):
            yield rows_path(modality), f"other rows than {name}: run `mmembed index`"
    if index.vectors is not None and len(index):
        yield from _lost_rows(index, path)


def _lost_rows(index: Index, path: str) -> Problems:
    """An index that holds rows compressed, asked for some of them, evenly spread: most must find themselves."""
    chosen = np.unique(np.linspace(0, len(index) - 1, _ASKED).astype(np.intp))
    rows = index.vectors_of(chosen)
    scores, _ = index.search(rows, 1)
    own = np.einsum("ij,ij->i", rows, rows)
    found = float(np.mean(scores[:, 0] >= own - 1e-4 * np.maximum(1, np.abs(own))))
    if found < 0.5:
        yield path, f"only {found:.0%} of its rows find themselves: run `mmembed index`"
