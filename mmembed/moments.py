"""Second moments of pairs of modalities: mergeable, weighted, float64, one pass over the data."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """One modality of some records.

    A record's segments are drawn alike: those of a record with many are worth no more than the one of another.

    Attributes:
        means: of each record's segments, float64 (n, d); rows of records that lack the modality are not looked at.
        segments: how many each record has, int64 (n,); 0: it lacks the modality.
        residuals: segments less the mean of their record, float64 (m, d), of records that have several.
        owners: the records of the residuals, int64 (m,).
    """

    means: Matrix
    segments: NDArray[np.int64]
    residuals: Matrix
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: NDArray[Any], owners: NDArray[np.int64], count: int) -> View:
        """Of segments (m, d) and the numbers of their records among `count`; those of a record lie together."""
        segments = np.bincount(owners, minlength=count)
        means = np.zeros((count, vectors.shape[1]))
        if len(vectors):
            starts = np.flatnonzero(np.diff(owners, prepend=-1))
            means[owners[starts]] = np.add.reduceat(vectors, starts, axis=0, dtype=np.float64)
        means /= np.maximum(segments, 1)[:, np.newaxis]
        several = segments[owners] > 1
        residuals = vectors[several] - means[owners[several]]
        return cls(means, segments, residuals, owners[several])

    @classmethod
    def single(cls, vectors: NDArray[Any], present: NDArray[np.bool_] | None = None) -> View:
        """Of records with one segment each, (n, d), or none."""
        has = np.ones(len(vectors), bool) if present is None else present
        nothing = np.zeros((0, vectors.shape[1]))
        return cls(np.asarray(vectors, np.float64), has.astype(np.int64), nothing, np.zeros(0, np.int64))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which records have the modality, bool (n,)."""
        return self.segments > 0


