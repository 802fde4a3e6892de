"""The report of a data set as one page: what went in and came out, what was found, and what it looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import mmembed.config
from mmembed.dataset import Dataset
from mmembed.errors import MmembedError, ReadError
from mmembed.files import is_web
from mmembed.index import ENTRIES
from mmembed.inputs import open_source
from mmembed.metrics import CUTOFFS
from mmembed.pages import parts
from mmembed.pages.charts import Axis, Guide, Series, chart, interval
from mmembed.pages.plane import Plane, Sample, plane, sample
from mmembed.pages.previews import Piece, show
from mmembed.report import FLOW, decisions, flow_line, flow_rows, ignored, kinds_of_dropped, kinds_of_failure
from mmembed.shards import read_table, shard_path
from mmembed.splits import HELD_OUT, number_of
from mmembed.types import Media

SAMPLES = 12
"""Records that are shown, at most."""

_SAMPLED_UNITS = 4  # of which records are shown: each is read from the input again
_PIECES = {"image": 6, "text": 5, "audio": 2}  # segments of a record that are shown, at most
_METADATA = 6
_EXAMPLES = 3
_SHAPES = ("circle", "square", "triangle", "diamond")


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
        ("Sample records", _samples(dataset)),
        ("How the maps were learned", _fit(dataset)),
        ("The index", _index(dataset)),
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
    """A figure with its interval below; a dash where an earlier version did not measure it."""
    if key not in row:
        return "-"
    bounds = f"{row[key + '_low']:.3f} to {row[key + '_high']:.3f}" if key + "_low" in row else ""
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
            f"{row['index_recall@10']:.1%}" if "index_recall@10" in row else "-",
        ]
        for row in rows
        if {"modality_gap", "hubness"} <= row.keys()
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
                    shape=_SHAPES[number % len(_SHAPES)],
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


@dataclass(frozen=True)
class _Shown:
    """A record that is shown.

    Attributes:
        pieces: by modality, its segments in order.
        metadata: what else the input said of it.
    """

    id: str
    source: str
    split: str
    pieces: Mapping[str, Sequence[Piece]]
    metadata: Mapping[str, Any]


def _samples(dataset: Dataset) -> str:
    """Records with their segments. Their media are read from the input again."""
    chosen = dict(_chosen(dataset))
    found, reason = _media_of(dataset, {number: {each.id for each in shown} for number, shown in chosen.items()})
    cards, lost = [], 0
    for each in (each for shown in chosen.values() for each in shown):
        body = "".join(_modality(each, modality, found, reason) for modality in each.pieces)
        lost += body.count(parts.GONE)
        body += parts.facts(each.metadata, _METADATA)
        cards.append(parts.card(parts.isolated(each.id, 60), "held out" if each.split == HELD_OUT else "", body))
    if not cards:
        return ""
    note = f"{lost:,} media of these records can't be read any more: was the input moved?"
    return f'{parts.gone(note) if lost else ""}<div class="cards">{"".join(cards)}</div>'


def _modality(shown: _Shown, modality: str, found: Mapping[tuple[str, str], Media], reason: str) -> str:
    """The segments of one modality of a record, of many the first."""

    def find(name: str) -> Media:
        media = found.get((shown.id, name))
        if media is None:
            raise ReadError(f"{name}: {reason or 'it is no longer in the input'}")
        if is_web(media.location):
            raise ReadError(f"{name}: not fetched again for a report")
        return media

    pieces, most = shown.pieces[modality], _PIECES.get(modality, 1)
    more = f'<p class="small soft">{len(pieces) - most:,} more {modality} segments</p>' if len(pieces) > most else ""
    return show(modality, pieces[:most], find) + more


def _chosen(dataset: Dataset) -> Iterator[tuple[int, list[_Shown]]]:
    """The numbers of a few units, evenly spread, and of each some of its records: those with the most modalities, and
    of these the ones of the smallest hashes."""
    units = len(dataset.below("records"))
    numbers = np.unique(np.linspace(0, max(units - 1, 0), min(units, _SAMPLED_UNITS)).astype(int)).tolist()
    for number in numbers:
        records = _records_of(dataset, number)
        rank = sorted(records, key=lambda shown: (-len(shown.pieces), number_of(shown.id, "page")))
        # One of the split that is rarer too: what was found on it is what the figures are of.
        first = rank[: SAMPLES // len(numbers)]
        held = [shown for shown in rank[len(first) :] if shown.split == HELD_OUT]
        if held and all(shown.split != HELD_OUT for shown in first):
            first[-1] = held[0]
        yield number, first


def _records_of(dataset: Dataset, number: int) -> list[_Shown]:
    """The records of a unit that have an embedding."""
    pieces: dict[str, dict[str, list[Piece]]] = {}
    splits: dict[str, str] = {}
    for modality in dataset.modalities("project"):
        table = read_table(dataset.read(shard_path(f"embeddings/{modality}", number)), ["id", "span", "media", "split"])
        for row in table.to_pylist():
            piece = Piece(modality, tuple(row["span"]), row["media"])
            pieces.setdefault(row["id"], {}).setdefault(modality, []).append(piece)
            splits[row["id"]] = row["split"]
    table = read_table(dataset.read(shard_path("records", number)), ["id", "source", "record"])
    columns = dataset.stage("extract").summary["columns"]
    found = []
    for row in table.to_pylist():
        if row["id"] in pieces:
            record = json.loads(row["record"])
            metadata = {key: value for key, value in record.items() if key not in columns and value is not None}
            found.append(_Shown(row["id"], row["source"], splits[row["id"]], pieces[row["id"]], metadata))
    return found


def _media_of(dataset: Dataset, ids: Mapping[int, set[str]]) -> tuple[dict[tuple[str, str], Media], str]:
    """The media of some records of some units by id and name, as the input has them now; or none, and why. One unit's
    records are in memory."""
    found: dict[tuple[str, str], Media] = {}
    try:
        config = mmembed.config.from_json(mmembed.config.Config(), dict(dataset.config)).extract
        source = open_source(dataset.input, config.choice)
        for unit in source.units(config.unit_records):
            for record in source.read(unit)[0] if unit.number in ids else []:
                if record.id in ids[unit.number]:
                    found |= {(record.id, media.name): media for several in record.media.values() for media in several}
    except (MmembedError, OSError):  # whose message has a path of this machine
        return found, "the input can't be read any more"
    return found, ""


def _fit(dataset: Dataset) -> str:
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


def _index(dataset: Dataset) -> str:
    """The operating curve of each index: all points that were measured."""
    if ENTRIES not in dataset.files:
        return ""
    entries: Mapping[str, Mapping[str, Any]] = json.loads(dataset.read(ENTRIES))
    rows = [
        [
            parts.escape(name),
            parts.escape(entry.get("kind", "")),
            f"{entry.get('rows', 0):,}",
            f"{entry['bytes'] / 1e6:,.1f} MB" if "bytes" in entry else "-",
            f"{entry['milliseconds']:.3g} ms" if entry.get("milliseconds") is not None else "-",
            ", ".join(f"{parts.escape(query)} {share:.1%}" for query, share in entry.get("recall", {}).items())
            or ("exact" if entry.get("kind") == "Flat" else "-"),
            parts.label(", ".join(f"{key} {value}" for key, value in entry.get("search", {}).items()) or "-"),
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
    figures = "".join(
        f"<h3>{parts.escape(name)}</h3>{_operating(name, entry)}"
        for name, entry in entries.items()
        if entry.get("curve")
    )
    note = (
        '<p class="small soft">A point is a kind of index with its parameters; the ring is around what was chosen. '
        "Recall@10 is against exact search, of the modality of queries for which it is lowest.</p>"
    )
    return parts.table(header, rows, [2, 3, 4]) + (note + figures if figures else "")


def _operating(name: str, entry: Mapping[str, Any]) -> str:
    """Recall against milliseconds, and against bytes."""
    asked = entry.get("asked", {})
    points = [point for point in entry["curve"] if point["recall"]]
    lowest = [min(point["recall"].values()) for point in points]
    level = [Guide(asked["recall"], f"asked: {asked['recall']:.1%}")] if asked.get("recall") else []
    y = Axis.over("recall@10, lowest", [*lowest, *(guide.value for guide in level)], percent=True)
    figures = []
    for values, unit, limit, axis, title in (
        (
            [_time(point) for point in points],
            "ms",
            asked.get("milliseconds"),
            "ms a query, one thread",
            "the time of a query",
        ),
        (
            [point["bytes"] / 1e6 for point in points],
            "MB",
            (asked.get("memory") or 0) / 1e6,
            "MB",
            "the size of the index",
        ),
    ):
        guides = [Guide(limit, f"asked: {limit:g} {unit}", vertical=True)] if limit else []
        x = Axis.over(axis, [*values, *(guide.value for guide in guides)], log=True)
        said = f"{name}: recall against {title}, all points that were measured"
        figures.append(chart(said, _by_kind(points, values, lowest, unit), x, y, [*level, *guides]))
    return f'<div class="charts">{"".join(figures)}</div>' if points else ""


def _time(point: Mapping[str, Any]) -> float:
    """Milliseconds of a query: measured, or else what the model of the tuning expects."""
    return float(point["milliseconds"] or point.get("expected_milliseconds", 0))


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
                    shape=_SHAPES[number % len(_SHAPES)],
                    opacity=1.0 if whole else 0.4,
                    ringed=frozenset(place for place, row in enumerate(rows) if points[row].get("chosen")),
                )
            )
    return series


def _family(kind: str) -> str:
    """Of an index factory's word, without its numbers: IVF2048,PQ128x4fs is of IVF + PQ."""
    names = ["".join(sign for sign in word.partition("x")[0] if not sign.isdigit()) for word in kind.split(",")]
    return " + ".join(name for name in names if name) or kind


def _described(point: Mapping[str, Any], value: float, unit: str) -> str:
    recalls = ", ".join(f"{query} {share:.1%}" for query, share in point["recall"].items())
    search = ", ".join(f"{key} {number}" for key, number in point["search"].items())
    expected = " expected" if unit == "ms" and not point["milliseconds"] else ""
    return f"{point['kind']}{f' ({search})' if search else ''}: {recalls}; {value:.4g} {unit}{expected}"


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
