"""Records that are to be forgotten leave the files of a data set, and all that has learned from them is removed.

Nothing here needs the input, or an encoder. Each file is replaced as a whole, a unit's receipt last: what was killed
goes on where it was, by the hashes in the manifest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from mmembed.dataset import EVALUATED, Dataset, File, Stage, describe, is_own, relative
from mmembed.extraction import summary_of
from mmembed.features import rewrite_unit, unit_files
from mmembed.files import Place, listed
from mmembed.forgotten import Forgotten
from mmembed.project import GROUPS
from mmembed.scratch import FOLDER as SCRATCH
from mmembed.shards import (
    TEMPORARY_SUFFIX,
    read_bytes,
    read_footer,
    read_table,
    remove_folder,
    several,
    shard_path,
    write_json,
)
from mmembed.splits import Groups

_UNIT_FILE = re.compile(r"(?:records|errors|dropped|stamps|features/[^/]+)/part-(\d{5,})\.parquet")
_DERIVED = ("maps", "embeddings", "index", SCRATCH, *EVALUATED)
_GONE = ""
"""For the twin of a copy: a record that is forgotten."""


def known(dataset: Dataset, ids: Iterable[str]) -> set[str]:
    """Those of some ids that have rows in a data set, as records or as errors. A row of errors/ whose record has no id
    is known by its source."""
    root = dataset.root
    if "extract" in dataset.stages and not (root / SCRATCH).is_dir():
        paths = [path for folder in ("records", "errors") for path in (root / folder).glob("part-*.parquet")]
    else:  # an extraction that was killed: any file may hold something
        paths = [path for path in listed(root) if is_own(root, path) and str(path).endswith(".parquet")]
    asked = set(ids)
    return {id for found in several(_ids, paths, root) for id in found & asked}


def _ids(path: Place) -> set[str]:
    try:
        columns = read_table(path.read_bytes(), ["id", *(["source"] if path.parent.name == "errors" else [])])
    except pa.ArrowException:
        return set()
    return {row.get("id") or row.get("source") or "" for row in columns.to_pylist()}


def purge(dataset: Dataset) -> tuple[Dataset, Counter[str]]:
    """Remove what is left of records that are to be forgotten; gives the data set as its manifest has it then, and how
    many rows were removed, by folder.

    Records that were copies of them, and left out, stay so: the stage extract is not done then, and brings them back.
    """
    root, forgotten = dataset.root, dataset.forgotten
    units: dict[int, list[Place]] = {}
    for path in listed(root):
        name = relative(root, path)
        if found := _UNIT_FILE.fullmatch(name):
            units.setdefault(int(found[1]), []).append(path)
        elif name.endswith(TEMPORARY_SUFFIX) or (
            name.split("/")[0] in _DERIVED and is_own(root, path) and name not in dataset.files
        ):
            path.unlink(missing_ok=True)
    remove_folder(root / SCRATCH)  # with empty folders
    dataset = _purge_groups(dataset)
    numbers = sorted(units)
    results = list(several(lambda number: _purge_unit(root, number, units[number], forgotten), numbers, root))
    rows = sum((counts for _, counts in results), Counter())
    receipts = {number: receipt for number, (receipt, _) in zip(numbers, results) if receipt}
    if "extract" in dataset.stages:
        dataset = _extracted(dataset, receipts, rows["records"])
    did = ", ".join(f"{count:,} rows of {folder}" for folder, count in sorted(rows.items()) if count) or "no rows"
    dataset = replace(
        dataset,
        forgotten=replace(dataset.forgotten, pending=frozenset()),
        history=dataset.with_history("forget", did),
    )
    dataset.save()
    return dataset, rows


def _purge_unit(
    root: Place, number: int, paths: Sequence[Place], forgotten: Forgotten
) -> tuple[dict[str, Any] | None, Counter[str]]:
    """Rewrite a unit's files, if there is a trace of what is to be forgotten; gives its receipt, None where the unit
    was not whole: its files are removed, and a build makes them again."""
    receipt = read_footer(root / shard_path("records", number))
    needed = [shard_path(f"features/{name}", number) for name in receipt["segments"]] if receipt else []
    if receipt is None or None in [read_footer(root / path) for path in needed]:
        for path in paths:
            path.unlink(missing_ok=True)
        return None, Counter()
    before = unit_files(number, receipt)
    tables = {
        folder: read_table(path.read_bytes()).to_pylist()
        if (path := root / shard_path(folder, number)).exists()
        else []
        for folder in ("records", "errors", "dropped")
    }
    rows = [row for folder in tables for row in tables[folder]]
    trace = any((row["id"] or row["source"]) in forgotten or row.get("twin") in forgotten for row in rows)
    killed = any(len(tables[folder]) != receipt[folder] for folder in ("errors", "dropped"))
    if not trace and not killed:
        return receipt, Counter()
    without = {
        id: [*why[:2], _GONE] if why[0] == "duplicate" and why[2] in forgotten else why
        for id, why in receipt["without"].items()
    }
    receipt = rewrite_unit(root, number, receipt, without, forgotten)
    after = unit_files(number, receipt)
    removed = {path.rpartition("/")[0]: count - after.get(path, 0) for path, count in before.items()}
    return receipt, Counter({folder: count for folder, count in removed.items() if count})


def _extracted(dataset: Dataset, receipts: Mapping[int, Mapping[str, Any]], removed: int) -> Dataset:
    """The data set with its extraction as the receipts of its units have it."""
    if list(receipts) != list(range(len(dataset.below("records")))):  # a file was missing: a build makes its unit again
        return replace(dataset, stages={}, files={})
    stage = dataset.stages["extract"]
    folders = stage.summary["folders"]
    rows = {path: count for number, receipt in receipts.items() for path, count in unit_files(number, receipt).items()}
    written = {path: about for receipt in receipts.values() for path, about in receipt["written"].items()}

    def described(path: str) -> File:
        if path not in written:
            return describe(dataset.root, path, rows[path])
        return File(written[path][0], written[path][1], rows[path])

    files = {path: file for path, file in dataset.files.items() if path.split("/")[0] not in folders}
    files |= dict(zip(rows, several(described, rows, dataset.root)))
    lonely = any(why[2] == _GONE for receipt in receipts.values() for why in receipt["without"].values())
    summary = {
        **stage.summary,
        **summary_of(list(receipts.values()), stage.summary["spaces"]),
        "added": 0,
        "changed": 0,
        "removed": removed,
    }
    again = ("extract", *dataset.forgotten.again) if lonely else dataset.forgotten.again
    return replace(
        dataset,
        stages={**dataset.stages, "extract": Stage("" if lonely else stage.fingerprint, summary)},
        files=dict(sorted(files.items())),
        forgotten=replace(dataset.forgotten, again=again),
    )


def _purge_groups(dataset: Dataset) -> Dataset:
    """Maps of another data set stay, but not the ids that stand in its groups."""
    if GROUPS not in dataset.files:
        return dataset
    path = dataset.root / GROUPS
    groups = Groups(**json.loads(bytes(read_bytes(path))))
    write_json(path, asdict(groups.without(dataset.forgotten, dataset.config["fit"]["holdout"])))
    return replace(dataset, files={**dataset.files, GROUPS: describe(dataset.root, GROUPS)})


def receipt_of(
    before: Dataset, after: Dataset, outcomes: Mapping[str, str], rows: Mapping[str, int], missing: str
) -> dict[str, Any]:
    """What was done, as JSON values.

    Args:
        outcomes: by id as it was asked for.
        rows: that were removed, by folder.
        missing: what could not be done again, and why.
    """
    sums = [{path: file.sha256 for path, file in dataset.files.items()} for dataset in (before, after)]
    changed = [path for path in sorted({**sums[0], **sums[1]}) if sums[0].get(path) != sums[1].get(path)]
    return {
        "data_set": str(after.root),
        "ids": dict(outcomes),
        "rows_removed": dict(sorted(rows.items())),
        "files": [{"path": path, "before": sums[0].get(path), "after": sums[1].get(path)} for path in changed],
        "missing": missing,
    }
