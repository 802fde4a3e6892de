"""A reader's samples as tensors of PyTorch, also by the workers of its `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mmembed.reader.reader import Reader


def as_tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with tensors in place of arrays, which keep their memory unless it is read-only."""
    return {name: _tensor(value) for name, value in batch.items()}


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    return torch.tensor(value) if isinstance(value, np.generic) else value


class Samples(Dataset[dict[str, Any]]):
    """A reader's samples by number, for a sampler of one's own; `shuffle` of the reader plays no part.

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
    know how far the loop is: set `ds.epoch` before each epoch, or use a `Loader`."""

    def __init__(self, reader: Reader) -> None:
        if reader.plan.shuffle or reader.bytes <= reader.memory:
            reader.load()  # before workers are started, which find it in memory
        self.reader = reader

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        batches = iter(self.reader) if worker is None else self.reader.batches(worker.id, worker.num_workers)
        return map(as_tensors, batches)


class Loader:
    """A `DataLoader` of a reader's batches that knows how far the loop is, whatever workers have read ahead.

    `for batch in loader` is one epoch, as of the reader; `state_dict` and `load_state_dict` are the reader's.
    """

    def __init__(self, reader: Reader, num_workers: int = 0, **options: Any) -> None:
        """
        Args:
            options: of `DataLoader`, such as pin_memory and persistent_workers.
        """
        self.reader = reader
        self._loader = DataLoader(Batches(reader), batch_size=None, num_workers=num_workers, **options)

    def __len__(self) -> int:
        return self.reader.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._loader.num_workers:
            return iter(self._loader)
        return self.reader.told(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """See `Reader.state_dict`."""
        return self.reader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Reader.load_state_dict`."""
        self.reader.load_state_dict(state)
