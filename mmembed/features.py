"""What extraction leaves of a unit, and how the later stages read it."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed import files, signatures
from mmembed.dataset import Dataset
from mmembed.errors import MmembedError, RepeatedIdError
from mmembed.files import Place, Stamp
from mmembed.forgotten import NOTHING, Forgotten
from mmembed.inputs import Source
from mmembed.moments import View
from mmembed.privacy import KEPT_OUT
from mmembed.scratch import Scratch
from mmembed.shards import fingerprint, read_footer, read_table, shard_path, write_table
from mmembed.splits import number_of
from mmembed.tables import (
    DROPPED,
    ERRORS,
    RECORDS,
    STAMPS,
    dropped_table,
    errors_table,
    features_schema,
    features_table,
    metadata_kinds,
    records_table,
    vectors_from_arrow,
    vectors_to_arrow,
)
from mmembed.types import Dropped, Failure, Record, Segment, Unit


@dataclass(frozen=True)
class Marks:
    """Fingerprints of what decides the content of a unit's files beside its records.

    Attributes:
        unit: of the whole configuration of extraction.
        modalities: by modality, of how its features are made.
        dims: by modality, of its features.
    """

    unit: str
    modalities: Mapping[str, str]
    dims: Mapping[str, int]

    def of(self, unit: Unit) -> str:
        """The mark of a unit's files."""
        return fingerprint(unit.fingerprint, self.unit)


@dataclass(eq=False)
class Contents:
    """What was made of a unit's records.

    Attributes:
        stamps: of the files that it was read from and those that its media are in, by location.
        redacted: how many values of which type were taken out.
    """

    records: Sequence[Record] = ()
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    redacted: Mapping[str, int] = field(default_factory=dict)


def write_unit(scratch: Scratch, unit: Unit, contents: Contents, marks: Marks) -> None:
    """Write a unit's files: features by modality, errors/ and dropped/ if there are any, stamps, and last the records:
    the unit's receipt.

    Raises:
        MmembedError: a medium that went in came out nowhere, or twice: a fault of mmembed.
    """
    root, number = scratch.root, unit.number
    usable = _usable(contents)
    footer = {"fingerprint": marks.of(unit), "without": {}}
    written = {}
    for name in marks.dims:
        table = features_table(contents.segments.get(name, []), marks.dims[name])
        path = shard_path(f"features/{name}", number)
        written[path] = write_table(root / path, table, footer | {"modality": marks.modalities[name]})
    failures = [
        replace(failure, attempts=1 + scratch.attempts(failure.id or failure.source, failure.modality))
        for failure in contents.failures
    ]
    _write_if_any(root / shard_path("errors", number), errors_table(failures), footer)
    _write_if_any(root / shard_path("dropped", number), dropped_table(contents.dropped), footer)
    write_table(root / shard_path("stamps", number), _stamps_table(contents, usable, scratch), footer)
    lost = sum(not failure.modality for failure in failures)
    kept_out = sum(item.kind == KEPT_OUT for item in contents.dropped)
    receipt = {
        **footer,
        "records": len(contents.records),
        "lost": lost,
        "kept_out": kept_out,
        "skipped": unit.records - len(contents.records) - lost - kept_out,
        "segments": {name: len(contents.segments.get(name, [])) for name in marks.dims},
        **_counts(contents, usable, marks.dims),
        "errors": len(failures),
        "dropped": len(contents.dropped),
        "written": written,
        "failed_records": len({failure.source for failure in failures}),
        "redacted": dict(sorted(contents.redacted.items())),
        "kinds": metadata_kinds(record.metadata for record in contents.records),
        "signatures": signatures.VERSION,
        "columns": sorted({m.column for record in contents.records for items in record.media.values() for m in items}),
    }
    by_id: dict[str, list[dict[str, Any]]] = {}
    for (id, _, _), medium in usable.items():
        by_id.setdefault(id, []).append(medium)
    write_table(root / shard_path("records", number), records_table(contents.records, by_id), receipt)


def _write_if_any(path: Place, table: pa.Table, footer: Mapping[str, Any]) -> None:
    """A table without rows has no file, nor that of an earlier attempt."""
    if table.num_rows:
        write_table(path, table, footer)
    else:
        path.unlink(missing_ok=True)


Key = tuple[str, str, int]
"""Of a medium within a unit: id of its record, modality, number."""


def _usable(contents: Contents) -> dict[Key, dict[str, Any]]:
    """The media that gave a segment: what records/ says of each."""
    return {
        (segment.id, name, segment.medium): {
            "modality": name,
            "content_hash": segment.content_hash,
            "signature": segment.signature or None,
        }
        for name, segments in contents.segments.items()
        for segment in reversed(segments)  # so that the first one of a medium, which carries the signature, stays
    }


