"""What an extraction that is under way, or was killed, keeps in OUT/scratch/; gone when it is committed.

Features that still fit are taken over from files of earlier runs, by the hash of the medium's content; a medium whose
file has not changed since is not even read. And each worker leaves a note of what it is working on, so that a crash
names its record.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed import files, signatures
from mmembed.files import Place, Stamp
from mmembed.shards import (
    fetched,
    fingerprint,
    move,
    read_bytes,
    read_footer,
    read_table,
    remove_folder,
    shard_path,
    write_bytes,
    write_json,
)
from mmembed.types import Media
from mmembed.watch import watch

FOLDER = "scratch"

_PLACE = np.dtype([("hash", "<u8"), ("file", "<u4"), ("row", "<u4"), ("rows", "<u4")])
_STAMP = np.dtype([("name", "<u8"), ("bytes", "<i8"), ("modified", "<i8"), ("hash", "S32")])
_CACHED_TABLES = 8
_NOTE_BYTES = 4092  # with its length a page


UNIT_STAGES = ("read", "write")
"""Stages of a whole unit: what a worker died of there is no medium."""


class _Stuck(threading.local):
    """What workers elsewhere were stuck at, in the unit that this thread works on."""

    unit: str = ""  # its fingerprint
    crashed: Sequence[tuple[str, ...]] = ()
    alone: bool = False


_stuck = _Stuck()


@dataclass(frozen=True)
class Scratch:
    """The scratch folder of a data set; picklable, and read on workers.

    Attributes:
        root: the data set's folder.
        notes: a folder of this machine for notes of what workers do; None where they run elsewhere: then one that was
            stuck says so here.
        timeout: seconds that may pass between two notes; 0: any.
        base: what the names of stamped files are relative to: the input's folder, which may be moved.
        hides_names: whether a hash stands for each of them, for they may say who is meant.
        crashed: media that a worker died of, as (mark of the unit, source of the record, modality, stage), and how.
        alone: units in which one segment is encoded at a time, because a worker died while it encoded several.
    """

    root: Place
    base: str = ""
    notes: Path | None = None
    timeout: float = 0.0
    hides_names: bool = False
    crashed: tuple[tuple[str, str, str, str, str], ...] = ()
    alone: frozenset[int] = frozenset()

    @property
    def folder(self) -> Place:
        """Where it lies."""
        return self.root / FOLDER

    # What the launcher does before a run.

    def retire(self, number: int, marks: Mapping[str, str]) -> None:
        """Move the files of a unit here: what of them still fits will be taken over.

        Args:
            marks: by modality, what features that fit are marked with.
        """
        receipt = read_footer(self.root / shard_path("records", number))
        unit = receipt["fingerprint"] if receipt else None
        features = {f"features/{modality}": mark for modality, mark in marks.items()}
        # The receipt moves last: files without one are those of an attempt that was killed, and may be without the
        # errors that belong to them.
        for folder in ["errors", "stamps", *features, "records"]:
            path, target = self.root / shard_path(folder, number), self.folder / folder / f"{unit}-{number:05d}.parquet"
            found = read_footer(path)
            if not found or found["fingerprint"] != unit or found.get("modality") != features.get(folder):
                path.unlink(missing_ok=True)
                continue
            move(path, target)

    def prepare(self, modalities: Iterable[str]) -> None:
        """Write what workers look retired files up with."""
        for remembered in (_mapped, _cached_table, _cached_list, _signatures, _attempts):
            remembered.cache_clear()  # of an earlier run, where a stamp doesn't tell
        for modality in modalities:
            self._write(f"places-{modality}", _places(self._retired(f"features/{modality}"), self.folder))
        self._write("stamps", _stamps(self._retired("stamps")))

    def _retired(self, folder: str) -> list[Place]:
        return sorted((self.folder / folder).glob("*.parquet"), key=str)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        file = io.BytesIO()  # of .npy, which is never empty: Beam can't write such a file to S3
        np.save(file, array, allow_pickle=False)
        write_bytes(self.folder / f"{name}.npy", file.getbuffer())

    def remember_before(self, records: NDArray[Any]) -> None:
        """Keep what the data set held before it is changed, unless an earlier attempt has."""
        if not (self.folder / "before.npy").exists():
            self._write("before", records)

    def before(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What `remember_before` kept; empty where there was nothing."""
        return _array(self.folder / "before.npy", dtype)

    def pieces(self) -> int:
        """How many pieces of media are done."""
        return sum(1 for _ in (self.folder / "pieces").glob("*.parquet"))

    def remove(self) -> None:
        """Remove all of it."""
        remove_folder(self.folder)

    # What workers ask.

    def features(self, modality: str, content_hash: str) -> pa.Table | None:
        """The rows of features of a medium that an earlier run left, None where it left none."""
        if (place := self._place(modality, content_hash)) is None:
            return None
        table = _table(self._retired_file(f"features/{modality}", int(place["file"])))
        rows = table.slice(int(place["row"]), int(place["rows"]))
        return rows if rows["content_hash"][0].as_py() == content_hash else None

    def signature(self, modality: str, content_hash: str) -> bytes | None:
        """The signature of a medium whose features an earlier run left, None where it left none."""
        if (place := self._place(modality, content_hash)) is None:
            return None
        path = self._retired_file(f"features/{modality}", int(place["file"]))
        return _signatures(self.folder / "records" / path.name).get((modality, content_hash))

    def _place(self, modality: str, content_hash: str) -> Any:
        """Where a medium's features are, a row of _PLACE; None where there are none."""
        return _find(_load(self.folder / f"places-{modality}.npy", _PLACE), "hash", _number(content_hash))

    def has_features(self, modality: str) -> bool:
        """Whether an earlier run left any."""
        return len(_load(self.folder / f"places-{modality}.npy", _PLACE)) > 0

    def name_of(self, location: str) -> str:
        """A file as stamps name it."""
        name = location.removeprefix(self.base.rstrip("/") + "/")
        return f"{_number_of_name(name):016x}" if self.hides_names else name

    def content_hash(self, media: Media) -> str | None:
        """The hash of a medium that is a file of its own, where the file's stamp is still what an earlier run saw."""
        if media.content is not None or media.part:
            return None
        name, stamp = self.name_of(media.location), files.stamp(media.location)
        stamps = _load(self.folder / "stamps.npy", _STAMP)
        if (found := _find(stamps, "name", _number_of_name(name))) is None:
            return None
        known = Stamp(int(found["bytes"]), int(found["modified"])) == stamp and stamp != files.NO_FILE
        return (found["hash"].decode() or None) if known else None

    def attempts(self, record: str, modality: str) -> int:
        """How often a medium, or a record (modality ""), failed before; of a record without an id, by its source."""
        return _attempts(tuple(_listed(self.folder / "errors"))).get((record, modality), 0)

    def death(self, source: str, modality: str, stage: str) -> str | None:
        """How a worker died of this medium at a stage; None where none did."""
        crashed = (*self.crashed, *_stuck.crashed)
        return next((how for _, *what, how in crashed if what == [source, modality, stage]), None)

    def is_alone(self, unit: int) -> bool:
        """Whether one segment of a unit is encoded at a time, because a worker died while it encoded several."""
        return unit in self.alone or _stuck.alone

    def _retired_file(self, folder: str, number: int) -> Place:
        return _listed(self.folder / folder)[number]

    # Notes of what workers do.

    def begin(self, number: int, unit: str, file: str) -> None:
        """A worker begins with a unit, or a part of it: it learns what others were stuck at.

        Args:
            unit: its fingerprint.
            file: that is read.
        """
        met = []
        if self.notes is None:
            met = [json.loads(bytes(read_bytes(path))) for path in (self.folder / "stuck").glob(f"{unit}-*")]
        _stuck.alone = any(stage == "encode" for *_, stage, _ in met)
        _stuck.crashed = [(*what, stage.split()[0], how) for *what, stage, how in met if stage != "encode"]
        _stuck.unit = unit
        self.note(number, "read", file, "")

    def note(self, unit: int, stage: str, source: str, modality: str) -> None:
        """Leave a note of what this process is working on; it stays when the process dies."""
        if self.notes is not None:
            text = json.dumps([unit, stage, source, modality]).encode()[:_NOTE_BYTES]
            note = _note_file(self.notes)
            note[: len(text) + 4] = len(text).to_bytes(4, "little") + text
        watch.begin(self.timeout, partial(self._say_stuck, _stuck.unit, stage, source, modality))

    def rest(self) -> None:
        """The unit is done."""
        watch.rest()

    def _say_stuck(self, unit: str, stage: str, source: str, modality: str) -> None:
        """Before a worker ends itself: whoever gets its unit next must know. On this machine the note says it."""
        if not unit or self.notes is not None or stage in UNIT_STAGES:
            return
        how = f"a worker process was stuck for {self.timeout:g} seconds at the stage {stage.split()[0]} of this medium"
        name = f"{unit}-{fingerprint(stage, source, modality)}.json"
        write_json(self.folder / "stuck" / name, [unit, source, modality, stage, how])

    def last_note(self, pid: int) -> tuple[int, str, str, str] | None:
        """The note of a process that died: unit, stage, source of the record and modality."""
        try:
            data = (self.notes or Path()).joinpath(str(pid)).read_bytes()
            unit, stage, source, modality = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])
        except (OSError, ValueError):
            return None
        return unit, stage, source, modality

    def write_crashes(self) -> None:
        """Keep what crashed: a run that is killed must not meet it again."""
        write_json(self.folder / "crashes.json", {"crashed": self.crashed, "alone": sorted(self.alone)})

    def with_crashes(self, marks: Collection[str]) -> Scratch:
        """This scratch with the crashes that an earlier attempt met in units that are still the same.

        Args:
            marks: of the units.
        """
        try:
            found = json.loads(bytes(read_bytes(self.folder / "crashes.json")))
        except FileNotFoundError:
            return self
        crashed = tuple(tuple(crash) for crash in found["crashed"] if crash[0] in marks)
        return replace(self, crashed=crashed, alone=frozenset(found["alone"]))