def concatenate(views: Iterable[View]) -> View:
    """The records of several views of one modality, one after the other."""
    several = list(views)
    starts = np.cumsum([0, *(len(view.means) for view in several)])
    return View(
        np.concatenate([view.means for view in several]),
        np.concatenate([view.segments for view in several]),
        np.concatenate([view.residuals for view in several]),
        np.concatenate([view.owners + start for view, start in zip(several, starts)]),
    )


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of two views over the records that have both.

    Attributes:
        count: n, number of records.
        weight: sum of their weights w; n where each weighs 1.
        mean_x: weighted, float64 (dx,).
        mean_y: weighted, float64 (dy,).
        comoment: M = sum over records of w (x - mean_x)(y - mean_y)^T, float64 (dx, dy).
    """

    count: int
    weight: float
    mean_x: Matrix
    mean_y: Matrix
    comoment: Matrix

    @classmethod
    def of(cls, x: Matrix, y: Matrix, weights: Matrix) -> PairMoments:
        """Of rows that belong together, (n, dx) and (n, dy), with weights above 0, (n,); n may be 0."""
        if not len(x):
            return cls(0, 0.0, np.zeros(x.shape[1]), np.zeros(y.shape[1]), np.zeros((x.shape[1], y.shape[1])))
        total = float(weights.sum())
        mean_x, mean_y = weights @ x / total, weights @ y / total
        root = np.sqrt(weights)[:, np.newaxis]
        left = (x - mean_x) * root
        right = left if x is y else (y - mean_y) * root  # of one matrix with itself BLAS computes but one half
        return cls(len(x), total, mean_x, mean_y, left.T @ right)

    def merge(self, other: PairMoments) -> PairMoments:
        """Of both sets of records together (Chan, Golub, LeVeque 1979, equation 2.1, for two variables and weights)."""
        if not self.count or not other.count:
            return self if self.count else other
        weight = self.weight + other.weight
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share = other.weight / weight
        return PairMoments(
            self.count + other.count,
            weight,
            self.mean_x + step_x * share,
            self.mean_y + step_y * share,
            self.comoment + other.comoment + np.outer(step_x * (self.weight * share), step_y),
        )

    def projected(self, left: Matrix, right: Matrix) -> PairMoments:
        """Of left^T x and right^T y, (dx, p) and (dy, q)."""
        return replace(
            self, mean_x=left.T @ self.mean_x, mean_y=right.T @ self.mean_y, comoment=left.T @ self.comoment @ right
        )

    def scaled(self, left: Matrix, right: Matrix) -> PairMoments:
        """Of each feature of x and y times a factor, (dx,) and (dy,)."""
        return replace(
            self, mean_x=left * self.mean_x, mean_y=right * self.mean_y, comoment=np.outer(left, right) * self.comoment
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of each pair of modalities, a modality with itself included.

    Attributes:
        pairs: by (a, b), a <= b in the alphabet; memory O(d^2), whatever the number of records.
    """

    pairs: Mapping[tuple[str, str], PairMoments]

    @classmethod
    def of(
        cls, views: Mapping[str, View], weights: NDArray[np.float64] | None = None, by_segment: bool = False
    ) -> Moments:
        """Of records that may lack modalities.

        They are the moments of drawing a record, and of each modality that it has one of its segments: all pairs of
        its segments together have the outer product of its two means as their mean.

        Args:
            weights: of the records, (n,), 0 or more; by default each counts once.
            by_segment: each segment counts once, and of two modalities each pair of segments.
        """
        if weights is None:
            weights = np.ones(len(next(iter(views.values())).means))
        return cls(
            {
                (a, b): _pair(views[a], views[b], weights, by_segment)
                for a, b in combinations_with_replacement(sorted(views), 2)
            }
        )

    def merge(self, other: Moments) -> Moments:
        """Of both sets of records together. Associative and commutative up to rounding."""
        if self.pairs.keys() != other.pairs.keys():
            raise ValueError(f"moments of {sorted(self.pairs)} and of {sorted(other.pairs)} don't merge")
        return Moments({pair: moments.merge(other.pairs[pair]) for pair, moments in self.pairs.items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays under the names `a/b/count`, `a/b/weight`, `a/b/mean_x`, `a/b/mean_y`, `a/b/comoment`."""
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
                    float(arrays[f"{a}/{b}/weight"]),
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

    def weight(self, a: str, b: str) -> float:
        """The sum of the weights of the records that have both modalities."""
        return self.pairs[min(a, b), max(a, b)].weight

    def mean(self, modality: str) -> Matrix:
        """Mean over all records that have the modality, (d,)."""
        return self.pairs[modality, modality].mean_x

    def covariance(self, a: str, b: str) -> Matrix:
        """Covariance over the records that have both, (da, db); zeros where none has."""
        pair = self.pairs[min(a, b), max(a, b)]
        covariance = pair.comoment / (pair.weight or 1.0)
        return covariance if a <= b else covariance.T

    def projected(self, bases: Mapping[str, Matrix]) -> Moments:
        """Of B^T x for a basis B (d, q) of each modality that is named; without the other modalities."""
        return Moments({(a, b): pair.projected(bases[a], bases[b]) for (a, b), pair in self._among(bases)})

    def scaled(self, factors: Mapping[str, Matrix]) -> Moments:
        """Of each feature times its factor, (d,) for each modality that is named; without the other modalities."""
        return Moments({(a, b): pair.scaled(factors[a], factors[b]) for (a, b), pair in self._among(factors)})

    def _among(self, names: Container[str]) -> list[tuple[tuple[str, str], PairMoments]]:
        return [(pair, moments) for pair, moments in self.pairs.items() if pair[0] in names and pair[1] in names]


def merge_all(several: Iterable[Moments]) -> Moments:
    """The moments of all records together, merged in the order given."""
    return reduce(Moments.merge, several)


def _pair(x: View, y: View, weights: NDArray[np.float64], by_segment: bool) -> PairMoments:
    both = x.present & y.present & (weights > 0)
    weight = weights[both]
    if by_segment:
        weight = weight * x.segments[both] * (1 if x is y else y.segments[both])
    left = x.means[both]
    moments = PairMoments.of(left, left if x is y else y.means[both], weight)
    if x is not y:
        return moments
    # A modality's own variance is that of its segments, not of the means of its records, which is smaller.
    mine = both[x.owners]
    owners = x.owners[mine]
    share = weights[owners] if by_segment else weights[owners] / x.segments[owners]
    spread = x.residuals[mine] * np.sqrt(share)[:, np.newaxis]
    return replace(moments, comoment=moments.comoment + spread.T @ spread) if len(spread) else moments
