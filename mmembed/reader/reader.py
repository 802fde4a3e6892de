"""The samples of a data set: by number, or in batches of epochs that can be left and taken up anywhere."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import UsageError
from mmembed.reader.blocks import Block, Resident, UnitReader, read_ahead
from mmembed.reader.columns import Batch, Column, stacked
from mmembed.reader.neighbours import Neighbours
from mmembed.reader.order import Numbers, share, shuffled, steps
from mmembed.reader.samples import STACK, Kept, Samples
from mmembed.types import Space

_COPIES = 3  # of a unit in memory while it is read: its file, its table, its values
_AT_ONCE = 32  # batches whose rows are looked up at once: a call of numpy costs more than what it does for one


class Place(NamedTuple):
    """A batch of an epoch: positions start to stop are one rank's share of a step, after which all ranks are at
    `end`."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class Plan:
    """Which samples are read together, see `mmembed.reader.open_dataset`."""

    batch_size: int
    drop_last: bool
    rank: int
    ranks: int
    shuffle: bool
    seed: int

    def check(self, count: int) -> None:
        """Raise UsageError where so many samples are too few."""
        if self.ranks > count:
            raise UsageError(f"ranks = {self.ranks}: there are only {count} samples, so that some would have none")
        if self.is_over(0, count):
            raise UsageError(
                f"with drop_last nothing is left: {count} samples don't fill a batch of {self.batch_size} on each rank"
            )

    def places(self, start: int, count: int) -> Iterator[Place]:
        """This rank's batches of an epoch from a position on."""
        for first, end in steps(start, count, self.batch_size, self.ranks, self.drop_last):
            low, high = share(first, end, self.rank, self.ranks)
            if low < high:
                yield Place(low, high, end)

    def is_over(self, position: int, count: int) -> bool:
        """Whether no rank reads any more of an epoch."""
        return next(steps(position, count, self.batch_size, self.ranks, self.drop_last), None) is None


class Progress(NamedTuple):
    """Where a reader is.

    Attributes:
        epoch: that is read now or next.
        start: the position where it was begun.
        position: the one after the batch that was given out last.
    """

    epoch: int = 0
    start: int = 0
    position: int = 0