def _places(paths: list[Place], folder: Place) -> NDArray[Any]:
    """Where the rows of each medium are, sorted by the hash of its content."""
    parts = [np.empty(0, _PLACE)]
    for number, path in enumerate(paths):
        table = read_table(path.read_bytes(), ["id", "content_hash", "segment", "span"])
        failed = _failed_ids(folder / "errors" / path.name, path.parent.name)
        rows = list(zip(table["id"].to_pylist(), table["content_hash"].to_pylist()))
        starts = _starts(rows, table["span"].to_pylist())
        ends = [*starts[1:], len(rows)]
        parts.append(
            np.array(
                [
                    (_number(rows[start][1]), number, start, end - start)
                    for start, end in zip(starts, ends)
                    if rows[start][0] not in failed  # of a medium that was decoded in part, the failure must come again
                ],
                _PLACE,
            )
        )
    places = np.concatenate(parts)
    return places[np.argsort(places["hash"], kind="stable")]


def _starts(keys: list[tuple[str, str]], spans: list[list[float]]) -> list[int]:
    """The first rows of media: another key, or the same content once more, from its first span on."""
    starts: list[int] = []
    for row, key in enumerate(keys):
        if row == 0 or key != keys[row - 1] or spans[row] == spans[starts[-1]]:
            starts.append(row)
    return starts


