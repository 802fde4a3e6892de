"""How well the embeddings find what belongs together, measured on the records that no map was fitted to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.config import HUBNESS, Config, Parts, from_json
from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, UsageError
from mmembed.hubness import bank_of
from mmembed.index import blocks, candidate_rows, entry_of, open_modality, query_rows, scoring_of, term_columns
from mmembed.linear import Scoring
from mmembed.metrics import (
    CUTOFFS,
    Outcome,
    classification,
    modality_gap,
    nearest,
    outcome,
    per_query,
    skewness_of_hits,
    summary,
)
from mmembed.modalities.text import Text
from mmembed.search import Query, Searcher
from mmembed.shards import read_table
from mmembed.splits import HELD_OUT
from mmembed.tables import vectors_from_arrow

TEXT = "text"
"""The modality that names of classes are of."""

VERSION = "4"
"""Of the way figures are computed: a change of it needs another one, so that what was made before is made again."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out records of one modality, in file order.

    Attributes:
        ids: of the records (n).
        hashes: of their media (n).
        labels: of their classes (n), "" for none.
        vectors: embeddings of their segments, float32 (rows, k), those of one record one after the other.
        starts: the first row of each record, int64 (n,).
    """

    ids: Sequence[str]
    hashes: Sequence[str]
    labels: Sequence[str]
    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]

    def means(self, scoring: Scoring) -> NDArray[np.float32]:
        """One embedding for each record, float32 (n, k)."""
        return scoring.means(self.vectors, self.starts)

    def only(self, ids: Collection[str]) -> HeldOut:
        """Those of some records, in the same order."""
        kept = [place for place, id in enumerate(self.ids) if id in ids]
        sizes = np.diff(self.starts, append=len(self.vectors))
        mask = np.repeat(np.isin(np.arange(len(self.ids)), kept), sizes)
        starts = np.cumsum([0, *sizes[kept]])[:-1]
        names, hashes, labels = ([of[place] for place in kept] for of in (self.ids, self.hashes, self.labels))
        return HeldOut(names, hashes, labels, self.vectors[mask], starts.astype(np.int64))


@dataclass(frozen=True, eq=False)
class Asked:
    """One direction of retrieval: the queries and what is right for each.

    Attributes:
        ids: of the queries' records (q).
        media: a number for each query's medium, int64 (q,): queries of one medium are no two witnesses.
        queries: rows as of the index, float32 (q, k + terms).
        candidates: rows as of the index, float32 (rows, k + terms).
        starts: the first row of each candidate record, int64 (n,).
        query_labels: int64 (q, m).
        candidate_labels: int64 (n, m).
    """

    ids: Sequence[str]
    media: NDArray[np.int64]
    queries: NDArray[np.float32]
    candidates: NDArray[np.float32]
    starts: NDArray[np.int64]
    query_labels: NDArray[np.int64]
    candidate_labels: NDArray[np.int64]

    def outcome(self) -> Outcome:
        """How well each query finds its right answers."""
        return outcome(self.queries, self.candidates, self.starts, self.query_labels, self.candidate_labels)

    def hubness(self) -> float:
        """Skewness of how often each candidate record is among the first 10."""
        hits = nearest(self.queries, self.candidates, self.starts, 10)
        return skewness_of_hits(hits, len(self.starts))


def evaluate(dataset: Dataset, label_column: str = "") -> dict[str, Any]:
    """Retrieval between every two modalities on held-out records, as JSON values.

    A query is a record's mean embedding in one modality; the candidates are all held-out records that have the other.
    Right are the record itself and those whose medium is the same byte for byte in either of the two modalities: two
    pictures with one caption are equally right answers to it.

    Args:
        label_column: a key of the records whose value is a class. Then figures come by class too: right is what has the
            query's class; and zero-shot classification, where each record's class is that whose name, embedded as a
            text, it is nearest to.

    Returns:
        "records": held-out records by modality; "rows": one for each ordered pair of modalities; "note": why there
        are no rows, or ""; "classification": one for each modality.

    Raises:
        UsageError: there are no embeddings yet, or no record has the label column.
        DatasetError: a file is damaged, or embeddings and features are not of the same rows.
        SpaceError: two modalities' embeddings are of different spaces.
    """
    exam, hubness = read_exam(dataset, label_column), hubness_of(dataset)
    found = {}
    for target in exam.records:
        asked = {query: {way: exam.ask(query, target, way) for way in HUBNESS} for query in exam.queries_of(target)}
        for query, ways in asked.items():
            found[query, target] = {"query": query, "target": target, **_row(exam, query, target, ways, hubness)}
        if "index" in dataset.stages:
            as_indexed = {query: ways[hubness] for query, ways in asked.items()}
            for query, recall in _index_recalls(dataset, as_indexed, target).items():
                found[query, target]["index_recall@10"] = recall
    rows = [found[pair] for pair in permutations(exam.records, 2) if pair in found]
    records = {modality: len(records.ids) for modality, records in exam.records.items()}
    result = {"records": records, "rows": rows, "note": "" if rows else _note(records)}
    return result | {"classification": _classified(dataset, exam, hubness)} if label_column else result


def check_label_column(dataset: Dataset, key: str) -> None:
    """Raise UsageError for a key that no record has."""
    known = dataset.stage("extract").summary["kinds"]
    if key and key not in known:
        raise UsageError(f"no record has the label column {key!r}; known are {', '.join(known) or 'none'}")


@dataclass(frozen=True, eq=False)
class Exam:
    """What is asked of a data set: its held-out records, and what their scores need.

    Attributes:
        records: by modality.
        banks: embeddings of training queries by modality, for hubness = "csls".
    """

    scoring: Scoring
    records: Mapping[str, HeldOut]
    banks: Mapping[str, NDArray[np.float32]]

    def only(self, ids: Mapping[str, Collection[str]]) -> Exam:
        """With some of the records, by the modalities that are named."""
        return replace(self, records={name: self.records[name].only(chosen) for name, chosen in ids.items()})

    def queries_of(self, target: str) -> list[str]:
        """The other modalities of which some record has the target too."""
        own = set(self.records[target].ids)
        return [name for name, records in self.records.items() if name != target and own & set(records.ids)]

    def columns(self, hubness: str) -> list[str]:
        """See `mmembed.index.term_columns`."""
        return term_columns(self.scoring, hubness, list(self.records))

    def ask(self, query: str, target: str, hubness: str) -> Asked:
        """One direction of retrieval."""
        queries, targets = self.records[query], self.records[target]
        own = {id: place for place, id in enumerate(queries.ids)}
        answers = {id: place for place, id in enumerate(targets.ids)}
        asked = [place for id, place in own.items() if id in answers]
        query_codes, target_codes = _codes(queries.hashes), _codes(targets.hashes)
        # A candidate without the query's modality has the label -1 there, which no query has.
        query_side = [query_codes[own[id]] if id in own else -1 for id in targets.ids]
        columns = self.columns(hubness)
        return Asked(
            [queries.ids[place] for place in asked],
            query_codes[asked],
            query_rows(queries.means(self.scoring)[asked], {query: 1.0}, columns),
            candidate_rows(targets.vectors, target, self.scoring, columns, self.banks),
            targets.starts,
            np.array([(query_codes[place], target_codes[answers[queries.ids[place]]]) for place in asked]),
            np.stack([query_side, target_codes], axis=1),
        )


def read_exam(dataset: Dataset, label_column: str = "") -> Exam:
    """The held-out records of a data set.

    Raises: as of `evaluate`.
    """
    spaces = dataset.modalities("project")
    for name, space in spaces.items():
        next(iter(spaces.values())).check(space, f"embeddings/{name}")
    check_label_column(dataset, label_column)
    records = {modality: _held_out(dataset, modality, label_column) for modality in spaces}
    return Exam(scoring_of(dataset), records, {name: bank_of(dataset, name) for name in records})


def hubness_of(dataset: Dataset) -> str:
    """How the index treats hubs; without an index, how one would by the configuration."""
    if "index" in dataset.stages:
        return str(entry_of(dataset, next(iter(dataset.modalities("project"))))["hubness"])
    return str(dataset.config.get("index", {}).get("hubness", "none"))


def _row(exam: Exam, query: str, target: str, asked: Mapping[str, Asked], hubness: str) -> dict[str, Any]:
    """One row of the evaluation; `asked` by the way hubs are treated."""
    found = {way: of.outcome() for way, of in asked.items()}
    row: dict[str, Any] = dict(summary(found[hubness], asked[hubness].media))
    queries, targets = exam.records[query], exam.records[target]
    row["modality_gap"] = modality_gap(queries.means(exam.scoring), targets.means(exam.scoring))
    row["hubness"] = {
        way: {
            "skewness": asked[way].hubness(),
            **{name: float(per_query(found[way])[name].mean()) for name in ("recall@10", "mrr")},
        }
        for way in HUBNESS
    }
    return row | _by_label(asked[hubness], queries, targets)


def _by_label(asked: Asked, queries: HeldOut, targets: HeldOut) -> dict[str, Any]:
    """Figures where all records of the query's class are right; nothing without classes."""
    names = [*queries.labels, *targets.labels]
    if not any(names):
        return {}
    codes = _codes(names)
    class_of = dict(zip(queries.ids, codes))
    query_codes = np.array([class_of[id] for id in asked.ids])
    labels_of = dict(zip(queries.ids, queries.labels))
    labelled = np.array([bool(labels_of[id]) for id in asked.ids], bool)
    if not labelled.any():
        return {}
    target_codes = np.where([bool(label) for label in targets.labels], codes[len(queries.ids) :], -1)
    labels = replace(
        asked,
        queries=asked.queries[labelled],
        query_labels=query_codes[labelled, np.newaxis],
        candidate_labels=target_codes[:, np.newaxis],
    )
    figures = summary(labels.outcome(), asked.media[labelled])
    return {"by_label": figures}


