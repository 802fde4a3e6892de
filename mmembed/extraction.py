"""What an extraction has to do: which units are missing or stale, which records are copies of others, what changed."""

from __future__ import annotations

import hashlib
import signal
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed import duplicates, signatures
from mmembed.config import ExtractConfig, Parts, to_json
from mmembed.dataset import FORMAT_VERSION, Dataset
from mmembed.encoders import Encoder
from mmembed.errors import CrashError, UsageError
from mmembed.features import Marks, leave_out, read_receipt, unchanged
from mmembed.files import Place
from mmembed.forgotten import NOTHING, Forgotten
from mmembed.inputs import Source, open_source
from mmembed.modalities import Modality
from mmembed.scratch import UNIT_STAGES, Scratch
from mmembed.shards import fingerprint, read_footer, read_table, several, shard_path
from mmembed.tables import merge_kinds
from mmembed.types import Unit

FREE = ("limit", "max_error_rate", "dedup", "fetch_timeout", "fetch_megabytes", "timeout", "secret")
"""Keys of the configuration that change nothing of what was extracted."""

CHEAP = ("sample", "allow_outside", "allow_private_hosts")
"""Keys that change which records there are: their features are taken over."""

ENCODERS = ("image_encoder", "text_encoder", "audio_encoder")
"""Keys that say where an encoder is found: what it is, its space says."""

MAX_CRASHES = 5
"""So many workers in a row may die without any unit being finished: then it is not the data."""

_KILLED_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_IDENTITY = np.dtype([("id", "<u8"), ("digest", "<u8")])


