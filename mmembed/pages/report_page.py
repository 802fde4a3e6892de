"""The report of a data set as one page: what went in and came out, what was found, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmembed.dataset import Dataset
from mmembed.metrics import CUTOFFS
from mmembed.pages import parts
from mmembed.pages.charts import SHAPES, Axis, Series, chart, interval
from mmembed.pages.curves import fit_section, index_section
from mmembed.pages.plane import Plane, Sample, plane, sample
from mmembed.pages.samples import sample_records
from mmembed.report import FLOW, flow_line, flow_rows, ignored, kinds_of_dropped, kinds_of_failure
from mmembed.splits import HELD_OUT

_EXAMPLES = 3


def report_page(dataset: Dataset, evaluation: Mapping[str, Any]) -> str:
    """The report as HTML. The same data set, input and evaluation give the same page.

    Raises:
        UsageError: a stage up to the embeddings has not been run.
        DatasetError: a file of the data set is damaged. (Media that are gone are no error: the page says so.)
    """
    body = [
        ("Counts", _counts(dataset)),
        ("Retrieval", _retrieval(evaluation)),
        ("The shared space", _space(dataset)),
        ("Sample records", sample_records(dataset)),
        ("How the maps were learned", fit_section(dataset)),
        ("The index", index_section(dataset)),
        ("Errors", _errors(dataset)),
        ("Left out on purpose", _dropped(dataset)),
    ]
    summary = dataset.stage("extract").summary
    title = f"{summary['records']:,} records in one space"
    name = dataset.input.rstrip("/").rsplit("/", 1)[-1]
    spaces = sorted({str(space) for space in dataset.modalities("project").values()})
    head = (
        f'<h1>{parts.escape(title)}</h1>\n<p class="soft">Made by mmembed from {parts.isolated(name)}; embeddings of '
        f"space {parts.label(', '.join(spaces))}.</p>\n{_tiles(dataset, evaluation)}"
    )
    return parts.page(f"mmembed: {title}", f"{head}\n{parts.sections(body)}")


def _tiles(dataset: Dataset, evaluation: Mapping[str, Any]) -> str:
    """The few figures that a reader looks for first."""
    summary = dataset.stage("extract").summary
    segments: Mapping[str, int] = dataset.stage("project").summary["segments"]
    figures = [(f"{summary['records']:,}", "records")]
    figures += [(f"{count:,}", f"{name} segments") for name, count in segments.items()]
    figures.append((f"{summary['failed_records']:,}", "records with errors"))
    if rows := evaluation["rows"]:
        figures.append((f"{np.mean([row['recall@10'] for row in rows]):.1%}", "mean recall@10, held out"))
    tiles = "".join(
        f"<div><b>{parts.escape(value)}</b><span>{parts.escape(what)}</span></div>" for value, what in figures
    )
    return f'<div class="tiles">{tiles}</div>'


def _counts(dataset: Dataset) -> str:
    """What went into each stage and came out of it, by modality."""
    rows = [[parts.escape(cell) for cell in row] for row in flow_rows(dataset)]
    lines = "".join(f"<p>{parts.escape(line)}</p>" for line in [flow_line(dataset), *ignored(dataset)])
    spaces = [[parts.escape(name), parts.label(space)] for name, space in dataset.modalities("extract").items()]
    return (
        lines
        + parts.table(FLOW, rows, numbers=range(1, len(FLOW)))
        + parts.table(["modality", "encoder of its features"], spaces)
    )


def _retrieval(evaluation: Mapping[str, Any]) -> str:
    """The tables of evaluation.json."""
    if not evaluation["rows"]:
        return f"<p>{parts.label(evaluation['note'], 400)}</p>"
    keys = [f"recall@{k}" for k in CUTOFFS]
    header = ["query", "target", "queries", "candidates", *keys, "MRR", "nDCG@10", "median rank"]
    rows = [
        [
            parts.escape(row["query"]),
            parts.escape(row["target"]),
            f"{row['queries']:,}",
            f"{row['candidates']:,}",
            *(_share(row, key) for key in keys),
            _bounded(row, "mrr"),
            _bounded(row, "ndcg@10"),
            f"{row['median_rank']:g}",
        ]
        for row in evaluation["rows"]
    ]
    text = (
        "<p>On records that no map was fitted to: how often one of the right answers is among the first 1, 5 and 10, "
        "with 95 % bootstrap intervals. The thin mark is what a random order would give.</p>"
    )
    table = parts.table(header, rows, range(2, len(header)))
    return text + table + _hubness(evaluation["rows"]) + _by_label(evaluation)


def _share(row: Mapping[str, Any], key: str) -> str:
    """A recall, drawn and written with its interval and what chance gives."""
    value, low, high, chance = row[key], row[f"{key}_low"], row[f"{key}_high"], row[f"chance_{key}"]
    said = f'<span class="small soft">{low:.1%} to {high:.1%}<br>chance {chance:.1%}</span>'
    return f"{value:.1%}{interval(value, low, high, chance)}{said}"


def _bounded(row: Mapping[str, Any], key: str) -> str:
    """A figure with its interval below."""
    bounds = f"{row[key + '_low']:.3f} to {row[key + '_high']:.3f}"
    return f'{row[key]:.3f}<br><span class="small soft">{bounds}</span>'


def _hubness(rows: Sequence[Mapping[str, Any]]) -> str:
    """What else was measured of each direction."""
    header = [
        "query",
        "target",
        "modality gap",
        "hubness",
        "hubness with csls",
        "MRR",
        "MRR with csls",
        "index recall@10",
    ]
    cells = [
        [
            parts.escape(row["query"]),
            parts.escape(row["target"]),
            f"{row['modality_gap']:.3f}",
            *(f"{row['hubness'][way]['skewness']:.2f}" for way in ("none", "csls")),
            *(f"{row['hubness'][way]['mrr']:.3f}" for way in ("none", "csls")),
            f"{row['index_recall@10']:.1%}",
        ]
        for row in rows
    ]
    if not cells:
        return ""
    text = (
        '<p class="small soft">Modality gap: the distance between the means of the two modalities. Hubness: the '
        "skewness of how often each candidate is among the first 10. Index recall: against exact search.</p>"
    )
    return parts.table(header, cells, range(2, len(header))) + text


def _by_label(evaluation: Mapping[str, Any]) -> str:
    """Figures by class, and zero-shot classification."""
    rows = [
        [
            parts.escape(f"{row['query']} to {row['target']}"),
            *(f"{row['by_label'][key]:.3f}" for key in ("map", "ndcg@10", "recall@1", "chance_recall@1")),
        ]
        for row in evaluation["rows"]
        if "by_label" in row
    ]
    found = parts.table(["by class", "MAP", "nDCG@10", "recall@1", "by chance"], rows, range(1, 5)) if rows else ""
    zero = [
        [
            parts.escape(row["modality"]),
            f"{row['classes']:,}",
            *(f"{row[key]:.3f}" for key in ("accuracy", "chance", "macro_f1")),
        ]
        for row in evaluation.get("classification", [])
    ]
    head = ["zero-shot classification", "classes", "accuracy", "by chance", "macro F1"]
    return found + (parts.table(head, zero, range(1, 5)) if zero else "")


def _space(dataset: Dataset) -> str:
    """The map of a sample of the records."""
    points = sample(dataset)
    return _map(points, plane(points.vectors)) if len(points.ids) > 1 else ""


def _map(points: Sample, flat: Plane) -> str:
    series = []
    modalities = list(dict.fromkeys(points.modalities))
    for held in (False, True):
        for number, modality in enumerate(modalities):
            chosen = [
                place
                for place, name in enumerate(points.modalities)
                if name == modality and (points.splits[place] == HELD_OUT) == held
            ]
            series.append(
                Series(
                    (f"{modality}, held out" if held else modality) if chosen else "",
                    [(float(x), float(y)) for x, y in flat.places[chosen]],
                    [_hover(points, place) for place in chosen],
                    colour=number,
                    shape=SHAPES[number % len(SHAPES)],
                    size=3.4 if held else 2.6,
                    opacity=1.0 if held else 0.32,
                )
            )
    names = [f"component {axis + 1}" for axis in range(2)]
    if flat.shares:
        names = [f"{name}, {share:.0%} of the variance" for name, share in zip(names, flat.shares, strict=False)]
    x, y = (
        Axis.over(name, [float(value) for value in flat.places[:, axis]])
        for axis, name in enumerate([*names, "", ""][:2])
    )
    records = len(set(points.ids))
    text = (
        f"{len(points.ids):,} embeddings of {records:,} records, chosen by a hash of their ids, in two dimensions by "
        f"{flat.method}. Strong: held-out records, which no map was fitted to. The pointer on a point shows what it is."
    )
    return chart(text, series, x, y, size=(820, 560))


def _hover(points: Sample, place: int) -> str:
    return f"{points.ids[place]} ({points.modalities[place]}): {points.media[place]}"


def _errors(dataset: Dataset) -> str:
    """What could not be used, by stage and kind, with examples."""
    kinds = kinds_of_failure(dataset)
    if not kinds:
        return "<p>None.</p>"
    rows = [
        [
            f"{count:,}",
            parts.escape(stage),
            parts.escape(error),
            "<br>".join(
                f"{parts.isolated(row['source'])}: {parts.isolated(row['message'], 240)}"
                for row in examples[:_EXAMPLES]
            ),
        ]
        for (stage, error), (count, examples) in kinds.items()
    ]
    return parts.table(["rows", "stage", "error", "the first of them"], rows, [0])


def _dropped(dataset: Dataset) -> str:
    """What filters and --dedup left out."""
    rows = [
        [f"{count:,}", parts.escape(kind), parts.isolated(example, 240)]
        for kind, (count, example) in kinds_of_dropped(dataset).items()
    ]
    return parts.table(["rows", "why", "the first of them"], rows, [0]) if rows else ""
