"""A reader's samples as tensors of PyTorch, also by the workers of its `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mmembed.errors import UsageError
from mmembed.reader.memory import Shared
from mmembed.reader.reader import Reader


def as_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with tensors in place of arrays, which keep their memory unless it is read-only."""
    return {name: _tensor(value) for name, value in batch.items()}


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    return torch.tensor(value) if isinstance(value, np.generic) else value


class _Shown:
    """A reader for a loader's workers, which see the epoch that is set in the process that started them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._begins = Shared(2 * 8, on_disk=False)
        self.begin(*reader.progress[:2])

    def begin(self, epoch: int, start: int) -> None:
        """Workers read an epoch from a position on, when they begin the next time."""
        np.frombuffer(self._begins.map, np.int64, 2)[:] = epoch, start

    @property
    def begins(self) -> tuple[int, int]:
        """The epoch, and the position where it begins."""
        epoch, start = np.frombuffer(self._begins.map, np.int64, 2).tolist()
        return epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Read this epoch next, also where workers live on."""
        self.reader.epoch = epoch
        self.begin(epoch, 0)


class Samples(_Shown, Dataset[dict[str, Any]]):
    """A reader's samples by number, for a sampler of one's own. The reader's own order plays no part; which of several
    segments a sample has goes by the epoch: call `set_epoch` before each.

    `DataLoader(Samples(ds), sampler=BatchSampler(…), batch_size=None)` takes whole batches at once.
    """

    def __init__(self, reader: Reader) -> None:
        reader.load()  # before workers are started, which find it in memory
        super().__init__(reader)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, which: Any) -> dict[str, Any]:
        if get_worker_info() is not None:
            self.reader.epoch = self.begins[0]
        return as_tensors(self.reader[which])


class Batches(_Shown, IterableDataset[dict[str, Any]]):
    """A reader's epochs for `DataLoader(Batches(ds), batch_size=None, num_workers=…)`. With workers the reader does not
    know how far the loop is: call `set_epoch` before each epoch, or use a `Loader`."""

    def __init__(self, reader: Reader) -> None:
        if reader.plan.shuffle or reader.bytes <= reader.memory:
            reader.load()  # before workers are started, which find it in memory
        super().__init__(reader)

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None:
            return map(as_tensors, self.reader)
        return map(as_tensors, self.reader.batches(*self.begins, worker.id, worker.num_workers))


OF_THE_READER = ("batch_size", "shuffle", "drop_last", "sampler", "batch_sampler")


class Loader:
    """A `DataLoader` of a reader's batches that knows how far the loop is, whatever workers have read ahead.

    `for batch in loader` is one epoch, as of the reader; `state_dict` and `load_state_dict` are the reader's. Tensors
    may be written into.
    """

    def __init__(self, reader: Reader, num_workers: int = 0, **options: Any) -> None:
        """
        Args:
            options: of `DataLoader`, such as pin_memory and persistent_workers.

        Raises:
            UsageError: an option is one of `open_dataset`, or asks for batches in any order.
        """
        for name in {*options} & {*OF_THE_READER}:
            raise UsageError(f"{name} is the reader's: give it to open_dataset")
        if not options.get("in_order", True):
            raise UsageError("in_order = False: a state counts batches in their order; leave it out, or use Batches")
        self.reader = reader
        self._batches = Batches(reader)
        self._loader = DataLoader(self._batches, batch_size=None, num_workers=num_workers, **options)

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._loader.num_workers:
            return iter(self._loader)
        self._batches.begin(*self.reader.progress[:2])
        return self.reader.told(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """See `Reader.state_dict`."""
        return self.reader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Reader.load_state_dict`."""
        self.reader.load_state_dict(state)