@dataclass(frozen=True)
class Extraction:
    """One run of the stage: the input, the configuration, and where it goes."""

    source: Source
    units: Sequence[Unit]
    config: ExtractConfig
    parts: Mapping[str, tuple[Modality, Encoder]]
    scratch: Scratch

    @classmethod
    def of(cls, input: str, root: Place, config: ExtractConfig, forgotten: Forgotten = NOTHING) -> Extraction:
        """Plan it: the input's units are listed, nothing is read of media.

        Raises:
            UsageError: there is no such input, it holds no records, or no column that the user named.
        """
        source = replace(open_source(input, config.choice), forgotten=forgotten)
        units = source.units(config.unit_records)
        if not sum(unit.records for unit in units):
            raise UsageError(f"{input} holds no records")
        source.check(units[0])
        return cls(source, units, config, dict(Parts(config)), _scratch(root, source, config))

    @property
    def root(self) -> Place:
        """The data set's folder."""
        return self.scratch.root

    @property
    def encoders(self) -> dict[str, Encoder]:
        """By modality."""
        return {name: encoder for name, (_, encoder) in self.parts.items()}

    @property
    def modalities(self) -> dict[str, Modality]:
        """By name."""
        return {name: modality for name, (modality, _) in self.parts.items()}

    @property
    def spaces(self) -> dict[str, dict[str, Any]]:
        """Of the features, by modality, as JSON values."""
        return {name: asdict(encoder.space) for name, encoder in self.encoders.items()}

    @property
    def sign(self) -> bool:
        """Whether media are signed, so that near duplicates can be found."""
        return self.config.dedup == "near"

    @cached_property
    def marks(self) -> Marks:
        """What the files of finished units are marked with."""
        features = {
            name: fingerprint(
                FORMAT_VERSION,
                modality.version,
                asdict(modality),  # type: ignore[call-overload]
                self.spaces[name],
                self.config.batches[name],
            )
            for name, (modality, _) in self.parts.items()
        }
        config = {key: value for key, value in to_json(self.config).items() if key not in FREE + ENCODERS}
        dims = {name: encoder.space.dim for name, encoder in self.encoders.items()}
        sign = signatures.VERSION if self.sign else ""
        return Marks(fingerprint(config, features, sign, self.config.privacy.mark), features, dims)

    @property
    def mark(self) -> str:
        """Of all that goes in."""
        return fingerprint(self.marks.unit, self.config.dedup, [unit.fingerprint for unit in self.units])

    def receipt(self, unit: Unit) -> dict[str, Any] | None:
        """Of a unit that is done."""
        return read_receipt(self.root, unit, self.marks)

    def receipts(self, units: Sequence[Unit]) -> Iterator[dict[str, Any] | None]:
        """Of each of some units."""
        return several(self.receipt, units, self.root)

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """Units that are not done."""
        return [unit for unit, receipt in zip(units, self.receipts(units)) if receipt is None]

    def stale(self, retry_errors: bool) -> list[Unit]:
        """Units to do: those that are missing, or whose files have changed, or that have errors to be tried again."""

        def is_stale(unit: Unit) -> bool:
            receipt = self.receipt(unit)
            again = receipt is None or (retry_errors and receipt["errors"])
            return again or not unchanged(self.root, unit, self.scratch, self.source)

        return [unit for unit, stale in zip(self.units, several(is_stale, self.units, self.root)) if stale]

    @property
    def surplus(self) -> list[int]:
        """The numbers of units on disk that the input no longer has."""
        return [number for number in _numbers(self.root) if number >= len(self.units)]

    def retire(self, units: Sequence[Unit]) -> None:
        """Move the files of units, and of those that the input no longer has, to where they are taken over from."""
        self.scratch.remember_before(identities(self.root))
        numbers = [*(unit.number for unit in units), *self.surplus]
        deque(several(partial(self.scratch.retire, marks=self.marks.modalities), numbers, self.root), maxlen=0)

    def settle_duplicates(self) -> list[Unit]:
        """Take records out of finished units that are copies of others; gives units that must be done once more,
        because a record in them is no copy any longer."""
        without = copies(self.root, [unit.number for unit in self.units], self.config.dedup)
        again = []
        for unit, receipt in zip(self.units, self.receipts(self.units)):
            wanted = without.get(unit.number, {})
            if receipt is None or receipt["without"].keys() - wanted.keys():
                again.append(unit)
            elif receipt["without"] != wanted:
                leave_out(self.root, unit, wanted, self.marks)
        return again

    def changes(self) -> dict[str, int]:
        """How many records were added, removed and changed since the last extraction."""
        before, now = self.scratch.before(_IDENTITY), identities(self.root)
        same_id = np.isin(now["id"], before["id"])
        same = np.isin(now, before) if len(before) else np.zeros(len(now), bool)
        return {
            "added": int((~same_id).sum()),
            "removed": int((~np.isin(before["id"], now["id"])).sum()),
            "changed": int((same_id & ~same).sum()),
        }

    def after_crash(self, error: CrashError, in_a_row: int) -> Extraction:
        """This extraction without what a worker died of.

        Args:
            in_a_row: how many workers have died since a unit was last finished.

        Raises:
            CrashError: it was killed from outside, or what it was doing isn't known, or it dies of everything.
        """
        note = self.scratch.last_note(error.pid)
        if note is None:
            raise CrashError(f"{error}{_GO_ON}")
        unit, stage, source, modality = note
        doing = f"{stage.split()[0]} of {modality or 'records'}, {self.source.choice.privacy.shown(source)}"
        if error.signal in _KILLED_FROM_OUTSIDE or stage in UNIT_STAGES:
            memory = "; if memory ran out, use fewer --workers" if error.signal else ""
            raise CrashError(f"{error} during {doing}{memory}{_GO_ON}")
        if in_a_row >= MAX_CRASHES:
            raise CrashError(
                f"{error} during {doing}, and {in_a_row - 1} others before it with no unit finished: "
                f"is what decodes or encodes broken?{_GO_ON}"
            )
        if stage == "encode":
            scratch = replace(self.scratch, alone=self.scratch.alone | {unit})
        else:
            stage = stage.split()[0]
            mark = self.marks.of(self.units[unit])
            crash = (mark, source, modality, stage, f"{error} at the stage {stage} of this medium")
            scratch = replace(self.scratch, crashed=(*self.scratch.crashed, crash))
        scratch.write_crashes()
        return replace(self, scratch=scratch)


def _scratch(root: Place, source: Source, config: ExtractConfig) -> Scratch:
    return Scratch(root, source.folder, timeout=config.timeout, hides_names=config.privacy.hides_names)


_GO_ON = ". What was finished is kept: run the same command again to go on"


