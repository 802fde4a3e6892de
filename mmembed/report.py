"""Data sets and results as plain text, for a person."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmembed.dataset import Dataset
from mmembed.evaluate import format_table
from mmembed.files import is_url

if TYPE_CHECKING:
    from mmembed.bench import Checked

_WIDEST_CELL = 60
_EXAMPLES = 5


def table(header: Sequence[str], rows: Sequence[Sequence[str]], whole: Sequence[int] = ()) -> str:
    """Columns of plain text; long cells are cut.

    Args:
        whole: rows whose last cell is not cut: it is to be copied.
    """
    lines = [header, *rows]
    cells = [[_cell(value) for value in line] for line in lines]
    for number in whole:
        cells[1 + number][-1] = rows[number][-1]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip() for row in cells)


def path_from_here(input: str, media: str) -> str:
    """The path of a medium that can be opened from the working directory: as it is where it lies below that, else
    absolute. What is no file beside the input (a URL, a member of an archive, content in Parquet) is only shortened.

    Args:
        input: of the data set, see `Dataset.input`.
        media: as of `Neighbour.media`.
    """
    if is_url(input) or is_url(media):
        return short_path(media)
    folder = input if os.path.isdir(input) else os.path.dirname(input)
    path = os.path.abspath(os.path.join(folder, media))
    if not os.path.isfile(path) or not path.isprintable():
        return short_path(media)
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def short_path(path: str) -> str:
    """A path for a cell of a table: of a long one the end is shown, which tells files apart."""
    return path if len(path) <= _WIDEST_CELL else f"…{path[1 - _WIDEST_CELL :]}"


def ignored(dataset: Dataset) -> list[str]:
    """Which files of a folder are of endings that are not read, in a line."""
    endings = dataset.stage("extract").summary["ignored"]
    listed = ", ".join(f"{count:,} {ending}" for ending, count in endings.items())
    return [f"files of other endings, which are not read: {listed}"] if endings else []


def checked(result: Checked) -> str:
    """What a check of an encoder found, in a line."""
    remark = "" if result.exact else ", within rounding: last bits depend on what is encoded together"
    return f"{result.modality}: {result.encoder.space}: {result.fault or f'ok{remark}'}"


def throughput(measured: Mapping[str, Any]) -> str:
    """What `bench` measured of an encoder."""
    name, speeds = measured["modality"], measured["per_second"]
    rows = [[str(size), f"{speed:,.1f}", f"{1000 / speed:,.2f}"] for size, speed in speeds.items()]
    head = f"{name}: {measured['encoder']}, {measured['segments']} segments, one core\n"
    return f"{head}{table(['batch', 'a second', 'ms each'], rows)}\n--{name}-batch {measured['batch']}\n"


def failures(dataset: Dataset) -> list[str]:
    """What could not be used, by stage and kind, the most frequent first, each with one example; a line each."""
    return [
        f"{count:,} {error} ({stage}), first {examples[0]['source']}: {examples[0]['message']}"
        for (stage, error), (count, examples) in kinds_of_failure(dataset).items()
    ]


def errors(dataset: Dataset) -> str:
    """What could not be used: counts by stage and kind of error, the most frequent first, each with examples."""
    dataset.stage("extract")
    kinds = kinds_of_failure(dataset)
    if not kinds:
        return "no errors"
    counts = table(
        ["rows", "stage", "error"], [[f"{count:,}", stage, error] for (stage, error), (count, _) in kinds.items()]
    )
    parts = [counts]
    for (stage, error), (count, examples) in kinds.items():
        parts.append(f"{error} ({stage})" + (f", {len(examples)} of {count:,}" if count > len(examples) else ""))
        parts[-1] += "".join(f"\n  {_example(row)}" for row in examples)
    return "\n\n".join(parts)


def kinds_of_failure(dataset: Dataset) -> dict[tuple[str, str], tuple[int, list[dict[str, Any]]]]:
    """By stage and kind of error, how many rows of errors/, and the first few; the most frequent kind first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, rows in dataset.tables("errors"):
        for row in rows.to_pylist():
            kind = (row["stage"], row["error"])
            counts[kind] += 1
            if len(shown := examples.setdefault(kind, [])) < _EXAMPLES:
                shown.append(row)
    return {kind: (count, examples[kind]) for kind, count in counts.most_common()}


def _example(row: Mapping[str, Any]) -> str:
    what = " ".join(word for word in (row["modality"], row["id"]) if word)
    attempts = f" ({row['attempts']} attempts)" if row["attempts"] > 1 else ""
    return f"{row['source']}{f' ({what})' if what else ''}: {row['message']}{attempts}"


def decisions(fit: Mapping[str, Any]) -> list[str]:
    """What the fit decided by itself, a line each."""
    lines = [f"{what}: {fit[what]['decision']}" for what in ("lift", "refinement") if what in fit]
    return [*lines, fit["decision"]] if "decision" in fit else lines


