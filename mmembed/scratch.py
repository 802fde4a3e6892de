"""What an extraction that is under way, or was killed, keeps in OUT/scratch/; gone when it is committed.

Features that still fit are taken over from files of earlier runs, by the hash of the medium's content; a medium whose
file has not changed since is not even read. And each worker leaves a note of what it is working on, so that a crash
names its record.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed import files, signatures
from mmembed.files import Stamp
from mmembed.shards import read_footer, read_table, shard_path, write_bytes, write_json
from mmembed.types import Media

FOLDER = "scratch"

_PLACE = np.dtype([("hash", "<u8"), ("file", "<u4"), ("row", "<u4"), ("rows", "<u4")])
_STAMP = np.dtype([("name", "<u8"), ("bytes", "<i8"), ("modified", "<i8"), ("hash", "S32")])
_CACHED_TABLES = 8


@dataclass(frozen=True)
class Scratch:
    """The scratch folder of a data set; picklable, and read on workers.

    Attributes:
        root: the data set's folder.
        base: what the names of stamped files are relative to: the input's folder, which may be moved.
        crashed: media that a worker died of, as (mark of the unit, source of the record, modality, stage), and how.
        alone: units in which one segment is encoded at a time, because a worker died while it encoded several.
    """

    root: Path
    base: str = ""
    crashed: tuple[tuple[str, str, str, str, str], ...] = ()
    alone: frozenset[int] = frozenset()

    @property
    def folder(self) -> Path:
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
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)

    def prepare(self, modalities: Iterable[str]) -> None:
        """Write what workers look retired files up with."""
        shutil.rmtree(self.folder / "notes", ignore_errors=True)
        for modality in modalities:
            self._write(f"places-{modality}", _places(self._retired(f"features/{modality}"), self.folder))
        self._write("stamps", _stamps(self._retired("stamps")))

    def _retired(self, folder: str) -> list[Path]:
        return sorted((self.folder / folder).glob("*.parquet"))

    def _write(self, name: str, array: NDArray[Any]) -> None:
        write_bytes(self.folder / f"{name}.bin", array.tobytes())

    def remember_before(self, records: NDArray[Any]) -> None:
        """Keep what the data set held before it is changed, unless an earlier attempt has."""
        if not (self.folder / "before.bin").exists():
            write_bytes(self.folder / "before.bin", records.tobytes())

    def before(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What `remember_before` kept; empty where there was nothing."""
        path = self.folder / "before.bin"
        return np.frombuffer(path.read_bytes() if path.exists() else b"", dtype)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

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
        return _find(_load(self.folder / f"places-{modality}.bin", _PLACE), "hash", _number(content_hash))

    def has_features(self, modality: str) -> bool:
        """Whether an earlier run left any."""
        return len(_load(self.folder / f"places-{modality}.bin", _PLACE)) > 0

    def name_of(self, location: str) -> str:
        """A file as stamps name it."""
        return location.removeprefix(self.base.rstrip("/") + "/")

    def content_hash(self, media: Media) -> str | None:
        """The hash of a medium that is a file of its own, where the file's stamp is still what an earlier run saw."""
        if media.content is not None or media.part:
            return None
        name, stamp = self.name_of(media.location), files.stamp(media.location)
        stamps = _load(self.folder / "stamps.bin", _STAMP)
        if (found := _find(stamps, "name", _number_of_name(name))) is None:
            return None
        known = Stamp(int(found["bytes"]), int(found["modified"])) == stamp and stamp != files.NO_FILE
        return (found["hash"].decode() or None) if known else None

    def attempts(self, record: str, modality: str) -> int:
        """How often a medium, or a record (modality ""), failed before; of a record without an id, by its source."""
        return _attempts(tuple(_listed(self.folder / "errors"))).get((record, modality), 0)

    def death(self, source: str, modality: str, stage: str) -> str | None:
        """How a worker died of this medium at a stage; None where none did."""
        return next((how for _, *what, how in self.crashed if what == [source, modality, stage]), None)

    def _retired_file(self, folder: str, number: int) -> Path:
        return _listed(self.folder / folder)[number]

    # Notes of what workers do.

    def note(self, unit: int, stage: str, source: str, modality: str) -> None:
        """Leave a note of what this process is working on; it stays when the process dies."""
        text = json.dumps([unit, stage, source, modality]).encode()
        os.pwrite(_note_file(self.folder / "notes"), len(text).to_bytes(4, "little") + text, 0)

    def last_note(self, pid: int) -> tuple[int, str, str, str] | None:
        """The note of a process that died: unit, stage, source of the record and modality."""
        try:
            data = (self.folder / "notes" / str(pid)).read_bytes()
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
            found = json.loads((self.folder / "crashes.json").read_text("utf-8"))
        except FileNotFoundError:
            return self
        crashed = tuple(tuple(crash) for crash in found["crashed"] if crash[0] in marks)
        return replace(self, crashed=crashed, alone=frozenset(found["alone"]))


def _places(paths: list[Path], folder: Path) -> NDArray[Any]:
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


def _failed_ids(path: Path, modality: str) -> set[str]:
    if not path.exists():
        return set()
    return {row["id"] for row in read_table(path.read_bytes()).to_pylist() if row["modality"] == modality}


def _stamps(paths: list[Path]) -> NDArray[Any]:
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


def _load(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of the scratch folder, in pages that all processes share."""
    return _mapped(path, dtype, files.stamp(str(path)))


@lru_cache(maxsize=8)
def _mapped(path: Path, dtype: np.dtype[Any], stamp: Stamp) -> NDArray[Any]:
    return np.empty(0, dtype) if stamp.bytes <= 0 else np.memmap(path, dtype, mode="r")


def _table(path: Path) -> pa.Table:
    return _cached_table(path, files.stamp(str(path)))


@lru_cache(maxsize=_CACHED_TABLES)
def _cached_table(path: Path, stamp: Stamp) -> pa.Table:
    return read_table(path.read_bytes())


def _listed(folder: Path) -> list[Path]:
    return _cached_list(folder, files.stamp(str(folder)))


@lru_cache(maxsize=8)
def _cached_list(folder: Path, stamp: Stamp) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


@lru_cache(maxsize=_CACHED_TABLES)
def _signatures(path: Path) -> dict[tuple[str, str], bytes]:
    footer = read_footer(path) or {}
    rows = _table(path)["media"].to_pylist() if footer.get("signatures") == signatures.VERSION else []
    return {(item["modality"], item["content_hash"]): item["signature"] for row in rows for item in row}


@lru_cache(maxsize=2)
def _attempts(paths: tuple[Path, ...]) -> dict[tuple[str, str], int]:
    rows = (row for path in paths for row in read_table(path.read_bytes()).to_pylist())
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["id"] or row["source"], row["modality"])
        found[key] = max(found.get(key, 0), row["attempts"])
    return found


@lru_cache(maxsize=2)
def _note_file(folder: Path) -> int:
    """The open file of this process's notes."""
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / str(os.getpid()), os.O_RDWR | os.O_CREAT)