def for_another_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a data set without what was meant for one run."""
    extract = {key: value for key, value in config.get("extract", {}).items() if key not in FREE + CHEAP}
    return {**config, "extract": extract}


def refuse_other_configuration(dataset: Dataset, extraction: Extraction) -> None:
    """What was extracted is not thrown away because of a flag, or because a model is another.

    Raises:
        UsageError: the data set was extracted with another configuration.
    """
    before = dict(_flat(dataset.config.get("extract", {})))
    now = dict(_flat(to_json(extraction.config)))
    different = [
        f"{key} = {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if key not in FREE + CHEAP + ENCODERS and key in before and before[key] != value
    ]
    spaces = dataset.modalities("extract") if "extract" in dataset.stages else {}
    different += [
        f"the {name} encoder {space}, now {extraction.encoders[name].space}"
        for name, space in spaces.items()
        if space != extraction.encoders[name].space
    ]
    if different:
        raise UsageError(
            f"{dataset.root} was extracted with {'; '.join(different)}: extract into another folder, "
            "or what that changes again with --overwrite"
        )


def summary_of(receipts: Sequence[Mapping[str, Any]], spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Counts in and out, so that nothing vanishes unseen: of media, by modality, in = used + filtered + duplicates +
    failed; of rows, rows = records + lost + kept out."""
    repeated = sum(why[0] == "repeated" for receipt in receipts for why in receipt["without"].values())
    return {
        "spaces": spaces,
        "rows": sum(receipt["records"] + receipt["lost"] + receipt["kept_out"] for receipt in receipts),
        "records": sum(receipt["records"] for receipt in receipts) - repeated,
        **{
            what: {name: sum(receipt[what][name] for receipt in receipts) for name in spaces}
            for what in ("media", "used", "filtered", "duplicates", "failed", "segments")
        },
        "repeated": repeated,
        "duplicate_records": sum(len(receipt["without"]) for receipt in receipts) - repeated,
        "kept_out": sum(receipt["kept_out"] for receipt in receipts),
        "failed_records": sum(receipt["failed_records"] for receipt in receipts),
        "errors": sum(receipt["errors"] for receipt in receipts),
        "dropped": sum(receipt["dropped"] for receipt in receipts),
        "redacted": dict(sorted(sum((Counter(receipt["redacted"]) for receipt in receipts), Counter()).items())),
        "columns": sorted({column for receipt in receipts for column in receipt["columns"]}),
        "kinds": {key: kind or "string" for key, kind in sorted(merge_kinds(r["kinds"] for r in receipts).items())},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def copies(root: Place, numbers: Sequence[int], dedup: str) -> dict[int, dict[str, list[str]]]:
    """Records that are to be left out, by unit and id: what they are, why, and the place or id of the one that stays.

    Of each record, some 40 bytes and its id are in memory, and its signatures where near duplicates are looked for.
    """
    columns = ["id", "source", *(["media"] if dedup != "none" else [])]
    tables = list(several(lambda n: read_table((root / shard_path("records", n)).read_bytes(), columns), numbers, root))
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    records = pa.concat_tables(tables).combine_chunks()
    ids = records["id"]
    found: dict[int, list[str]] = {
        record: ["repeated", "its id was used before", records["source"][first].as_py()]
        for record, first in duplicates.repeated(ids)
    }
    if dedup != "none":
        media = _media_table(records["media"], set(found))
        for twin in duplicates.exact(media) if dedup == "exact" else duplicates.near(media):
            found[twin.record] = ["duplicate", twin.reason, ids[twin.of].as_py()]
    without: dict[int, dict[str, list[str]]] = {}
    for record in sorted(found):
        unit = int(np.searchsorted(starts, record, side="right")) - 1
        without.setdefault(numbers[unit], {})[ids[record].as_py()] = found[record]
    return without


def _media_table(media: pa.ChunkedArray, but: set[int]) -> pa.Table:
    """A row for each usable medium of each record, but for some records: record, modality, content_hash, signature."""
    lists = media.combine_chunks()
    record = np.repeat(np.arange(len(lists)), lists.value_lengths().fill_null(0).to_numpy())
    items = pa.Table.from_struct_array(lists.flatten())
    table = items.append_column("record", pa.array(record, pa.int64()))
    kept = ~np.isin(record, list(but))
    return table.filter(pa.array(kept))


def identities(root: Place) -> NDArray[Any]:
    """Of each record on disk, hashes of its id and of its content."""
    paths = [root / shard_path("records", number) for number in _numbers(root)]
    return np.concatenate([np.empty(0, _IDENTITY), *several(_identities, paths, root)])


def _identities(path: Place) -> NDArray[Any]:
    if read_footer(path) is None:  # damaged
        return np.empty(0, _IDENTITY)
    table = read_table(path.read_bytes(), ["id", "digest"])
    part = np.empty(table.num_rows, _IDENTITY)
    part["id"] = [_hash(id) for id in table["id"].to_pylist()]
    part["digest"] = [int(digest, 16) for digest in table["digest"].to_pylist()]
    return part


def _hash(id: str) -> int:
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _numbers(root: Place) -> list[int]:
    """The numbers of the units on disk."""
    return sorted(int(path.stem.removeprefix("part-")) for path in (root / "records").glob("part-*.parquet"))
