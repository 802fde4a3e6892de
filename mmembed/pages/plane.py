"""The shared space as a plane: a sample of records, with a point for each of their modalities."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.shards import read_table
from mmembed.splits import number_of
from mmembed.tables import vectors_from_arrow

POINTS = 3_000
"""Of a map, at most."""

_UMAP_POINTS = 50  # with fewer it has no neighbourhoods to keep
_UMAP_EPOCHS = 200  # as UMAP itself takes for large sets; 500, its choice for small ones, take twice as long
_SALT = "page"  # of the hash that chooses records: independent of the splits


@dataclass(frozen=True, eq=False)
class Sample:
    """Embeddings of some records, the first segment of each in each modality.

    Attributes:
        modalities: of the points (n).
        ids: of their records (n).
        media: the piece of text, or the name of the file (n).
        splits: "train" or "heldout" (n).
        vectors: float32 (n, k).
    """

    modalities: list[str]
    ids: list[str]
    media: list[str]
    splits: list[str]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Plane:
    """A sample in two dimensions.

    Attributes:
        method: how, for the page: "PCA" or "UMAP".
        places: float64 (n, 2).
        shares: of the variance that the two axes hold, of PCA; else empty.
    """

    method: str
    places: NDArray[np.float64]
    shares: tuple[float, ...] = ()


def sample(dataset: Dataset, points: int = POINTS) -> Sample:
    """The records whose ids have the smallest hashes: the same ones on any machine, and all modalities of each.

    Only ids are read of a file that holds none of them; as many rows as points are in memory, and one file.
    """
    modalities = list(dataset.modalities("project"))
    chosen = _smallest(dataset, max(1, points // max(1, len(modalities))))
    found = Sample([], [], [], [], np.empty((0, 0), np.float32))
    vectors = []
    for modality in modalities:
        for path in dataset.below(f"embeddings/{modality}"):
            data = dataset.read(path)
            heads = read_table(data, ["id", "media", "split"])
            rows = [row for row, id in _firsts(heads["id"].to_pylist()) if id in chosen]
            if not rows:
                continue
            taken = heads.take(rows)
            found.modalities.extend([modality] * len(rows))
            found.ids.extend(taken["id"].to_pylist())
            found.media.extend(taken["media"].to_pylist())
            found.splits.extend(taken["split"].to_pylist())
            vectors.append(vectors_from_arrow(read_table(data, ["embedding"])["embedding"])[rows])
    matrix = np.concatenate(vectors) if vectors else found.vectors
    return Sample(found.modalities, found.ids, found.media, found.splits, matrix)


def _smallest(dataset: Dataset, count: int) -> set[str]:
    """The ids of so many records, those of the smallest hashes."""
    held: list[tuple[int, str]] = []  # a heap of the negated hashes: the largest hash is its first
    for path in dataset.below("records"):
        for id in read_table(dataset.read(path), ["id"])["id"].to_pylist():
            entry = (-number_of(id, _SALT), id)
            if len(held) < count:
                heapq.heappush(held, entry)
            elif entry > held[0]:
                heapq.heapreplace(held, entry)
    return {id for _, id in held}


def _firsts(ids: list[str]) -> Iterator[tuple[int, str]]:
    """The first row of each record, whose rows lie together."""
    return ((row, id) for row, id in enumerate(ids) if row == 0 or id != ids[row - 1])


def plane(vectors: NDArray[np.float32]) -> Plane:
    """Vectors (n, k) in two dimensions: by UMAP (McInnes, Healy and Melville 2018) where it is installed and there are
    enough of them, from a fixed start and in one thread; else by PCA."""
    if len(vectors) < _UMAP_POINTS:
        return pca(vectors)
    try:
        from umap import UMAP
    except ImportError:
        return pca(vectors)
    return Plane(
        "UMAP", np.asarray(UMAP(random_state=0, n_jobs=1, n_epochs=_UMAP_EPOCHS).fit_transform(vectors), np.float64)
    )


def pca(vectors: NDArray[np.float32]) -> Plane:
    """The two principal components of vectors (n, k). Of the two directions of each axis that one is up in which its
    largest weight is positive, so that the same vectors give the same plane."""
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centered.T @ centered)
    top = axes[:, ::-1][:, :2]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
    places = np.zeros((len(vectors), 2))
    places[:, : top.shape[1]] = centered @ top
    total = max(float(values.sum()), 1e-12)
    return Plane("PCA", places, tuple(float(max(value, 0) / total) for value in values[::-1][:2]))
