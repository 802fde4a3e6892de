"""Training records in memory, a bounded sample: moments don't say how answers rank, and gradients want records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.linear import Scoring
from mmembed.moments import View


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some training records, one row each.

    Attributes:
        means: by modality, of each record's segments, float32 (n, d); zeros where it has none.
        present: by modality, which records have it, bool (n,).
        media: by modality a number for each record's medium, uint64 (n,): where it is equal, so is the medium.
        folds: of cross-validation, int64 (n,).
    """

    means: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]
    media: Mapping[str, NDArray[np.uint64]]
    folds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.folds)

    @classmethod
    def of(
        cls, views: Mapping[str, View], folds: NDArray[np.int64], media: Mapping[str, NDArray[np.uint64]] | None = None
    ) -> Pairs:
        """Of all records of some views; by default no medium is like another."""
        return cls(
            {
                name: np.where(view.present[:, np.newaxis], view.means, 0).astype(np.float32)
                for name, view in views.items()
            },
            {name: view.present for name, view in views.items()},
            media or {name: np.arange(len(folds), dtype=np.uint64) for name in views},
            folds,
        )

    def take(self, rows: NDArray[Any]) -> Pairs:
        """Some of the records, by a mask or by their numbers."""
        return Pairs(
            {name: values[rows] for name, values in self.means.items()},
            {name: values[rows] for name, values in self.present.items()},
            {name: values[rows] for name, values in self.media.items()},
            self.folds[rows],
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays under the names `folds`, `means/a`, `present/a`, `media/a`."""
        parts = {"means": self.means, "present": self.present, "media": self.media}
        named = {f"{part}/{name}": values for part, by_name in parts.items() for name, values in by_name.items()}
        return {"folds": self.folds, **named}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Pairs:
        """The inverse of `to_arrays`."""
        parts: dict[str, dict[str, NDArray[Any]]] = {"means": {}, "present": {}, "media": {}}
        for key, values in arrays.items():
            part, _, name = key.partition("/")
            if name:
                parts[part][name] = values
        return cls(**parts, folds=arrays["folds"])


def join(several: Iterable[Pairs]) -> Pairs:
    """The records of several samples, one after the other."""
    all_ = list(several)

    def joined(part: str) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([getattr(pairs, part)[name] for pairs in all_]) for name in all_[0].means}

    return Pairs(joined("means"), joined("present"), joined("media"), np.concatenate([pairs.folds for pairs in all_]))


def reciprocal_rank(
    embeddings: Mapping[str, NDArray[np.float32]],
    pairs: Pairs,
    scoring: Scoring,
    counts: Mapping[tuple[str, str], int],
) -> float:
    """Mean reciprocal rank of each record's own answer, of both directions of each pair of modalities.

    Equal media are equally right. Wrong answers with the same score come first: what can't tell records apart is worth
    nothing.

    Args:
        embeddings: of the records, by modality (n, k).
        counts: what the pairs of modalities weigh.

    Returns:
        The weighted mean over the pairs; not a number where no record has two modalities.
    """
    total = weight = 0.0
    for (a, b), count in counts.items():
        both = pairs.present[a] & pairs.present[b]
        if not count or both.sum() < 2:
            continue
        media = [pairs.media[name][both] for name in (a, b)]
        alike = (media[0][:, np.newaxis] == media[0]) | (media[1][:, np.newaxis] == media[1])
        x, y = embeddings[a][both], embeddings[b][both]
        products = x @ y.T
        for scores, candidates in ((products, y), (products.T, x)):
            terms = scoring.terms(candidates)
            total += count * _mean_reciprocal(scores if terms is None else scores + terms, alike)
            weight += count
    return total / weight if weight else float("nan")


def _mean_reciprocal(scores: NDArray[np.float32], alike: NDArray[np.bool_]) -> float:
    best = np.where(alike, scores, -np.inf).max(axis=1, keepdims=True)
    ranks = 1 + np.count_nonzero((scores >= best) & ~alike, axis=1)
    return float(np.mean(1 / ranks))
