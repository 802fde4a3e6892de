"""The curves of a data set's report: of the fit, and of each index with all that was measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmembed.dataset import Dataset
from mmembed.index import ENTRIES
from mmembed.pages import parts
from mmembed.pages.charts import SHAPES, Axis, Guide, Series, chart
from mmembed.report import decisions
from mmembed.tune import megabytes


def fit_section(dataset: Dataset) -> str:
    """What the fit decided, and its curves."""
    fit = json.loads(dataset.read("maps/fit.json"))
    lines = "".join(f"<p>{parts.label(line, 300)}</p>" for line in decisions(fit))
    figures = []
    if correlations := fit.get("correlations"):
        points = [(float(number), float(value)) for number, value in enumerate(correlations, 1)]
        figures.append(
            _curve("Held-out correlation of each direction of the shared space", points, "direction", "correlation")
        )
    refinement = fit.get("refinement", {})
    for key, value, title, name in (
        ("validation", "mrr", "Refinement: mean reciprocal rank on validation slices", "MRR"),
        ("training", "loss", "Refinement: loss of training", "loss"),
    ):
        if len(refinement.get(key, [])) > 1:
            points = [(float(point["step"]), float(point[value])) for point in refinement[key]]
            figures.append(_curve(title, points, "step", name))
    trials = [trial for trial in fit.get("trials", []) if "components" in trial]
    if len(trials) > 1:
        points = [(float(trial["components"]), float(trial["mrr"])) for trial in trials]
        figures.append(_curve("Mean reciprocal rank by principal components", points, "components", "MRR"))
    pairs = [[parts.escape(pair.replace("+", " and ")), f"{count:,}"] for pair, count in fit.get("pairs", {}).items()]
    table = parts.table(["learned from pairs of", "records"], pairs, [1]) if pairs else ""
    return lines + table + (f'<div class="charts">{"".join(figures)}</div>' if figures else "")


def _curve(title: str, points: Sequence[tuple[float, float]], x: str, y: str) -> str:
    """One line, with a tooltip at each of its points; what is not finite is left out."""
    points = [point for point in points if np.isfinite(point).all()]
    titles = [f"{x} {point[0]:g}: {y} {point[1]:.4g}" for point in points]
    size = 3.0 if len(points) <= 40 else 1.8
    across, up = ([point[axis] for point in points] for axis in range(2))
    return chart(title, [Series("", points, titles, line=True, size=size)], Axis.over(x, across), Axis.over(y, up))


def index_section(dataset: Dataset) -> str:
    """The operating curve of each index: all points that were measured."""
    if ENTRIES not in dataset.files:
        return ""
    entries: Mapping[str, Mapping[str, Any]] = json.loads(dataset.read(ENTRIES))
    rows = [
        [
            parts.escape(name),
            parts.escape(entry["kind"]),
            f"{entry['rows']:,}",
            megabytes(entry["bytes"]),
            f"{entry['milliseconds']:.3g} ms",
            ", ".join(f"{parts.escape(query)} {share:.1%}" for query, share in entry["recall"].items())
            or ("exact" if entry["kind"] == "Flat" else "-"),
            parts.label(", ".join(f"{key} {value}" for key, value in entry["search"].items()) or "-"),
        ]
        for name, entry in entries.items()
    ]
    header = [
        "index of",
        "kind",
        "rows",
        "size",
        "a query",
        "recall@10 against exact search, by queries",
        "searched with",
    ]
    curves = {name: curve for name, entry in entries.items() if (curve := _operating(name, entry))}
    figures = "".join(f"<h3>{parts.escape(name)}</h3>{curve}" for name, curve in curves.items())
    note = (
        '<p class="small soft">A point is a kind of index with its parameters; the ring is around what was chosen. '
        "Recall@10 is against exact search, of the modality of queries for which it is lowest.</p>"
    )
    return parts.table(header, rows, [2, 3, 4]) + (note + figures if figures else "")


def _operating(name: str, entry: Mapping[str, Any]) -> str:
    """Recall against milliseconds, and against bytes; "" where nothing was measured: of an exact index alone."""
    asked, points = entry["asked"], [point for point in entry["curve"] if point["recall"]]
    if not points:
        return ""
    lowest = [min(point["recall"].values()) for point in points]
    level = [Guide(asked["recall"], f"asked: {asked['recall']:.1%}")]
    y = Axis.over("recall@10, lowest", [*lowest, asked["recall"]], percent=True)
    figures = []
    for values, unit, limit, axis, title in (
        (
            [_time(point) for point in points],
            "ms",
            asked["milliseconds"],
            "ms a query, one thread",
            "the time of a query",
        ),
        (
            [point["bytes"] / 1e6 for point in points],
            "MB",
            asked["memory"] / 1e6,
            "MB",
            "the size of the index",
        ),
    ):
        guides = [Guide(limit, f"asked: {limit:g} {unit}", vertical=True)] if limit else []
        x = Axis.over(axis, [*values, *(guide.value for guide in guides)], log=True)
        said = f"{name}: recall against {title}, all points that were measured"
        figures.append(chart(said, _by_kind(points, values, lowest, unit), x, y, [*level, *guides]))
    return f'<div class="charts">{"".join(figures)}</div>'


def _time(point: Mapping[str, Any]) -> float:
    """Milliseconds of a query: measured, or else what the model of the tuning expects."""
    return float(point["milliseconds"] or point["expected_milliseconds"])


def _by_kind(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], recalls: Sequence[float], unit: str
) -> list[Series]:
    """A series for each family of indexes; weak, what was measured on a sample of the rows when a kind was chosen."""
    families = [_family(str(point["kind"])) for point in points]
    most = max((point["rows"] for point in points), default=0)
    series = []
    for number, family in enumerate(sorted(set(families))):
        for whole in (False, True):
            rows = [
                row for row, point in enumerate(points) if families[row] == family and (point["rows"] == most) == whole
            ]
            series.append(
                Series(
                    (family if whole else f"{family}, on a sample of the rows") if rows else "",
                    [(values[row], recalls[row]) for row in rows],
                    [_described(points[row], values[row], unit) for row in rows],
                    colour=number,
                    shape=SHAPES[number % len(SHAPES)],
                    opacity=1.0 if whole else 0.4,
                    ringed=frozenset(place for place, row in enumerate(rows) if points[row].get("chosen")),
                )
            )
    return series


def _family(kind: str) -> str:
    """Of an index factory's word, without its numbers: IVF2048,PQ128x4fs is of IVF + PQ."""
    names = ["".join(sign for sign in word.partition("x")[0] if sign.isalpha()) for word in kind.split(",")]
    return " + ".join(name for name in names if name) or kind


def _described(point: Mapping[str, Any], value: float, unit: str) -> str:
    recalls = ", ".join(f"{query} {share:.1%}" for query, share in point["recall"].items())
    search = ", ".join(f"{key} {number}" for key, number in point["search"].items())
    expected = " expected" if unit == "ms" and not point["milliseconds"] else ""
    return f"{point['kind']}{f' ({search})' if search else ''}: {recalls}; {value:.4g} {unit}{expected}"
