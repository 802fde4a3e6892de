"""Which rows of the embeddings make up a sample: a segment, or the segments of one record in several modalities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed.reader.order import Numbers, picked
from mmembed.tables import first_of_runs

FIRST, RANDOM, ALL, STACK = "first", "random", "all", "stack"
SEGMENTS = (FIRST, RANDOM, ALL, STACK)
SKIP, MASK = "skip", "mask"
MISSING = (SKIP, MASK)
EVERYTHING = "all"
"""In place of a split: both of them."""

KEYS = ("id", "segment", "split")
"""The columns of embeddings/<modality> that say which rows belong together."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What of a unit's files is read.

    Attributes:
        rows: by modality, which rows of its file are of the split, bool (n,); none where the unit has no sample. Those
            that are kept are numbered 0, 1, …
        digests: by modality, of what the file says of them.
    """

    rows: Mapping[str, NDArray[np.bool_]]
    digests: Mapping[str, bytes]


class Records(NamedTuple):
    """Where the segments of a unit's records lie.

    Attributes:
        starts: the first of each record's kept rows, int64 (records, modalities).
        counts: how many it has there, int64 (records, modalities).
    """

    starts: Numbers
    counts: Numbers


def aligned(tables: Mapping[str, pa.Table], split: str, missing: str) -> tuple[Kept, Records]:
    """The records of a unit that are of a split, in the order of the first modality's file.

    Args:
        tables: by modality the columns `KEYS`; of a record's rows one follows the other.
        missing: "skip" leaves out records that lack a modality; "mask" keeps them with a count of 0.
    """
    kept, ids, starts, counts = {}, [], [], []
    for name, table in tables.items():
        kept[name] = of_split(table, split)
        names = table["id"].combine_chunks().filter(pa.array(kept[name]))
        first = first_of_runs(pa.chunked_array([names]))
        ids.append(names.take(pa.array(first)))
        starts.append(first)
        counts.append(np.diff(first, append=len(names)))
    wanted = ids[0] if missing == SKIP else pc.unique(pa.concat_arrays(ids))
    places = [_places(wanted, value_set=names) for names in ids]
    found = np.stack([np.append(first, 0)[place] for first, place in zip(starts, places)], axis=1)
    several = np.stack([np.append(count, 0)[place] for count, place in zip(counts, places)], axis=1)
    if missing == SKIP:
        whole = (several > 0).all(axis=1)
        found, several = found[whole], several[whole]
    if not len(found):  # the unit is not read at all
        kept = {name: np.zeros_like(rows) for name, rows in kept.items()}
    return Kept(kept, {name: digest(table) for name, table in tables.items()}), Records(found, several)


def digest(table: pa.Table) -> bytes:
    """Of what a file of embeddings says in the columns `KEYS`."""
    found = hashlib.blake2b(digest_size=16)
    for name in KEYS:
        for buffer in table[name].combine_chunks().buffers():
            found.update(buffer or b"")
    return found.digest()


def of_split(table: pa.Table, split: str) -> NDArray[np.bool_]:
    """Which rows are of a split."""
    if split == EVERYTHING:
        return np.ones(table.num_rows, bool)
    return np.asarray(pc.equal(table["split"].combine_chunks(), split).to_numpy(zero_copy_only=False), bool)


def _places(wanted: pa.Array, value_set: pa.Array) -> Numbers:
    """The place of each value in a set of them, -1 where it is not there."""
    return np.asarray(pc.fill_null(pc.index_in(wanted, value_set=value_set), -1), np.int64)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a data set, by number.

    Attributes:
        modalities: of the vectors of a sample.
        segments: for each of them, which of a record's segments a sample has.
        starts, counts: as of `Records`, in rows of all units together, (records, modalities).
        firsts: the number of the first sample of each record, and of all, int64 (records + 1,).
        units: likewise of each unit, int64 (units + 1,).
        rows: the first row of each unit, and of all, by modality, int64 (units + 1,).
    """

    modalities: Sequence[str]
    segments: Sequence[str]
    starts: Numbers
    counts: Numbers
    firsts: Numbers
    units: Numbers
    rows: Mapping[str, Numbers]

    @classmethod
    def of(cls, segments: Mapping[str, str], units: Sequence[tuple[Kept, Records]]) -> Samples:
        """The samples of units.

        Args:
            segments: by modality "first", "random", "all" or "stack", see `mmembed.reader.open_dataset`.
        """
        modalities = list(segments)
        rows = {
            name: np.array([0, *accumulate(int(kept.rows[name].sum()) for kept, _ in units)], np.int64)
            for name in modalities
        }
        before = np.stack([rows[name][:-1] for name in modalities], axis=1)
        empty = np.empty((0, len(modalities)), np.int64)
        starts = np.concatenate([empty, *(records.starts + offset for (_, records), offset in zip(units, before))])
        counts = np.concatenate([empty, *(records.counts for _, records in units)])
        several = [place for place, how in enumerate(segments.values()) if how == ALL]
        samples = np.maximum(counts[:, several], 1).prod(axis=1)
        firsts = np.append(0, np.cumsum(samples))
        ends = np.array([0, *accumulate(len(records.starts) for _, records in units)], np.int64)
        return cls(modalities, list(segments.values()), starts, counts, firsts, firsts[ends], rows)

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The units that hold samples start to stop, and which of them each does: (unit, from, to)."""
        found = []
        while start < stop:
            unit = int(np.searchsorted(self.units, start, side="right")) - 1
            until = min(stop, int(self.units[unit + 1]))
            found.append((unit, start, until))
            start = until
        return found

    def rows_of(self, samples: Numbers, seed: int, epoch: int) -> dict[str, Numbers]:
        """The rows of samples (n,) by modality: (n,), or (n, segments) where they are stacked; -1 where there is
        none."""
        records = samples
        if len(self) > len(self.starts):  # some records have several samples
            records = np.searchsorted(self.firsts, samples, side="right") - 1
        starts, counts = self.starts[records], self.counts[records]
        rest = samples - self.firsts[records]
        found = {}
        for place in reversed(range(len(self.modalities))):  # of two modalities with all, the last changes first
            name, how = self.modalities[place], self.segments[place]
            first, count = starts[:, place], counts[:, place]
            if how == STACK:
                chosen = np.arange(self._most[place])
                found[name] = np.where(chosen < count[:, np.newaxis], first[:, np.newaxis] + chosen, -1)
                continue
            if how == ALL:
                rest, chosen = np.divmod(rest, np.maximum(count, 1))
            elif how == RANDOM:
                chosen = picked(samples, count, seed, epoch, name)
            else:
                chosen = np.zeros_like(first)
            found[name] = np.where(count > 0, first + chosen, -1)
        return {name: found[name] for name in self.modalities}

    @cached_property
    def _most(self) -> Numbers:
        """The most segments that a record has, by place of the modality."""
        return np.asarray(self.counts.max(axis=0, initial=1), np.int64)
