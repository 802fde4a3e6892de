"""Two data sets against each other: do the embeddings of one find more than those of the other, and by chance?"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.evaluate import columns, hubness_of, read_exam
from mmembed.metrics import paired_test, per_query

FIGURES = ("recall@1", "recall@10", "mrr")


def compare(first: Dataset, second: Dataset) -> list[dict[str, Any]]:
    """A row for each ordered pair of modalities and figure: what each has, the difference and how sure it is.

    Queries and candidates are the records that are held out in both, so that both answer the same questions.

    Raises:
        UsageError: no record with two modalities is held out in both.
    """
    exams = [read_exam(dataset) for dataset in (first, second)]
    names = [name for name in exams[0].records if name in exams[1].records]
    common = {name: set(exams[0].records[name].ids) & set(exams[1].records[name].ids) for name in names}
    pairs = [(query, target) for query, target in permutations(names, 2) if common[query] & common[target]]
    if not pairs:
        raise UsageError(
            f"no record with two modalities is held out both in {first.root} and in {second.root}: "
            "build both from the same records, with the same --holdout and --group-column"
        )
    ways = [hubness_of(dataset) for dataset in (first, second)]
    exams = [exam.only(common) for exam in exams]
    rows: list[dict[str, Any]] = []
    for query, target in pairs:
        mine, other = (exam.ask(query, target, way) for exam, way in zip(exams, ways))
        place = {id: row for row, id in enumerate(other.ids)}
        order = [place[id] for id in mine.ids]
        values = per_query(mine.outcome()), per_query(other.outcome())
        for figure in FIGURES:
            a, b = values[0][figure], values[1][figure][order]
            row: dict[str, Any] = {"query": query, "target": target, "figure": figure, "queries": len(a)}
            rows.append({**row, "a": float(a.mean()), "b": float(b.mean()), **paired_test(a, b, mine.media)})
    return rows


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A comparison for the screen: plain text, in columns."""
    cells = [
        [
            row["query"],
            row["target"],
            row["figure"],
            f"{row['queries']:,}",
            f"{row['a']:.3f}",
            f"{row['b']:.3f}",
            f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})",
            f"{row['p']:.4f}",
        ]
        for row in rows
    ]
    header = ["query", "target", "figure", "queries", "A", "B", "B - A (95 %)", "p"]
    note = "records held out in both; p: how often chance alone makes such a difference (paired randomization test)"
    return f"{columns(header, cells)}\n{note}"