def _counts(contents: Contents, usable: Mapping[Key, Any], names: Iterable[str]) -> dict[str, Any]:
    """By modality, how many media went in and what became of them: each is in exactly one of the four counts. And of
    "unused" ones the same by the id of their record, for the case that this is to be forgotten."""
    failed = {(f.id, f.modality, f.medium) for f in contents.failures if f.modality}
    filtered = {(d.id, d.modality, d.medium) for d in contents.dropped if d.modality}
    given = {
        (record.id, name, medium)
        for record in contents.records
        for name, items in record.media.items()
        for medium in range(len(items))
    } | {key for key in failed if key[2] < 0}  # what could not be read as a medium has a number below 0
    outcomes = {"used": usable.keys(), "failed": failed - usable.keys(), "filtered": filtered - usable.keys()}
    seen = [key for keys in outcomes.values() for key in keys]
    if len(seen) != len(given) or set(seen) != given:
        raise MmembedError(
            f"{len(given)} media went in, {len(seen)} came out ({sorted(given.symmetric_difference(seen))[:3]}): "
            "this is a fault of mmembed, please report it"
        )
    tables = {"media": given, **outcomes, "duplicates": set()}
    counts = {what: {name: sum(key[1] == name for key in keys) for name in names} for what, keys in tables.items()}
    unused: dict[str, dict[str, dict[str, int]]] = {}
    for what in ("failed", "filtered"):
        for id, name, _ in outcomes[what]:
            of_record = unused.setdefault(id, {}).setdefault(what, {})
            of_record[name] = of_record.get(name, 0) + 1
    return {**counts, "unused": unused}


def _stamps_table(contents: Contents, usable: Mapping[Key, Mapping[str, Any]], scratch: Scratch) -> pa.Table:
    """The unit's files as they were read, and the hashes of those that are media."""
    hashes = {
        media.location: usable[key]["content_hash"]
        for record in contents.records
        for name, items in record.media.items()
        for medium, media in enumerate(items)
        if media.content is None and not media.part and (key := (record.id, name, medium)) in usable
    }
    rows = [
        {"name": scratch.name_of(location), **stamp._asdict(), "content_hash": hashes.get(location)}
        for location, stamp in sorted(contents.stamps.items())
    ]
    return pa.Table.from_pylist(rows, STAMPS)


def read_receipt(root: Place, unit: Unit, marks: Marks) -> dict[str, Any] | None:
    """The receipt of a unit whose files are all there and of this configuration, None of any other."""
    receipt = read_footer(root / shard_path("records", unit.number))
    if receipt is None or receipt["fingerprint"] != marks.of(unit):
        return None
    mark = {key: receipt[key] for key in ("fingerprint", "without")}
    paths = [*unit_files(unit.number, receipt), shard_path("stamps", unit.number)]
    footers = [read_footer(root / path) for path in paths]
    whole = all(footer and {key: footer[key] for key in mark} == mark for footer in footers)
    return receipt if whole else None


def unchanged(root: Place, unit: Unit, scratch: Scratch, source: Source) -> bool:
    """Whether the files that a unit was read from, and those that its media are in, are as they were."""
    try:
        rows = read_table((root / shard_path("stamps", unit.number)).read_bytes()).to_pylist()
    except (OSError, pa.ArrowException):
        return False
    if scratch.hides_names:  # which only the input still knows
        now = {scratch.name_of(location): stamp for location, stamp in source.stamps(unit).items()}
    else:
        now = {row["name"]: files.stamp(files.join(scratch.base, row["name"])) for row in rows}
    return all(now.get(row["name"]) == Stamp(row["bytes"], row["modified"]) for row in rows)


def unit_files(number: int, receipt: Mapping[str, Any]) -> dict[str, int]:
    """The files of a finished unit that belong to the data set, by relative path, and their rows."""
    found = {shard_path(f"features/{name}", number): rows for name, rows in receipt["segments"].items()}
    for folder in ("errors", "dropped"):
        if receipt[folder]:
            found[shard_path(folder, number)] = receipt[folder]
    return found | {shard_path("records", number): receipt["records"]}


def leave_out(root: Place, unit: Unit, without: Mapping[str, Sequence[str]], marks: Marks) -> None:
    """Write a finished unit's files again without some of its records, which belong to others.

    Args:
        without: by id ("duplicate", reason, id of the twin) or ("repeated", reason, where its id was first used).
    """
    receipt = read_receipt(root, unit, marks)
    assert receipt is not None
    rewrite_unit(root, unit.number, receipt, without)


