"""A reader's samples as tensors of PyTorch, also by the workers of its `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


class Samples(Dataset[dict[str, Any]]):
    """A reader's samples by number, for a sampler of one's own. The reader's own order plays no part; which of several
    segments a sample has goes by `reader.epoch`, which is to be set before each epoch.

    `DataLoader(Samples(ds), sampler=BatchSampler(…), batch_size=None)` takes whole batches at once.
    """

    def __init__(self, reader: Reader) -> None:
        reader.load()  # before workers are started, which find it in memory
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, which: Any) -> dict[str, Any]:
        return as_tensors(self.reader[which])


class Batches(IterableDataset[dict[str, Any]]):
    """A reader's epochs for `DataLoader(Batches(ds), batch_size=None, num_workers=…)`. With workers the reader does not
    know how far the loop is: set `ds.epoch` before each epoch, or use a `Loader`, as `persistent_workers` need."""

    def __init__(self, reader: Reader) -> None:
        if reader.plan.shuffle or reader.bytes <= reader.memory:
            reader.load()  # before workers are started, which find it in memory
        self.reader = reader
        self.begins: Shared | None = None

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None:
            return map(as_tensors, self.reader)
        epoch, start, _ = self.reader.progress
        if self.begins is not None:  # what the reader said when this worker was started may be long past
            epoch, start = _numbers(self.begins).tolist()
        return map(as_tensors, self.reader.batches(epoch, start, worker.id, worker.num_workers))


class Loader:
    """A `DataLoader` of a reader's batches that knows how far the loop is, whatever workers have read ahead.

    `for batch in loader` is one epoch, as of the reader; `state_dict` and `load_state_dict` are the reader's.
    """

    def __init__(self, reader: Reader, num_workers: int = 0, **options: Any) -> None:
        """
        Args:
            options: of `DataLoader`, such as pin_memory and persistent_workers.

        Raises:
            UsageError: batches shall come in any order.
        """
        if not options.get("in_order", True):
            raise UsageError("in_order = False: a state counts batches in their order; leave it out, or use Batches")
        self.reader = reader
        self._batches = Batches(reader)
        self._batches.begins = Shared(2 * 8, on_disk=False)
        self._loader = DataLoader(self._batches, batch_size=None, num_workers=num_workers, **options)

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._loader.num_workers:
            return iter(self._loader)
        assert self._batches.begins is not None
        _numbers(self._batches.begins)[:] = self.reader.progress[:2]
        return self.reader.told(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """See `Reader.state_dict`."""
        return self.reader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Reader.load_state_dict`."""
        self.reader.load_state_dict(state)


def _numbers(shared: Shared) -> NDArray[np.int64]:
    """An epoch, and the position where it is begun."""
    return np.frombuffer(shared.map, np.int64, 2)
