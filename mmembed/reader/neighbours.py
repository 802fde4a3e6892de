"""The nearest neighbours of samples among other records, from the FAISS index: hard negatives, or context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.index import Index, open_modality, query_rows
from mmembed.reader.columns import Batch
from mmembed.reader.order import Numbers
from mmembed.reader.samples import EVERYTHING, of_split


@dataclass(frozen=True)
class Neighbours:
    """Finds neighbours, each once in the life of a process.

    Attributes:
        asking: the modality of the queries.
        target: the modality of the neighbours.
        k: how many of them.
        split: that they are of.
    """

    dataset: Dataset
    asking: str
    target: str
    k: int
    split: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # each process maps the index itself

    def check(self) -> None:
        """Raise UsageError where there is no index, or not enough in it."""
        rows = len(self._index) if self._kept is None else int(np.count_nonzero(self._kept))
        own = self._index.most_a_record
        if not 1 <= self.k <= rows - own:
            raise UsageError(
                f"k = {self.k}: must be 1 to {rows - own}, for there are {rows} rows of {self.target} to find, "
                f"and {own} may be of the record itself"
            )

    def columns(self, rows: Numbers, vectors: NDArray[Any], ids: Sequence[str]) -> Batch:
        """Columns of a batch: `neighbors.embedding` float32 (n, k, dim), `neighbors.score` float32 (n, k), the best
        first, and `neighbors.id`.

        Args:
            rows: of the queries in their modality, (n,).
            vectors: their embeddings (n, dim).
            ids: of their records, which are no neighbours of themselves.
        """
        numbers, known_scores = self._known
        new = np.flatnonzero(numbers[rows, 0] == 0)
        if len(new):
            found, scores = self._search(np.asarray(vectors[new], np.float32), [ids[place] for place in new.tolist()])
            known_scores[rows[new]], numbers[rows[new]] = scores, found + 1
        flat = numbers[rows].reshape(-1) - 1
        names, dim = self._index.ids(flat.tolist()), vectors.shape[1]
        return {
            "neighbors.embedding": self._index.vectors_of(flat)[:, :dim].reshape(len(rows), self.k, dim),
            "neighbors.score": known_scores[rows],
            "neighbors.id": [names[start : start + self.k] for start in range(0, len(names), self.k)],
        }

    def _search(self, vectors: NDArray[np.float32], ids: Sequence[str]) -> tuple[Numbers, NDArray[np.float32]]:
        import faiss

        queries = query_rows(vectors, {self.asking: 1.0}, self._index.columns)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # a process that was forked from one with more would wait for ever
        try:
            scores, rows = self._index.search(queries, self.k + self._index.most_a_record, self._kept)
        finally:
            faiss.omp_set_num_threads(threads)
        names = np.array(self._index.ids(rows.reshape(-1).tolist()), object).reshape(rows.shape)
        own = names == np.array(ids, object)[:, np.newaxis]
        best = np.argsort(own, axis=1, kind="stable")[:, : self.k]
        return np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1)

    @cached_property
    def _index(self) -> Index:
        return open_modality(self.dataset, self.target)

    @cached_property
    def _kept(self) -> NDArray[np.bool_] | None:
        """The rows that may be found: nothing of the held-out records gets into training."""
        if self.split == EVERYTHING:
            return None
        return of_split(self._index.rows, self.split)

    @cached_property
    def _known(self) -> tuple[Numbers, NDArray[np.float32]]:
        """Rows of the neighbours of each row, from 1 on, and their scores; 0 of a row that has not asked, and takes no
        memory."""
        count = sum(file.rows or 0 for file in self.dataset.below(f"embeddings/{self.asking}").values())
        return np.zeros((count, self.k), np.int64), np.zeros((count, self.k), np.float32)
