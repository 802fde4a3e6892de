"""Embeddings to indexes: prepare (rows, the kind, its training), encode block by block, finish (merge, tune, write).

What a block gives depends on the embeddings and the configuration alone, and blocks are merged in their order: the
index is the same with one worker or many. Blocks that are done stay in index/parts/ until the end, so a run that was
killed goes on. FAISS never reads one of these files: what is kept on the way are plain arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed import kinds, tune
from mmembed.config import IndexConfig
from mmembed.dataset import Dataset
from mmembed.files import Place, listed, size
from mmembed.index import (
    VERSION,
    blocks,
    index_path,
    known_of,
    made_of,
    query_rows,
    rows_path,
    scoring_of,
    tuned_path,
    vectors_path,
)
from mmembed.kinds import BLOCK_ROWS, Kind
from mmembed.remote import RemotePath
from mmembed.shards import (
    checksum,
    fetched,
    fingerprint,
    is_sealed,
    move,
    read_bytes,
    replacing,
    write_bytes,
    write_json,
)
from mmembed.splits import HELD_OUT, TRAIN, position
from mmembed.tables import embeddings_schema, vectors_from_arrow
from mmembed.tune import Budget, Measured, Probes

Array = NDArray[np.float32]

PARTS = "index/parts"
"""What an index is made of on the way."""

PROBES = 1000
"""Queries of each modality that an index is measured with, at most."""

DRIFT = 0.01
"""A fall of recall, against what was measured when an index was trained, that is an alarm."""

BATCH_ROWS, BATCH_BYTES = 1 << 16, 1 << 30
"""Of a record batch of index/<modality>.arrow, at most, unless one file of embeddings has more: no array holds texts of
2 GB."""

_METADATA_KEY = "mmembed"
_GROWTH = 2  # an index that was trained on half as many rows is trained again


@dataclass(frozen=True, eq=False)
class Tuned:
    """What an index has learned from rows, and the probes that it was measured with; kept for rows that come later.

    Attributes:
        kind: of the index.
        radius: as of `kinds.codable`.
        state: as of `kinds.state_of`.
        probes: their truth is of the rows that it was trained with.
        about: JSON values: "mark", what it is good for; "rows", how many it was trained with; "embeddings", their
            fingerprint; "search" and "recall" of its operating point; "pilot", the points measured when its kind was
            chosen.
    """

    kind: Kind
    radius: float
    state: Mapping[str, Array]
    probes: Probes
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of what was learned, without what was measured."""
        state = {name: checksum(array.tobytes()) for name, array in self.state.items()}
        return fingerprint(self.kind.name, self.radius, state)

    def empty_index(self, dim: int) -> Any:
        """A FAISS index that takes rows of so many values, and holds none yet."""
        return kinds.restored(self.kind, self.state, dim + bool(self.radius), self.radius)

    def to_bytes(self) -> bytes:
        """As a safetensors file that knows its own checksum."""
        from safetensors.numpy import save

        names = sorted(set(self.probes.modalities.tolist()))
        tensors = {
            **{f"state.{name}": array for name, array in self.state.items()},
            "probes.queries": self.probes.queries,
            "probes.truth": self.probes.truth,
            "probes.modalities": np.searchsorted(names, self.probes.modalities).astype(np.int32),
        }
        about = {
            **self.about,
            "kind": self.kind.name,
            "radius": self.radius,
            "split": self.probes.split,
            "modalities": names,
        }
        about["checksum"] = _checksum(tensors, about)
        return save(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            {_METADATA_KEY: json.dumps(about, sort_keys=True)},
        )

    @classmethod
    def read(cls, path: Place) -> Tuned | None:
        """What `to_bytes` gave; None where there is no such file, or it is damaged: it can be made again."""
        from safetensors import SafetensorError, safe_open

        try:
            with fetched(path) as local, safe_open(local, framework="np") as file:
                about = json.loads((file.metadata() or {})[_METADATA_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if about.pop("checksum", "") != _checksum(tensors, about):
            return None
        names = np.array(about.pop("modalities"))
        probes = Probes(
            tensors["probes.queries"],
            names[tensors["probes.modalities"]],
            about.pop("split"),
            tensors["probes.truth"],
        )
        state = {name.removeprefix("state."): array for name, array in tensors.items() if name.startswith("state.")}
        return cls(Kind(about.pop("kind")), about.pop("radius"), state, probes, about)


def _checksum(tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {array.dtype} {array.shape} {checksum(array.tobytes())}" for name, array in sorted(tensors.items())
    ]
    return fingerprint(parts, about)


@dataclass(frozen=True)
class Indexing:
    """Builds the indexes of a data set; a picklable value, whose methods are called on workers.

    Attributes:
        retrain: modalities whose index is trained again, though what it had learned could serve.
        block_rows: rows that are encoded together.
    """

    dataset: Dataset
    config: IndexConfig
    retrain: tuple[str, ...] = ()
    block_rows: int = BLOCK_ROWS

    @cached_property
    def made(self) -> dict[str, dict[str, Any]]:
        """By modality, see `mmembed.index.made_of`."""
        return {name: made_of(self.dataset, name, self.config.hubness) for name in self.dataset.modalities("project")}

    @cached_property
    def budgets(self) -> dict[str, Budget]:
        """What of the budget each modality's index gets.

        Raises:
            UsageError: it is too small for any indexes of so many rows.
        """
        sizes = {name: (made["rows"], _width(made)) for name, made in self.made.items() if made["rows"]}
        return dict.fromkeys(self.made, self._asked) | tune.shared_out(self._asked, sizes)

    @property
    def _asked(self) -> Budget:
        """What the user asked for, of all indexes together."""
        return Budget(self.config.recall, self.config.memory_bytes, self.config.milliseconds)

    def prepare(self, modality: str) -> list[tuple[str, int]]:
        """Write the rows, and what the index has learned; gives the blocks that are to be encoded, one at least."""
        made = self.made[modality]
        radius = self._write_rows(modality, made)
        vectors = self._vectors(modality)
        tuned = None if modality in self.retrain else self._kept(modality, made, radius)
        tuned = tuned or self._learn(modality, made, vectors, radius)
        write_bytes(self._part(tuned_path(modality)), tuned.to_bytes())
        folder = self._folder(modality, tuned)
        for other in listed(self.dataset.root / PARTS):
            if other.parent.name.startswith(f"{modality}-") and other.parent != folder:
                other.unlink()  # of other rows, or of an index that learned something else
        count = 1 if tuned.kind.is_exact or tuned.kind.is_graph else -(-len(vectors) // self.block_rows)
        return [(modality, number) for number in range(max(1, count))]

    def encode(self, block: tuple[str, int]) -> tuple[str, int]:
        """Write the codes of a block of rows; nothing where the index takes rows as they are."""
        modality, number = block
        tuned, folder = self._open(modality)
        path = folder / f"block-{number:05d}.npy"
        if not (tuned.kind.is_exact or tuned.kind.is_graph or path.exists()):
            rows = self._block(modality, number)
            index = tuned.empty_index(rows.shape[1])
            codes = kinds.encode(index, tuned.kind, rows, tuned.radius)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, codes, allow_pickle=False)
        return block

    def finish(self, modality: str, numbers: Sequence[int]) -> None:
        """Merge the blocks, measure the index, choose its operating point and write all that belongs to it; its entry
        goes to index/parts/<modality>.json."""
        made = self.made[modality]
        tuned, folder = self._open(modality)
        kind, radius, vectors = tuned.kind, tuned.radius, self._vectors(modality)
        index = tuned.empty_index(vectors.shape[1])
        if kind.is_exact or kind.is_graph:
            rows = (self._block(modality, number) for number in range(-(-len(vectors) // self.block_rows)))
            index = kinds.grow(index, kind, rows, radius)
        else:
            codes = (_codes(folder / f"block-{number:05d}.npy") for number in sorted(numbers))
            index = kinds.fill(index, kind, codes)
        now = tuned.probes
        if not kind.is_exact and tuned.about["embeddings"] != made["embeddings"]:  # rows have come or gone since
            now = replace(now, truth=tune.exact_search(now.queries, vectors))
        curve, chosen = self._curve(index, replace(tuned, probes=now), vectors)
        path = self._part(index_path(modality))
        _write_faiss(path, index)
        about = {**tuned.about, **({} if "recall" in tuned.about else _operating(chosen))}
        write_bytes(self._part(tuned_path(modality)), replace(tuned, about=about).to_bytes())
        entry = {
            **made,
            "kind": kind.name,
            "radius": radius,
            "bytes": size(path),
            "search": dict(chosen.search),
            "recall": dict(chosen.recall),
            "milliseconds": chosen.milliseconds,
            "asked": asdict(self.budgets[modality]),
            "probes": tuned.probes.counts,
            "split": tuned.probes.split,
            "truth": tuned.probes.fingerprint,
            "trained_rows": tuned.about["rows"],
            "drift": self._drift(replace(tuned, probes=now), index, vectors),
            "curve": [*tuned.about["pilot"], *(point.to_json(point is chosen) for point in curve)],
        }
        write_json(self._part(f"{modality}.json"), entry)

    def publish(self, modality: str) -> None:
        """Put what `finish` left where it belongs; until then, what was there is as it was."""
        for path in self.files(self.entry(modality), modality):
            move(self._part(path), self.dataset.root / path)

    def entry(self, modality: str) -> dict[str, Any]:
        """What `finish` left."""
        found: dict[str, Any] = json.loads(bytes(read_bytes(self._part(f"{modality}.json"))))
        return found

    def files(self, entry: Mapping[str, Any], modality: str) -> dict[str, int | None]:
        """The files of a modality's index, and their rows."""
        paths = [index_path(modality), rows_path(modality)]
        if not Kind(entry["kind"]).is_exact:
            paths += [vectors_path(modality), tuned_path(modality)]
        return {path: entry["rows"] if path == index_path(modality) else None for path in paths}

    def _write_rows(self, modality: str, made: Mapping[str, Any]) -> float:
        """Write what rows say, and the rows themselves; gives the radius (see `kinds.codable`)."""
        longest = 0.0
        summary = self.dataset.stage("project").summary
        schema = embeddings_schema(made["space"]["dim"], summary["dtype"], summary["kinds"])
        with (
            replacing(self._part(rows_path(modality))) as known,
            replacing(self._part(vectors_path(modality))) as matrix,
            matrix.open("wb") as file,
            pa.ipc.new_file(str(known), known_of(schema.empty_table(), summary["kinds"]).schema) as writer,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": (made["rows"], _dim(made))}
            np.lib.format.write_array_header_1_0(file, header)

            def tables() -> Iterator[pa.Table]:
                nonlocal longest
                for _, table, rows in blocks(self.dataset, modality, made["terms"]):
                    file.write(np.ascontiguousarray(rows, "<f4").data)
                    longest = max(longest, float(np.linalg.norm(rows, axis=1).max(initial=0)))
                    yield known_of(table, summary["kinds"])

            for batch in _in_batches(tables()):
                writer.write(batch)
        return longest * (1 + 1e-6) if made["terms"] else 0.0

    def _vectors(self, modality: str) -> Array:
        """All rows, mapped into memory; of remote ones a copy."""
        path = self._part(vectors_path(modality))
        if isinstance(path, RemotePath) or is_sealed(path):
            return _copied(path, fingerprint(self.made[modality]))
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _block(self, modality: str, number: int) -> Array:
        """The rows of a block."""
        start = number * self.block_rows
        if is_sealed(self._part(vectors_path(modality))):
            return np.array(self._vectors(modality)[start : start + self.block_rows])
        with self._part(vectors_path(modality)).open("rb") as file:
            np.lib.format.read_magic(file)
            (count, width), _, _ = np.lib.format.read_array_header_1_0(file)
            file.seek(4 * start * width, os.SEEK_CUR)
            rows = min(self.block_rows, count - start)
            return np.frombuffer(file.read(4 * rows * width), np.float32).reshape(rows, width)

    def _part(self, path: str) -> Place:
        """Where a file of index/ lies until it is published."""
        return self.dataset.root / PARTS / path.rsplit("/", 1)[-1]

    def _folder(self, modality: str, tuned: Tuned) -> Place:
        """Of the blocks that are encoded with what an index has learned."""
        return self._part(f"{modality}-{fingerprint(tuned.name, self.made[modality]['embeddings'])[:16]}")

    def _open(self, modality: str) -> tuple[Tuned, Place]:
        tuned = Tuned.read(self._part(tuned_path(modality)))
        assert tuned is not None  # `prepare` has just written it
        return tuned, self._folder(modality, tuned)

    def _mark(self, made: Mapping[str, Any]) -> str:
        """Of what must be equal for an index to learn the same, but for its rows."""
        return fingerprint(VERSION, made["space"], made["hubness"], made["terms"], asdict(self._asked))

    def _kept(self, modality: str, made: Mapping[str, Any], radius: float) -> Tuned | None:
        """What the index has learned before, by a run that was killed or by the last one, if it is good for the rows of
        now: as many, within limits, none longer, and of the same budget."""
        rows, memory = made["rows"], self.budgets[modality].memory
        for path in (self._part(tuned_path(modality)), self.dataset.root / tuned_path(modality)):
            tuned = Tuned.read(path)
            if tuned is None or tuned.about["mark"] != self._mark(made) or tuned.kind.is_exact:
                continue
            is_large = bool(memory) and tuned.kind.bytes(rows, _width(made)) > memory
            is_near = tuned.about["rows"] / _GROWTH < rows < tuned.about["rows"] * _GROWTH
            if is_near and not is_large and radius <= tuned.radius:
                return tuned
        return None

    def _learn(self, modality: str, made: Mapping[str, Any], vectors: Array, radius: float) -> Tuned:
        """Choose a kind on a sample of the rows, and train it on another."""
        about = {
            "mark": self._mark(made),
            "rows": len(vectors),
            "embeddings": made["embeddings"],
            "pilot": [],
        }
        budget = self.budgets[modality]
        if not len(vectors) or tune.is_exact_enough(len(vectors), _width(made), budget):
            return Tuned(tune.FLAT, 0.0, {}, _no_probes(_dim(made)), about)
        queries, modalities, split = self._queries(modality, made)
        sample = np.array(vectors[kinds.sample_of(len(vectors), tune.PILOT_ROWS, seed=1)])
        probes = tune.with_truth(queries, modalities, split, sample)
        kind, pilot = tune.choose(len(vectors), sample, probes, budget, radius)
        about |= {"pilot": [point.to_json(False) for point in pilot]}
        if kind.is_exact:
            return Tuned(kind, 0.0, {}, _no_probes(_dim(made)), about)
        rows = np.array(vectors[kinds.sample_of(len(vectors), kinds.training_rows(kind, len(vectors)))])
        state = kinds.state_of(kinds.train(kind, rows, radius))
        probes = replace(probes, truth=tune.exact_search(queries, vectors))
        return Tuned(kind, radius, state, probes, about)

    def _curve(self, index: Any, tuned: Tuned, vectors: Array) -> tuple[list[Measured], Measured]:
        """Operating points of the index of all rows, and the one that it is to be asked at."""
        kind, radius, dim = tuned.kind, tuned.radius, vectors.shape[1]
        if kind.is_exact:
            only = Measured(
                kind, {}, len(vectors), kind.bytes(len(vectors), dim), {}, 1.0, kind.milliseconds(len(vectors), dim, {})
            )
            only = tune.timed(only, index, vectors, np.array(vectors[: tune.TIMED]), radius)
            return [only], only
        points = tune.measure(index, kind, vectors, tuned.probes, radius, len(vectors))
        points = [tune.timed(point, index, vectors, tuned.probes.queries, radius) for point in points]
        best = tune.cheapest(points, self.config.recall) or max(points, key=lambda point: point.sure)
        return points, best

    def _drift(self, tuned: Tuned, index: Any, vectors: Array) -> dict[str, list[float]]:
        """By modality of queries, recall when the index was trained and now, at the same point and by the same probes,
        where it has fallen."""
        if "recall" not in tuned.about:
            return {}
        scores, _ = kinds.search(
            index, tuned.kind, vectors, tuned.probes.queries, kinds.RECALL_K, tuned.about["search"], tuned.radius
        )
        now, before = tuned.probes.recall(scores), tuned.about["recall"]
        return {name: [before[name], now[name]] for name in now if now[name] < before[name] - DRIFT}

    def _queries(self, modality: str, made: Mapping[str, Any]) -> tuple[Array, NDArray[np.str_], str]:
        """What the index is measured with: means of records' embeddings in the other modalities, of held-out records
        where there are any, else of those that were fitted; in its own modality where there is no other."""
        others = [name for name in self.dataset.modalities("project") if name != modality]
        for split, names in ((HELD_OUT, others), (TRAIN, others), (TRAIN, [modality]), (HELD_OUT, [modality])):
            found = {name: self._means(name, split) for name in names}
            found = {name: rows for name, rows in found.items() if len(rows)}
            if found:
                break
        queries = [query_rows(rows, {name: 1.0}, made["terms"]) for name, rows in found.items()]
        modalities = np.repeat(np.array(list(found)), [len(rows) for rows in queries])
        return np.concatenate(queries), modalities, split if modality not in found else "own rows"

    def _means(self, modality: str, split: str) -> Array:
        """Means of the embeddings of at most PROBES records of a split, chosen by a hash of their ids; float32 (q,
        k)."""
        scoring = scoring_of(self.dataset)
        means, places = np.empty((0, self.dataset.modalities("project")[modality].dim), np.float32), np.empty(0)
        for _, table in self.dataset.tables(f"embeddings/{modality}"):
            ids, splits = table["id"].to_pylist(), table["split"].to_pylist()
            starts = np.array([row for row, id in enumerate(ids) if row == 0 or id != ids[row - 1]], np.int64)
            if not len(starts):
                continue
            found = scoring.means(vectors_from_arrow(table["embedding"]), starts)
            chosen = [place for place, row in enumerate(starts) if splits[row] == split]
            means = np.concatenate([means, found[chosen]])
            places = np.concatenate([places, [position(ids[starts[place]], "probe") for place in chosen]])
            first = np.argsort(places, kind="stable")[:PROBES]
            means, places = means[first], places[first]
        return means


def _dim(made: Mapping[str, Any]) -> int:
    return int(made["space"]["dim"]) + len(made["terms"])


def _width(made: Mapping[str, Any]) -> int:
    """Of a row as a compressed index takes it, see `kinds.codable`."""
    return _dim(made) + bool(made["terms"])


def _no_probes(dim: int) -> Probes:
    return Probes(np.empty((0, dim), np.float32), np.empty(0, np.str_), "", np.empty((0, kinds.RECALL_K), np.float32))


def _operating(point: Measured) -> dict[str, Any]:
    return {"search": dict(point.search), "recall": dict(point.recall)}


def _in_batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables put together, as long as they make a record batch: a filter takes a batch at a time."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        rows, size = rows + table.num_rows, size + table.nbytes
        if waiting and (rows > BATCH_ROWS or size > BATCH_BYTES):
            yield _together(waiting)
            waiting, rows, size = [], table.num_rows, table.nbytes
        waiting.append(table)
    if waiting:
        yield _together(waiting)


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _codes(path: Place) -> NDArray[np.uint8]:
    with fetched(path) as local:
        found: NDArray[np.uint8] = np.load(local, allow_pickle=False)
    return found


@lru_cache(maxsize=1)
def _copied(path: Place, made: str) -> Array:
    """The matrix of a remote or encrypted .npy file, in memory: of a remote one, that of a file which has no name any
    more, and which the system can take back.

    Args:
        made: what it was made of, for another one under the same name.
    """
    with fetched(path) as local:
        found: Array = np.load(local, mmap_mode="r", allow_pickle=False)
    return found


def _write_faiss(path: Place, index: Any) -> None:
    import faiss

    with replacing(path) as temporary:
        faiss.write_index(index, str(temporary))