def _index_recalls(dataset: Dataset, asked: Mapping[str, Asked], target: str) -> dict[str, float]:
    """By modality of queries, the share of the exact 10 best rows of embeddings/<target> that the index gives, for at
    most 1,000 queries each. Rows that tie with the last of them count too."""
    if not asked:
        return {}
    chosen = {query: _spread(of.queries, 1000) for query, of in asked.items()}
    queries = np.concatenate(list(chosen.values()))
    index = open_modality(dataset, target)
    k = min(10, len(index))
    found, _ = index.search(queries, k)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for _, _, rows in blocks(dataset, target, index.columns):
        best = -np.sort(-np.concatenate([best, queries @ rows.T], axis=1), axis=1)[:, :k]
    tolerance = 1e-5 * np.maximum(1, np.abs(best[:, -1:]))
    good = (found >= best[:, -1:] - tolerance).mean(axis=1)
    parts = np.split(good, np.cumsum([len(rows) for rows in chosen.values()])[:-1])
    return {query: float(part.mean()) for query, part in zip(chosen, parts, strict=True)}


def _spread(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """At most so many rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.intp)]


def _classified(dataset: Dataset, exam: Exam, hubness: str) -> list[dict[str, Any]]:
    """Zero-shot classification of each modality's records by the names of the classes as texts."""
    names = sorted({label for records in exam.records.values() for label in records.labels if label})
    if len(names) < 2 or TEXT not in dataset.modalities("fit"):
        return []
    config = from_json(Config(), dict(dataset.config))
    cut, encoder = Parts(config.extract)[TEXT]
    assert isinstance(cut, Text)
    plain = replace(cut, min_words=0, max_words=0, languages=())  # a name is no text to be filtered
    searcher = Searcher(dataset, {TEXT: (plain, encoder)}, config)
    vectors = np.stack([searcher.embed(Query.of(text=name)).vector for name in names])
    columns = exam.columns(hubness)
    candidates = candidate_rows(vectors, TEXT, exam.scoring, columns, exam.banks)
    rows = []
    for modality, records in exam.records.items():
        labelled = [place for place, label in enumerate(records.labels) if label]
        if not labelled:
            continue
        queries = query_rows(records.means(exam.scoring)[labelled], {modality: 1.0}, columns)
        predicted = (queries @ candidates.T).argmax(axis=1)
        true = np.searchsorted(names, [records.labels[place] for place in labelled])
        figures = classification(predicted, true)
        rows.append({"modality": modality, "records": len(labelled), "chance": 1 / len(names), **figures})
    return rows


def _note(records: dict[str, int]) -> str:
    if not any(records.values()):
        return "no record is held out, so nothing can be measured: set holdout above 0, or give more records"
    counts = ", ".join(f"{count} with {modality}" for modality, count in records.items())
    return f"no held-out record has two modalities ({counts}), so nothing can be measured: give more records"


def _codes(values: Sequence[str]) -> NDArray[np.int64]:
    """A number for each value, the same for equal ones."""
    codes: NDArray[np.int64] = np.unique(np.asarray(values), return_inverse=True)[1]
    return codes


def _held_out(dataset: Dataset, modality: str, label_column: str) -> HeldOut:
    ids: list[str] = []
    hashes: list[str] = []
    labels: list[str] = []
    vectors = [np.empty((0, dataset.modalities("project")[modality].dim), np.float32)]
    for path, table in dataset.tables(f"embeddings/{modality}"):
        rows = _with_hashes(dataset, path, table).filter(pc.equal(table["split"], HELD_OUT))
        ids += rows["id"].to_pylist()
        hashes += rows["content_hash"].to_pylist()
        vectors.append(vectors_from_arrow(rows["embedding"]))
        values = pc.struct_field(rows["metadata"], label_column).to_pylist() if label_column else [None] * len(rows)
        labels += ["" if value is None else str(value) for value in values]
    starts = [row for row, id in enumerate(ids) if row == 0 or id != ids[row - 1]]
    return HeldOut(
        [ids[row] for row in starts],
        [hashes[row] for row in starts],
        [labels[row] for row in starts],
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
    header = [
        "query",
        "target",
        "queries",
        "candidates",
        *(f"recall@{k}" for k in CUTOFFS),
        "MRR (95 %)",
        "median rank",
    ]
    lines = [
        columns(header, [_cells(row) for row in result["rows"]]),
        "held-out records; in brackets what a random order gives, of MRR the 95 % interval",
        *_remarks(result),
    ]
    return "\n".join(lines)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of plain text in columns, words left and numbers right."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [not any(digit.isdigit() for digit in cell) for cell in rows[0]]
    aligned = [str.ljust if word else str.rjust for word in words]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["query"],
        row["target"],
        str(row["queries"]),
        str(row["candidates"]),
        *(f"{row[f'recall@{k}']:.1%} ({row[f'chance_recall@{k}']:.1%})" for k in CUTOFFS),
        f"{row['mrr']:.3f} ({row['mrr_low']:.3f}-{row['mrr_high']:.3f})",
        f"{row['median_rank']:.1f}",
    ]


def _remarks(result: dict[str, Any]) -> list[str]:
    """What else was measured, in lines."""
    mean = {
        way: {key: float(np.mean([row["hubness"][way][key] for row in result["rows"]])) for key in ("skewness", "mrr")}
        for way in HUBNESS
    }
    lines = [
        f"hubness (skewness of 10-occurrence): {mean['none']['skewness']:.2f}, with --hubness csls "
        f"{mean['csls']['skewness']:.2f}; mean MRR {mean['none']['mrr']:.3f} and {mean['csls']['mrr']:.3f}"
    ]
    lines += [
        f"{row['query']} to {row['target']} by label: MAP {row['by_label']['map']:.3f}, "
        f"nDCG@10 {row['by_label']['ndcg@10']:.3f}, recall@1 {row['by_label']['recall@1']:.3f} "
        f"({row['by_label']['chance_recall@1']:.3f} by chance)"
        for row in result["rows"]
        if "by_label" in row
    ]
    lines += [
        f"zero-shot classification of {row['modality']}, {row['classes']} classes: accuracy {row['accuracy']:.3f} "
        f"({row['chance']:.3f} by chance), macro F1 {row['macro_f1']:.3f}"
        for row in result.get("classification", [])
    ]
    return lines