def rewrite_unit(
    root: Place,
    number: int,
    receipt: Mapping[str, Any],
    without: Mapping[str, Sequence[str]],
    forgotten: Forgotten = NOTHING,
) -> dict[str, Any]:
    """Write a finished unit's files again, the records last: without some of its records, which belong to others, and
    without any trace of some, as if the input had never had them. The same call goes on with one that was killed.

    Args:
        receipt: of the unit as it is.
        without: as of `leave_out`.

    Returns:
        The receipt that it has now.
    """
    table = read_table((root / shard_path("records", number)).read_bytes()).replace_schema_metadata()
    ids = table["id"].to_pylist()
    gone = [id for id in ids if id in forgotten]
    records = _rows_but(table, gone, RECORDS)
    sources = dict(zip(ids, table["source"].to_pylist()))
    without = {id: list(without[id]) for id in ids if id in without and id not in forgotten}
    footer = {"fingerprint": receipt["fingerprint"], "without": without}
    segments, written = {}, {}
    for name in receipt["segments"]:
        shard = shard_path(f"features/{name}", number)
        mark = read_footer(root / shard)
        assert mark is not None
        features = read_table((root / shard).read_bytes())
        features = _rows_but(features, [*without, *gone], features_schema(features["feature"].type.list_size))
        segments[name] = features.num_rows
        written[shard] = write_table(root / shard, features, footer | {"modality": mark["modality"]})
    before = receipt["without"]
    kinds = {"errors": ("error", RepeatedIdError.__name__), "dropped": ("kind", "duplicate")}
    failures, dropped = (
        [
            row
            for row in _rows_but_of(root / shard_path(folder, number), before, sources, *which)
            if (row["id"] or row["source"]) not in forgotten
        ]
        for folder, which in kinds.items()
    )
    lost = sum(not row["modality"] for row in failures)
    failures += [
        vars(Failure(id, "", None, "read", RepeatedIdError.__name__, str(RepeatedIdError.of(id, why[2])), sources[id]))
        for id, why in without.items()
        if why[0] == "repeated"
    ]
    dropped += [
        vars(Dropped(id, "", "duplicate", why[1], why[2], sources[id]))
        for id, why in without.items()
        if why[0] == "duplicate"
    ]
    tables = {"errors": pa.Table.from_pylist(failures, ERRORS), "dropped": pa.Table.from_pylist(dropped, DROPPED)}
    for folder, rows in tables.items():
        _write_if_any(root / shard_path(folder, number), rows, footer)
    if (path := root / shard_path("stamps", number)).exists():
        stamps = read_table(path.read_bytes()).replace_schema_metadata()
        write_table(path, _stamps_but_of(stamps, table, set(gone), receipt["columns"]), footer)
    if gone:
        receipt = _without(receipt, table, records, set(gone))
    used = {
        kind: Counter(
            medium["modality"]
            for id, media in zip(records["id"].to_pylist(), records["media"].to_pylist())
            if without.get(id, ("",))[0] == kind
            for medium in media
        )
        for kind in ("duplicate", "repeated")
    }
    whole = _whole(receipt)
    kept_out = sum(row["kind"] == KEPT_OUT for row in dropped)
    rows_before = sum(receipt[what] for what in ("records", "lost", "kept_out", "skipped"))
    counts = {
        "records": records.num_rows,
        "lost": lost,
        "kept_out": kept_out,
        "skipped": rows_before - records.num_rows - lost - kept_out,
        "used": {name: whole["used"][name] - used["duplicate"][name] - used["repeated"][name] for name in segments},
        "media": {name: whole["media"][name] - used["repeated"][name] for name in segments},
        "duplicates": {name: used["duplicate"][name] for name in segments},
        "errors": len(failures),
        "dropped": len(dropped),
        "failed_records": len({row["source"] for row in failures}),
        "segments": segments,
        "written": written,
        **({"whole": whole} if without else {}),
    }
    now = {key: value for key, value in receipt.items() if key != "whole"} | footer | counts
    write_table(root / shard_path("records", number), records, now)
    return now