@dataclass(eq=False, repr=False)
class Reader:
    """The samples of a data set, see `mmembed.reader.open_dataset`.

    `len(ds)` is the number of samples, `ds[3]` one of them in the order of the files, `ds[[3, 5]]` and `ds[:10]`
    several. `for batch in ds` is one epoch of batches: by name of the columns, numpy arrays whose first axis are the
    samples, and lists. The next `for` is the next epoch; one that was left early is begun again. Rows that follow each
    other are views, which can't be written into.

    Where segments are stacked, and with `missing="mask"`, `image.mask` says what is there: bool (n, segments) or (n,).

    Attributes:
        spaces: by column of vectors, what they are of: what a model that is trained on them should ask for later.
        bytes: what the vectors take in memory.
        fingerprint: of the samples; a state fits the reader with the same one.
        epoch: that is read now or next; set it to read another.
    """

    columns: Sequence[Column]
    units: Sequence[Kept]
    samples: Samples
    unit_reader: UnitReader
    vectors: Mapping[str, tuple[Space, np.dtype[Any]]]
    neighbours: Neighbours | None
    plan: Plan
    masked: bool
    memory: int
    fingerprint: str
    progress: Progress = Progress()
    _resident: Resident | None = None

    @property
    def spaces(self) -> dict[str, str]:
        """By column of vectors."""
        return {name: str(space) for name, (space, _) in self.vectors.items()}

    @property
    def modalities(self) -> list[str]:
        """Of a sample."""
        return list(self.samples.modalities)

    def __repr__(self) -> str:
        what = f"{' + '.join(self.modalities)}, {len(self)} samples in batches of {self.plan.batch_size}"
        return f"Reader({self.unit_reader.source.location}: {what}, epoch {self.epoch})"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, which: Any) -> Batch:
        """One sample by its number, or a batch of several: a slice, a list or an array of numbers, or a mask.

        Raises:
            IndexError: there is no such sample.
            TypeError: this is none of them.
        """
        if isinstance(which, slice):
            return self._take(np.arange(*which.indices(len(self))))
        is_text, shape = isinstance(which, str), getattr(which, "shape", ())
        if (isinstance(which, Sequence) and not is_text) or shape:
            return self._take(_numbers(np.asarray(which), len(self)))
        if not hasattr(which, "__index__") or isinstance(which, bool):
            raise TypeError(f"samples are asked for by numbers, not by {which!r}; `ds[:][NAME]` is a column")
        return {name: value[0] for name, value in self._take(np.array([operator.index(which)])).items()}

    def __iter__(self) -> Iterator[Batch]:
        yield from self.told(self.batches(self.progress.epoch, self.progress.start))

    def told(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of this epoch, given out now, whoever has read them: `state_dict` counts them."""
        epoch, start, _ = self.progress
        self.progress, is_over = Progress(epoch, start, start), False
        for place, batch in zip(self.plan.places(start, len(self)), batches):
            is_over = self.plan.is_over(place.end, len(self))
            self.progress = Progress(epoch + 1) if is_over else Progress(epoch, start, place.end)
            yield batch
        if not is_over:  # the others had something left for a last step, and this rank had not
            self.progress = Progress(epoch + 1)

    def batches(self, epoch: int, start: int, worker: int = 0, workers: int = 1) -> Iterator[Batch]:
        """The batches of an epoch from a position on, or those that one of several workers reads: each in turn one."""

        def places() -> Iterator[Place]:
            return islice(self.plan.places(start, len(self)), worker, None, workers)

        if self.plan.shuffle or self._resident:
            yield from self._from_memory(places(), epoch)
        else:
            yield from self._from_files(places(), self._units_of(places()), epoch)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches this rank reads in a whole epoch."""
        whole = self.plan.batch_size * self.plan.ranks
        full = max(len(self) // whole - 1, 0)  # of the last steps some may be shared in another way
        return full + sum(1 for _ in self.plan.places(full * whole, len(self)))

    @property
    def epoch(self) -> int:
        """0, 1, …"""
        return self.progress.epoch

    @epoch.setter
    def epoch(self, number: int) -> None:
        self.progress = Progress(number)

    def state_dict(self) -> dict[str, Any]:
        """Where the reader is, after the batch that was given out last: JSON values, the same on all ranks."""
        return {**self._identity(), "epoch": self.progress.epoch, "position": self.progress.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sample after those that a state counts, also with another batch size or number of ranks.

        Raises:
            UsageError: the state is of other samples or another order, is damaged, or is none.
        """
        if not isinstance(state, Mapping) or not {*self._identity()} <= {*state}:
            raise UsageError("this is no state of a reader")
        for name, value in self._identity().items():
            if state[name] != value:
                raise UsageError(
                    f"this state does not fit: its {name} is {state[name]!r}, here it is {value!r}; open the data set "
                    "that it was saved with, with the same modalities, segments, missing, split, shuffle and seed (one "
                    "that was built again with other records has other samples)"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= len(self):
            raise UsageError(f"this state is damaged: its epoch is {epoch!r}, and its position {position!r}")
        is_over = self.plan.is_over(position, len(self))
        self.progress = Progress(epoch + 1) if is_over else Progress(epoch, position, position)

    def _identity(self) -> dict[str, Any]:
        return {"samples": self.fingerprint, "shuffle": self.plan.shuffle, "seed": self.plan.seed}

    def load(self) -> None:
        """Read everything now, so that processes that are started later find it in memory."""
        self._block()

    def _block(self) -> Block:
        """All rows."""
        if self._resident is None:
            units = np.flatnonzero(np.diff(self.samples.units)).tolist()
            shapes = {name: (space.dim, dtype) for name, (space, dtype) in self.vectors.items()}
            self._resident = Resident(
                self.unit_reader.columns,
                self.samples.rows,
                shapes,
                self._read(units),
                on_disk=self.bytes > self.memory,
            )
        return self._resident.block

    @property
    def bytes(self) -> int:
        """What the vectors take."""
        rows = {name: int(starts[-1]) for name, starts in self.samples.rows.items()}
        return sum(
            rows[name.split(".")[0]] * space.dim * dtype.itemsize for name, (space, dtype) in self.vectors.items()
        )

    def _take(self, numbers: Numbers) -> Batch:
        wrong = numbers[(numbers < -len(self)) | (numbers >= len(self))]
        if len(wrong):
            raise IndexError(f"there is no sample {wrong[0]}: there are {len(self)}")
        return self._batch(
            self._block(), self._rows_of(np.where(numbers < 0, numbers + len(self), numbers), self.epoch)
        )

    def _from_memory(self, places: Iterator[Place], epoch: int) -> Iterator[Batch]:
        block = self._block()
        while some := list(islice(places, _AT_ONCE)):
            numbers = np.concatenate([np.arange(place.start, place.stop) for place in some])
            if self.plan.shuffle:
                numbers = shuffled(numbers, len(self), self.plan.seed, epoch)
            rows = self._rows_of(numbers, epoch)
            ends = list(accumulate(place.stop - place.start for place in some))
            for start, end in pairwise([0, *ends]):
                yield self._batch(block, {name: several[start:end] for name, several in rows.items()})

    def _from_files(self, places: Iterator[Place], units: Iterator[int], epoch: int) -> Iterator[Batch]:
        blocks, unit, first = self._read(units), -1, 0
        for place in places:
            parts = []
            for wanted, start, stop in self.samples.pieces(place.start, place.stop):
                if wanted != unit:
                    unit, values = next(blocks)
                    block = Block({name: int(starts[unit]) for name, starts in self.samples.rows.items()}, values)
                    first, last = self.samples.units[unit : unit + 2].tolist()
                    rows = self._rows_of(np.arange(first, last), epoch)
                here = slice(start - first, stop - first)
                parts.append(self._batch(block, {name: several[here] for name, several in rows.items()}))
            yield stacked(parts)

    def _units_of(self, places: Iterator[Place]) -> Iterator[int]:
        """The units that hold the samples of batches, each once."""
        pieces = (piece for place in places for piece in self.samples.pieces(place.start, place.stop))
        return (unit for unit, _ in groupby(unit for unit, _, _ in pieces))

    def _read(self, units: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """The values of units, some of which are read before they are needed: as many as the memory holds."""
        threads = self.unit_reader.source.threads
        ahead = max(1, min(2 * threads, self.memory // max(_COPIES * self.unit_reader.unit_bytes, 1) - 1))
        return read_ahead(units, lambda unit: self.unit_reader(unit, self.units[unit]), ahead, threads)

    def _rows_of(self, numbers: Numbers, epoch: int) -> Mapping[str, Numbers]:
        return self.samples.rows_of(numbers, self.plan.seed, epoch)

    def _batch(self, block: Block, rows: Mapping[str, Numbers]) -> Batch:
        found = block.batch(self.unit_reader.columns, rows)
        for name, how in zip(self.samples.modalities, self.samples.segments):
            if self.masked or how == STACK:
                found[f"{name}.mask"] = rows[name] >= 0
        if self.neighbours:
            found |= _neighbours_of(self.neighbours, rows, found)
            if "id" not in {column.name for column in self.columns}:  # it was read for their sake
                del found["id"]
        return found


def _neighbours_of(neighbours: Neighbours, rows: Mapping[str, Numbers], batch: Batch) -> Batch:
    asking, vectors = rows[neighbours.asking], batch[f"{neighbours.asking}.embedding"]
    if asking.ndim > 1:
        asking, vectors = asking[:, 0], vectors[:, 0]
    return neighbours.columns(asking, vectors, batch["id"])


def _numbers(which: NDArray[Any], count: int) -> Numbers:
    """The numbers of samples that an array of numbers, or a mask of all samples, means."""
    if which.ndim == 1 and which.dtype == bool and len(which) == count:
        return np.flatnonzero(which)
    if which.ndim != 1 or (len(which) and which.dtype.kind not in "iu"):
        raise TypeError(
            f"samples are asked for by numbers (n,), or a mask of all {count}, not by {which.dtype} {which.shape}"
        )
    return which.astype(np.int64)
