"""Second moments of pairs of modalities: mergeable, float64, one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of two views over the records that have both.

    Attributes:
        count: n, number of records.
        mean_x: float64 (dx,).
        mean_y: float64 (dy,).
        comoment: M = sum over records of (x - mean_x)(y - mean_y)^T, float64 (dx, dy).
    """

    count: int
    mean_x: Matrix
    mean_y: Matrix
    comoment: Matrix

    @classmethod
    def of(cls, x: Matrix, y: Matrix) -> PairMoments:
        """Of rows that belong together, (n, dx) and (n, dy); n may be 0."""
        if not len(x):
            return cls(0, np.zeros(x.shape[1]), np.zeros(y.shape[1]), np.zeros((x.shape[1], y.shape[1])))
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        return cls(len(x), mean_x, mean_y, (x - mean_x).T @ (y - mean_y))

    def merge(self, other: PairMoments) -> PairMoments:
        """Of both sets of records together (Chan, Golub, LeVeque 1979, equation 2.1, for two variables)."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share = other.count / count
        return PairMoments(
            count,
            self.mean_x + step_x * share,
            self.mean_y + step_y * share,
            self.comoment + other.comoment + np.outer(step_x * (self.count * share), step_y),
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of each pair of modalities, a modality with itself included.

    Attributes:
        pairs: by (a, b), a <= b in the alphabet; memory O(d^2), whatever the number of records.
    """

    pairs: Mapping[tuple[str, str], PairMoments]

    @classmethod
    def of(cls, views: Mapping[str, Matrix], present: Mapping[str, NDArray[np.bool_]]) -> Moments:
        """Of records that may lack modalities.

        Args:
            views: by modality a row for each record, (n, d); rows of records that lack it are not looked at.
            present: by modality which records have it, bool (n,).
        """
        return cls(
            {
                (a, b): PairMoments.of(views[a][present[a] & present[b]], views[b][present[a] & present[b]])
                for a, b in combinations_with_replacement(sorted(views), 2)
            }
        )

    def merge(self, other: Moments) -> Moments:
        """Of both sets of records together. Associative and commutative up to rounding."""
        if self.pairs.keys() != other.pairs.keys():
            raise ValueError(f"moments of {sorted(self.pairs)} and of {sorted(other.pairs)} don't merge")
        return Moments({pair: moments.merge(other.pairs[pair]) for pair, moments in self.pairs.items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays under the names `a/b/count`, `a/b/mean_x`, `a/b/mean_y`, `a/b/comoment`."""
        return {
            f"{a}/{b}/{name}": np.asarray(value, order="C")
            for (a, b), pair in self.pairs.items()
            for name, value in vars(pair).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Moments:
        """The inverse of `to_arrays`."""
        pairs = {(name.split("/")[0], name.split("/")[1]) for name in arrays}
        return cls(
            {
                (a, b): PairMoments(
                    int(arrays[f"{a}/{b}/count"]),
                    *(arrays[f"{a}/{b}/{name}"] for name in ("mean_x", "mean_y", "comoment")),
                )
                for a, b in sorted(pairs)
            }
        )

    @property
    def modalities(self) -> list[str]:
        """The modalities, in the alphabet's order."""
        return sorted({a for a, _ in self.pairs})

    def dim(self, modality: str) -> int:
        """The dimension of a modality's features."""
        return len(self.pairs[modality, modality].mean_x)

    def count(self, a: str, b: str) -> int:
        """How many records have both modalities."""
        return self.pairs[min(a, b), max(a, b)].count

    def mean(self, modality: str) -> Matrix:
        """Mean over all records that have the modality, (d,)."""
        return self.pairs[modality, modality].mean_x

    def covariance(self, a: str, b: str) -> Matrix:
        """Covariance over the records that have both, (da, db); zeros where none has."""
        pair = self.pairs[min(a, b), max(a, b)]
        covariance = pair.comoment / max(pair.count, 1)
        return covariance if a <= b else covariance.T