def _whole(receipt: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many media went in and were used, before records that belong to others were left out."""
    return dict(receipt["whole"]) if "whole" in receipt else {key: receipt[key] for key in ("used", "media")}


def _without(receipt: Mapping[str, Any], before: pa.Table, after: pa.Table, gone: Collection[str]) -> dict[str, Any]:
    """The receipt of a unit that never had some records, as far as it counts media and knows metadata.

    Args:
        before: the rows of records/ with them.
        after: those without.
    """
    counts = {what: dict(values) for what, values in (_whole(receipt) | {"failed": receipt["failed"]}).items()}
    counts["filtered"] = dict(receipt["filtered"])
    unused = receipt.get("unused", {})  # which an earlier version did not note: its media stay counted
    for id, media in zip(before["id"].to_pylist(), before["media"].to_pylist()):
        if id not in gone:
            continue
        of_record = {"used": Counter(medium["modality"] for medium in media), **unused.get(id, {})}
        for what, values in of_record.items():
            for name, count in values.items():
                counts[what][name] -= count
                counts["media"][name] -= count
    rows = [json.loads(text) for text in after["record"].to_pylist()]
    keys = {key for row in rows for key in row}
    columns = [column for column in receipt["columns"] if not column or column in keys]
    media_keys = {*receipt["columns"], *(receipt["segments"] if "" in columns else ())}
    return {
        **receipt,
        "whole": {key: counts[key] for key in ("used", "media")},
        "failed": counts["failed"],
        "filtered": counts["filtered"],
        "unused": {id: what for id, what in unused.items() if id not in gone},
        "columns": columns,
        "kinds": metadata_kinds({key: row[key] for key in row if key not in media_keys} for row in rows),
    }


def _rows_but(table: pa.Table, ids: Iterable[str], schema: pa.Schema) -> pa.Table:
    """The rows of other ids, with the bytes that they would have alone: what was read calls the items of lists by other
    names than what was made."""
    kept = table.filter(pc.invert(pc.is_in(table["id"], pa.array(sorted(ids), pa.string()))))
    columns = [
        vectors_to_arrow(vectors_from_arrow(kept[field.name]), field.type)
        if pa.types.is_fixed_size_list(field.type)
        else pa.array(kept[field.name].to_pylist(), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _rows_but_of(
    path: Place, before: Mapping[str, Sequence[str]], sources: Mapping[str, str], column: str, value: str
) -> list[dict[str, Any]]:
    """The rows of errors/ or dropped/ but those that say of records left out before that they were."""
    rows = read_table(path.read_bytes()).to_pylist() if path.exists() else []
    return [
        row
        for row in rows
        if not (row["id"] in before and row[column] == value and row["source"] == sources.get(row["id"]))
    ]


def _stamps_but_of(stamps: pa.Table, records: pa.Table, ids: Collection[str], columns: Collection[str]) -> pa.Table:
    """The rows of stamps/ but those of files that some records alone are made of."""
    if not ids:
        return stamps
    theirs: set[str] = set()
    others: set[str] = set()
    sources = set()
    for id, source, text in zip(*(records[name].to_pylist() for name in ("id", "source", "record"))):
        folder = files.parent(source.rpartition(":")[0])
        for key, value in json.loads(text).items():
            names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
            found = (posixpath.normpath(files.join(folder, name)) for name in names if key in columns or "" in columns)
            (theirs if id in ids else others).update(found)
        if id in ids:
            sources.add(source)  # of a folder of files, their name but for its ending

    def is_of(name: str, paths: Collection[str]) -> bool:
        # What lies below the input's folder is named from there, though the record may give its whole path.
        return name in paths or any(path.startswith("/") and path.endswith(f"/{name}") for path in paths)

    kept = [
        name.rpartition(".")[0] not in sources and (is_of(path, others) or not is_of(path, theirs))
        for name in stamps["name"].to_pylist()
        if (path := posixpath.normpath(name))
    ]
    return stamps.filter(pa.array(kept, pa.bool_()))


@dataclass(frozen=True, eq=False)
class UnitFeatures:
    """The features of a unit's records.

    Attributes:
        ids: of the records, n.
        records: what the user gave, by key, n.
        views: by modality, one row for each record.
        media: by modality a number for each record's first medium, uint64 (n,), 0 where it has none.
    """

    ids: list[str]
    records: list[dict[str, Any]]
    views: dict[str, View]
    media: dict[str, NDArray[np.uint64]]


def read_unit(dataset: Dataset, number: int, modalities: Sequence[str]) -> UnitFeatures:
    """Read a unit's features, checked against the manifest."""
    ids, records = read_records(dataset, number)
    row_of = {id: row for row, id in enumerate(ids)}
    views, media = {}, {}
    for name in modalities:
        table = read_table(dataset.read(shard_path(f"features/{name}", number)))
        rows = np.array([row_of[id] for id in table.column("id").to_pylist()], np.int64)
        views[name] = View.of(vectors_from_arrow(table.column("feature")), rows, len(ids))
        media[name] = np.zeros(len(ids), np.uint64)
        numbers = np.array([number_of(digest) for digest in table.column("content_hash").to_pylist()], np.uint64)
        media[name][rows[::-1]] = numbers[::-1]  # the first of a record's rows stays
    return UnitFeatures(ids, records, views, media)


def read_records(dataset: Dataset, number: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of a unit's records, and what the user gave, by key."""
    table = read_table(dataset.read(shard_path("records", number)))
    return table.column("id").to_pylist(), [json.loads(text) for text in table.column("record").to_pylist()]
