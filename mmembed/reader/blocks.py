"""Values of rows in memory: those of one unit, or of all; units are read ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from mmembed.errors import DatasetError
from mmembed.reader.columns import Batch, Column, Values, joined, taken, values_of
from mmembed.reader.memory import Shared
from mmembed.reader.order import Numbers
from mmembed.reader.samples import KEYS, Kept, digest
from mmembed.reader.source import Source
from mmembed.shards import shard_path

Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True, eq=False)
class Block:
    """Values of rows that follow each other.

    Attributes:
        firsts: the number of the first row by modality.
        values: by modality and name of a column.
    """

    firsts: Mapping[str, int]
    values: Mapping[str, Mapping[str, Values]]

    def batch(self, columns: Sequence[Column], rows: Mapping[str, Numbers]) -> Batch:
        """The values of some samples; all their rows must be in the block.

        Args:
            rows: see `mmembed.reader.samples.Samples.rows_of`.
        """
        firsts = self.firsts
        here = {
            name: np.where(some < 0, -1, some - firsts[name]) if firsts[name] else some for name, some in rows.items()
        }
        found: Batch = {}
        for column in columns:
            of_one, is_json = column.modality, column.kind == "json"
            if of_one:
                found[column.name] = taken(self.values[of_one][column.name], here[of_one], is_json)
            else:
                found[column.name] = self._of_records(column, here)
        return found

    def _of_records(self, column: Column, here: Mapping[str, Numbers]) -> Any:
        """What each of a record's segments says: that of the first modality that it has."""
        first = {name: rows if rows.ndim == 1 else rows[:, 0] for name, rows in here.items()}
        has = np.stack([rows >= 0 for rows in first.values()])
        if has[0].all():
            name = next(iter(first))
            return taken(self.values[name][column.name], first[name], column.kind == "json")
        whose = has.argmax(axis=0)
        parts, order = [], []
        for place, (name, rows) in enumerate(first.items()):
            order.append(np.flatnonzero(whose == place))
            parts.append(taken(self.values[name][column.name], rows[order[-1]], column.kind == "json"))
        back = np.argsort(np.concatenate(order))
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts)[back]
        together = [item for part in parts for item in part]
        return [together[place] for place in back]


@dataclass(frozen=True)
class UnitReader:
    """Reads the blocks of units.

    Attributes:
        nulls: names of columns that have a null anywhere.
    """

    source: Source
    columns: Sequence[Column]
    modalities: Sequence[str]
    nulls: frozenset[str]

    def __call__(self, unit: int, kept: Kept) -> Mapping[str, Mapping[str, Values]]:
        """The values of a unit's rows by modality, each file compared with its checksum.

        Raises:
            DatasetError: a file is missing, or not the one that the manifest names.
        """
        found: dict[str, dict[str, Values]] = {}
        for modality in self.modalities:
            wanted = [column for column in self.columns if column.modality in ("", modality)]
            found[modality] = {}
            tables = {"embeddings": self._embeddings(unit, modality, wanted, kept)}
            if any(column.folder == "features" for column in wanted):
                tables["features"] = self._features(unit, modality, tables["embeddings"])
            for column in wanted:
                found[modality][column.name] = values_of(
                    tables[column.folder], column, kept.rows[modality], column.name in self.nulls
                )
        return found

    @property
    def unit_bytes(self) -> int:
        """The bytes of the files of a unit, at most."""
        folders = {f"embeddings/{name}" for name in self.modalities}
        folders |= {f"features/{one.modality}" for one in self.columns if one.folder == "features"}
        known = self.source.dataset
        return sum(max(file.bytes for file in known.below(folder).values()) for folder in folders)

    def _embeddings(self, unit: int, modality: str, wanted: Sequence[Column], kept: Kept) -> pa.Table:
        path = shard_path(f"embeddings/{modality}", unit)
        leaves = [column.leaf for column in wanted if column.folder == "embeddings"]
        table = self.source.read(path, [*dict.fromkeys([*KEYS, *leaves])])
        if digest(table) != kept.digests[modality]:
            raise DatasetError(f"{self.source.name(path)} changed while it was read: open the data set again")
        return table

    def _features(self, unit: int, modality: str, embeddings: pa.Table) -> pa.Table:
        path = shard_path(f"features/{modality}", unit)
        table = self.source.read(path, ["id", "segment", "feature"])
        if not all(table[name].equals(embeddings[name]) for name in ("id", "segment")):
            raise DatasetError(
                f"{self.source.name(path)} has other rows than its embeddings: run `mmembed project` again"
            )
        return table


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Read], ahead: int, threads: int
) -> Iterator[tuple[Item, Read]]:
    """Items and what is read of them, in their order, while so many of the next are being read."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Read]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    done, result = waiting.popleft()
                    yield done, result.result()
            while waiting:
                done, result = waiting.popleft()
                yield done, result.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Resident:
    """The values of all rows in memory; vectors where all processes of a loader see them.

    Attributes:
        block: with all rows.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Mapping[str, Numbers],
        vectors: Mapping[str, tuple[int, np.dtype[Any]]],
        units: Iterable[tuple[int, Mapping[str, Mapping[str, Values]]]],
        on_disk: bool,
    ) -> None:
        """Take them from units.

        Args:
            rows: the first of each unit, and how many there are, by modality.
            vectors: dimension and dtype of columns of vectors, by name.
        """
        self._shapes = {
            column.name: (int(rows[column.modality][-1]), *vectors[column.name])
            for column in columns
            if column.kind == "vector"
        }
        self._shared = Shared(sum(map(_size, self._shapes.values())), on_disk)
        matrices = self._matrices()
        parts: dict[tuple[str, str], list[Values]] = {}
        for unit, block in units:
            for modality, values in block.items():
                start, stop = rows[modality][unit : unit + 2]
                for name, some in values.items():
                    if name in matrices:
                        matrices[name][start:stop] = some
                    else:
                        parts.setdefault((modality, name), []).append(some)
        self._others = {key: joined(some) for key, some in parts.items()}
        self.block = self._block(list(rows))

    def __reduce__(self) -> Any:
        return _attached, ({**vars(self), "block": list(self.block.firsts)},)

    def _matrices(self) -> dict[str, Any]:
        found, start = {}, 0
        for name, (count, dim, dtype) in self._shapes.items():
            found[name] = np.frombuffer(self._shared.map, dtype, count * dim, start).reshape(count, dim)
            start += _size((count, dim, dtype))
        return found

    def _block(self, modalities: Sequence[str]) -> Block:
        values: dict[str, dict[str, Values]] = {name: {} for name in modalities}
        for name, matrix in self._matrices().items():
            matrix.flags.writeable = False
            values[name.split(".")[0]][name] = matrix
        for (modality, name), some in self._others.items():
            values[modality][name] = some
        return Block(dict.fromkeys(modalities, 0), values)


def _attached(state: dict[str, Any]) -> Resident | None:
    """What another process has read; None where that has ended, and its memory with it."""
    if state["_shared"] is None:
        return None
    found = Resident.__new__(Resident)
    vars(found).update(state)
    found.block = found._block(state["block"])
    return found


def _size(shape: tuple[int, int, np.dtype[Any]]) -> int:
    """The bytes of a matrix, so that the next begins where any dtype may."""
    count, dim, dtype = shape
    return -(-count * dim * dtype.itemsize // 64) * 64
