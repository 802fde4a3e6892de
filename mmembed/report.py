"""Data sets and results as plain text, for a person."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from mmembed.dataset import Dataset
from mmembed.evaluate import format_table

_WIDEST_CELL = 60


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of plain text; long cells are cut."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip() for row in cells)


def short_path(path: str) -> str:
    """A path for a cell of a table: of a long one the end is shown, which tells files apart."""
    return path if len(path) <= _WIDEST_CELL else f"…{path[1 - _WIDEST_CELL :]}"


def failures(dataset: Dataset) -> list[str]:
    """What could not be used, by stage and kind, the most frequent first, each with one example; a line each."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for _, rows in dataset.tables("errors"):
        for row in rows.to_pylist():
            kind = (row["stage"], row["error"])
            counts[kind] += 1
            examples.setdefault(kind, f"{row['source']}: {row['message']}")
    return [
        f"{count:,} {error} ({stage}), first {examples[stage, error]}" for (stage, error), count in counts.most_common()
    ]


def flow(dataset: Dataset) -> str:
    """What went into each stage and came out of it, by modality, so that nothing vanishes unseen."""
    extracted = dataset.stage("extract").summary
    embedded = dataset.stages["project"].summary["segments"] if "project" in dataset.stages else {}
    indexed = dataset.stages["index"].summary["rows"] if "index" in dataset.stages else {}
    rows = [
        [
            name,
            f"{extracted['media'][name]:,}",
            f"{extracted['used'][name]:,}",
            f"{extracted['segments'][name]:,}",
            f"{embedded[name]:,}" if name in embedded else "-",
            f"{indexed[name]:,}" if name in indexed else "-",
        ]
        for name in extracted["spaces"]
    ]
    lines = [
        f"{extracted['rows']:,} records in the input, {extracted['records']:,} read; "
        f"{extracted['errors']:,} rows in errors/",
        table(["modality", "in records", "usable", "segments", "embedded", "indexed"], rows),
    ]
    return "\n".join(lines)


def build_summary(dataset: Dataset) -> str:
    """What `build` says at its end."""
    return f"{flow(dataset)}\n\n{format_table(json.loads(dataset.read('evaluation.json')))}"


def info(dataset: Dataset) -> str:
    """What a data set holds."""
    lines = [f"{dataset.root}: made from {dataset.input}", flow(dataset)]
    lines += [f"errors/: {line}" for line in failures(dataset)]
    lines += [f"features of {name}: {space}" for name, space in dataset.modalities("extract").items()]
    if "project" in dataset.stages:
        spaces = sorted({str(space) for space in dataset.modalities("project").values()})
        lines.append(f"embeddings: {', '.join(spaces)}")
    lines.append(f"stages done: {', '.join(dataset.stages)}")
    size = sum(file.bytes for file in dataset.files.values())
    lines.append(f"{len(dataset.files):,} files, {size / 1e6:,.1f} MB")
    return "\n".join(lines)


def _cell(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= _WIDEST_CELL else f"{line[: _WIDEST_CELL - 1]}…"