def _failed_ids(path: Place, modality: str) -> set[str]:
    if not path.exists():
        return set()
    return {row["id"] for row in read_table(path.read_bytes()).to_pylist() if row["modality"] == modality}


def _stamps(paths: list[Place]) -> NDArray[Any]:
    parts = [np.empty(0, _STAMP)]
    for path in paths:
        rows = read_table(path.read_bytes()).to_pylist()
        parts.append(
            np.array(
                [
                    (_number_of_name(row["name"]), row["bytes"], row["modified"], (row["content_hash"] or "").encode())
                    for row in rows
                ],
                _STAMP,
            )
        )
    stamps = np.concatenate(parts)
    return stamps[np.argsort(stamps["name"], kind="stable")]


def _find(rows: NDArray[Any], column: str, key: np.uint64) -> Any:
    """The first of some rows, sorted by a column, that has the key there; None where none has."""
    start = int(np.searchsorted(rows[column], key))
    return rows[start] if start < len(rows) and rows[column][start] == key else None


def _number(content_hash: str) -> np.uint64:
    return np.uint64(int(content_hash[:16], 16))


def _number_of_name(name: str) -> np.uint64:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _load(path: Place, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of the scratch folder; of a local one, in pages that all processes share."""
    return _mapped(path, dtype, files.stamp(str(path)))


@lru_cache(maxsize=8)
def _mapped(path: Place, dtype: np.dtype[Any], stamp: Stamp) -> NDArray[Any]:
    return _array(path, dtype)


def _array(path: Place, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Of a file that may not be there, which is empty then."""
    try:
        with fetched(path) as local:
            found: NDArray[Any] = np.load(local, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return np.empty(0, dtype)
    return found


def _table(path: Place) -> pa.Table:
    return _cached_table(path, files.stamp(str(path)))


@lru_cache(maxsize=_CACHED_TABLES)
def _cached_table(path: Place, stamp: Stamp) -> pa.Table:
    return read_table(path.read_bytes())


def _listed(folder: Place) -> list[Place]:
    return _cached_list(folder, files.stamp(str(folder)))


@lru_cache(maxsize=8)
def _cached_list(folder: Place, stamp: Stamp) -> list[Place]:
    return sorted(folder.glob("*.parquet"), key=str)


@lru_cache(maxsize=_CACHED_TABLES)
def _signatures(path: Place) -> dict[tuple[str, str], bytes]:
    footer = read_footer(path) or {}
    rows = _table(path)["media"].to_pylist() if footer.get("signatures") == signatures.VERSION else []
    return {(item["modality"], item["content_hash"]): item["signature"] for row in rows for item in row}


@lru_cache(maxsize=2)
def _attempts(paths: tuple[Place, ...]) -> dict[tuple[str, str], int]:
    rows = (row for path in paths for row in read_table(path.read_bytes()).to_pylist())
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["id"] or row["source"], row["modality"])
        found[key] = max(found.get(key, 0), row["attempts"])
    return found


@lru_cache(maxsize=2)
def _note_file(folder: Path) -> mmap.mmap:
    """The file of this process's notes, mapped into memory: writing is no system call, and the file outlives us."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / str(os.getpid())).open("w+b") as file:
        file.truncate(_NOTE_BYTES + 4)
        return mmap.mmap(file.fileno(), _NOTE_BYTES + 4)