def index_line(modality: str, entry: Mapping[str, Any]) -> str:
    """What an index is, and what was measured of it, in a line."""
    asked, found = entry["asked"], ", ".join(f"{value:.3f} by {name}" for name, value in entry["recall"].items())
    recall = f"recall@10 {found} ({entry['split']} queries)" if found else "exact"
    if found and min(entry["recall"].values()) < asked["recall"]:
        recall += f", less than the {asked['recall']:g} asked for: allow more --memory, or more --latency"
    late = asked["milliseconds"] and entry["milliseconds"] > asked["milliseconds"]
    slow = f", more than the {asked['milliseconds']:g} ms asked for, on this machine now" if late else ""
    return (
        f"{modality} {entry['kind']}, {max(entry['bytes'] / 1e6, 0.001):,.3g} MB, {recall}, "
        f"{entry['milliseconds']:.2g} ms a query{slow}"
    )


def drift_line(modality: str, entry: Mapping[str, Any]) -> str:
    """How an index has drifted from the rows that it was trained on."""
    falls = ", ".join(f"{before:.3f} to {now:.3f} by {name}" for name, (before, now) in entry["drift"].items())
    return f"DRIFT: recall@10 of {modality} has fallen from {falls} since the index was trained: training it again"


def leavings(dataset: Dataset) -> list[str]:
    """What was left out on purpose, by kind and rule, each with one example; a line each."""
    return [f"{count:,} {kind}, first {example}" for kind, (count, example) in kinds_of_dropped(dataset).items()]


def kinds_of_dropped(dataset: Dataset) -> dict[str, tuple[int, str]]:
    """By kind and modality, how many rows of dropped/, and the first; the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for _, rows in dataset.tables("dropped"):
        for row in rows.to_pylist():
            kind = f"{row['kind']} ({row['modality']})" if row["modality"] else row["kind"]
            counts[kind] += 1
            twin = f", the twin of {row['twin']}" if row["twin"] else ""
            examples.setdefault(kind, f"{row['source']}: {row['reason']}{twin}")
    return {kind: (count, examples[kind]) for kind, count in counts.most_common()}


FLOW = ("modality", "in", "= used", "+ filtered", "+ duplicates", "+ errors", "segments", "embedded", "indexed")
"""The columns of `flow_rows`."""


def flow(dataset: Dataset) -> str:
    """What went into each stage and came out of it, by modality, so that nothing vanishes unseen."""
    return f"{flow_line(dataset)}\n{table(FLOW, flow_rows(dataset))}"


def flow_line(dataset: Dataset) -> str:
    """What became of the records, in a line."""
    extracted = dataset.stage("extract").summary
    kept_out, redacted = extracted.get("kept_out", 0), extracted.get("redacted", {})
    return (
        f"{extracted['rows']:,} records in the input, {extracted['records']:,} read, "
        f"{extracted['duplicate_records']:,} of them duplicates; {extracted['failed_records']:,} with errors "
        f"({extracted['errors']:,} rows in errors/)"
        + (f"; {kept_out:,} kept out by --require" if kept_out else "")
        + (f"; redacted: {', '.join(f'{n:,} {type}' for type, n in redacted.items())}" if redacted else "")
    )


def flow_rows(dataset: Dataset) -> list[list[str]]:
    """What became of the media, a row a modality."""
    extracted = dataset.stage("extract").summary
    embedded = dataset.stages["project"].summary["segments"] if "project" in dataset.stages else {}
    indexed = dataset.stages["index"].summary["rows"] if "index" in dataset.stages else {}
    columns = ("media", "used", "filtered", "duplicates", "failed", "segments")
    return [
        [
            name,
            *(f"{extracted[column][name]:,}" for column in columns),
            f"{embedded[name]:,}" if name in embedded else "-",
            f"{indexed[name]:,}" if name in indexed else "-",
        ]
        for name in extracted["spaces"]
    ]


def history(dataset: Dataset) -> str:
    """What each run did, the oldest first."""
    return "\n".join(f"{entry['time']}  {entry['stage']:<8}  {entry['did']}" for entry in dataset.history)


def build_summary(dataset: Dataset) -> str:
    """What `build` says at its end."""
    return f"{flow(dataset)}\n\n{format_table(json.loads(dataset.read('evaluation.json')))}"


def forgetting(receipt: Mapping[str, Any]) -> str:
    """What was done to forget some records.

    Args:
        receipt: as of `mmembed.forget.receipt_of`.
    """
    what: dict[str, Counter[str]] = {folder: Counter(rows=rows) for folder, rows in receipt["rows_removed"].items()}
    for file in receipt["files"]:
        folder = file["path"].rpartition("/")[0] or file["path"]
        done = "removed" if file["after"] is None else "new" if file["before"] is None else "written"
        what.setdefault(folder, Counter())[done] += 1
    columns = ("rows", "written", "removed", "new")
    counts = [[folder, *(f"{count[column]:,}" for column in columns)] for folder, count in sorted(what.items())]
    return "\n\n".join(
        [
            table(["id", "outcome"], [[id, outcome] for id, outcome in receipt["ids"].items()]),
            table(["in OUT", "rows removed", "files written again", "files removed", "new files"], counts),
        ]
    )


def info(dataset: Dataset) -> str:
    """What a data set holds."""
    lines = [f"{dataset.root}: made from {dataset.input}", flow(dataset)]
    lines += ignored(dataset)
    lines += [f"errors/: {line}" for line in failures(dataset)]
    lines += [f"dropped/: {line}" for line in leavings(dataset)]
    if dataset.forgotten:
        lines.append(f"forgotten: {len(dataset.forgotten.ids):,} records, which every build leaves out")
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
