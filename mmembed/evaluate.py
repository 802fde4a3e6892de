"""How well the embeddings find what belongs together, measured on the records that no map was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.errors import DatasetError
from mmembed.linear import normalize_rows
from mmembed.metrics import CUTOFFS, outcome, summary
from mmembed.shards import read_table
from mmembed.splits import HELD_OUT
from mmembed.tables import vectors_from_arrow

VERSION = "2"
"""Of the way figures are computed: a change of it needs another one, so that what was made before is made again."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out records of one modality, in file order.

    Attributes:
        ids: of the records (n).
        hashes: of their media (n).
        vectors: embeddings of their segments, float32 (rows, k), those of one record one after the other.
        starts: the first row of each record, int64 (n,).
    """

    ids: Sequence[str]
    hashes: Sequence[str]
    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]

    def means(self) -> NDArray[np.float32]:
        """The mean embedding of each record, float32 (n, k), of unit length."""
        return normalize_rows(np.add.reduceat(self.vectors, self.starts))  # the length of a sum is divided out anyway


def evaluate(dataset: Dataset) -> dict[str, Any]:
    """Retrieval between every two modalities on held-out records, as JSON values.

    A query is a record's mean embedding in one modality; the candidates are all held-out records that have the other.
    Right are the record itself and those whose medium is the same byte for byte in either of the two modalities: two
    pictures with one caption are equally right answers to it.

    Returns:
        "records": held-out records by modality; "rows": one for each ordered pair of modalities; "note": why there
        are no rows, or "".

    Raises:
        UsageError: there are no embeddings yet.
        DatasetError: a file is damaged, or embeddings and features are not of the same rows.
        SpaceError: two modalities' embeddings are of different spaces.
    """
    spaces = dataset.modalities("project")
    for name, space in spaces.items():
        next(iter(spaces.values())).check(space, f"embeddings/{name}")
    held_out = {modality: _held_out(dataset, modality) for modality in spaces}
    rows = [
        {"query": query, "target": target, **row}
        for query, target in permutations(held_out, 2)
        if (row := _pair(held_out[query], held_out[target]))
    ]
    records = {modality: len(records.ids) for modality, records in held_out.items()}
    return {"records": records, "rows": rows, "note": "" if rows else _note(records)}


def _note(records: dict[str, int]) -> str:
    if not any(records.values()):
        return "no record is held out, so nothing can be measured: set holdout above 0, or give more records"
    counts = ", ".join(f"{count} with {modality}" for modality, count in records.items())
    return f"no held-out record has two modalities ({counts}), so nothing can be measured: give more records"


def _pair(query: HeldOut, target: HeldOut) -> dict[str, float]:
    """One row of the evaluation; empty where no record has both modalities."""
    own = {id: place for place, id in enumerate(query.ids)}
    answers = {id: place for place, id in enumerate(target.ids)}
    asked = [place for id, place in own.items() if id in answers]
    if not asked:
        return {}
    query_codes, target_codes = _codes(query.hashes), _codes(target.hashes)
    # A candidate without the query's modality has the label -1 there, which no query has.
    query_side = [query_codes[own[id]] if id in own else -1 for id in target.ids]
    found = outcome(
        query.means()[asked],
        target.vectors,
        target.starts,
        np.array([(query_codes[place], target_codes[answers[query.ids[place]]]) for place in asked]),
        np.stack([query_side, target_codes], axis=1),
    )
    return summary(found, query_codes[asked])  # one medium asked twice is no second witness


def _codes(values: Sequence[str]) -> NDArray[np.int64]:
    """A number for each value, the same for equal ones."""
    codes: NDArray[np.int64] = np.unique(np.asarray(values), return_inverse=True)[1]
    return codes


def _held_out(dataset: Dataset, modality: str) -> HeldOut:
    ids: list[str] = []
    hashes: list[str] = []
    vectors = [np.empty((0, dataset.modalities("project")[modality].dim), np.float32)]
    for path, table in dataset.tables(f"embeddings/{modality}"):
        rows = _with_hashes(dataset, path, table).filter(pc.equal(table["split"], HELD_OUT))
        ids += rows["id"].to_pylist()
        hashes += rows["content_hash"].to_pylist()
        vectors.append(vectors_from_arrow(rows["embedding"]))
    starts = [row for row, id in enumerate(ids) if row == 0 or id != ids[row - 1]]
    return HeldOut(
        [ids[row] for row in starts],
        [hashes[row] for row in starts],
        np.concatenate(vectors),
        np.array(starts, np.int64),
    )


def _with_hashes(dataset: Dataset, path: str, table: pa.Table) -> pa.Table:
    """A table of embeddings with the content hashes of its features."""
    features_path = path.replace("embeddings/", "features/", 1)
    features = read_table(dataset.read(features_path))
    if not features.select(["id", "segment"]).equals(table.select(["id", "segment"])):
        raise DatasetError(f"{dataset.root / path} and {features_path} are not of the same rows: run `mmembed project`")
    return table.append_column("content_hash", features["content_hash"])


def format_table(result: dict[str, Any]) -> str:
    """An evaluation for the screen: plain text, in columns."""
    if not result["rows"]:
        return str(result["note"])
    header = ["query", "target", "queries", "candidates", *(f"recall@{k}" for k in CUTOFFS), "MRR", "median rank"]
    cells = [header, *(_cells(row) for row in result["rows"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [str.ljust, str.ljust, *[str.rjust] * (len(header) - 2)]  # names left, numbers right
    lines = [
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True))
        for line in cells
    ]
    return "\n".join([*lines, "held-out records; in brackets what a random order gives"])


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["query"],
        row["target"],
        str(row["queries"]),
        str(row["candidates"]),
        *(f"{row[f'recall@{k}']:.1%} ({row[f'chance_recall@{k}']:.1%})" for k in CUTOFFS),
        f"{row['mrr']:.3f} ({row['chance_mrr']:.3f})",
        f"{row['median_rank']:.1f}",
    ]
