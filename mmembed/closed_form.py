"""Directions in closed form, from moments alone: canonical correlations, partial least squares, Procrustes, ridge.

All start from principal components of the standardized features of each modality. What a method gives is, for each
modality, a matrix of directions (q, k) in its components: z is the inner products of a record's components with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.moments import Matrix, Moments

Ridges = Mapping[str, float]
Directions = dict[str, Matrix]
"""By modality, float64 (q, k), in components."""

DEAD = 1e-6
"""A feature whose deviation is below this share of its mean carries rounding errors only."""

_ROTATIONS = 200
_CONVERGED = 1e-10


def scales(moments: Moments, name: str) -> Matrix:
    """Deviation of each feature, (d,); infinite for a dead one, so that it gets no weight.

    A feature is judged by its own scale: one column of 1e12 kills no other.
    """
    deviation = np.sqrt(np.maximum(np.diag(moments.covariance(name, name)), 0))
    return np.where(deviation > DEAD * np.abs(moments.mean(name)), deviation, np.inf)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of each modality, and what they have in common.

    Attributes:
        factors: what standardizes a feature, 1 over its deviation, (d,) each; 0 for a dead one.
        means: of the features, (d,) each.
        bases: component j of x is (x - mean) @ basis[:, j]; (d, q) each. The largest come first.
        values: variances of the components, (q,) each.
        level: the mean variance of standardized features, the unit of ridges.
        cross: by pair of modalities, covariances of their components, (q_a, q_b).
        weights: by pair, its share of the records of the most frequent pair: a pair that was seldom seen together has
            correlations that are mostly noise, and would else take the first directions.
    """

    factors: Mapping[str, Matrix]
    means: Mapping[str, Matrix]
    bases: Mapping[str, Matrix]
    values: Mapping[str, Matrix]
    level: Mapping[str, float]
    cross: Mapping[tuple[str, str], Matrix]
    weights: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, moments: Moments, modalities: Sequence[str]) -> Components:
        """All components of the features, each over its deviation."""
        factors = {name: 1 / scales(moments, name) for name in modalities}
        spans = {name: np.diag(factor) for name, factor in factors.items()}
        return cls._of(moments.scaled(factors), moments, spans, factors)

    def within(self, moments: Moments, count: int) -> Components:
        """The components that other records have within the span of the first `count` of these, but for those that
        vary in none: few records have few."""
        alive = {name: max(1, int((values > DEAD * values[0]).sum())) for name, values in self.values.items()}
        spans = {name: basis[:, : min(count, alive[name])] for name, basis in self.bases.items()}
        return self._of(moments.projected(spans), moments, spans, self.factors)

    @classmethod
    def _of(
        cls, inner: Moments, moments: Moments, spans: Mapping[str, Matrix], factors: Mapping[str, Matrix]
    ) -> Components:
        decomposed = {name: np.linalg.eigh(inner.covariance(name, name)) for name in spans}
        vectors = {name: _signed(pair.eigenvectors[:, ::-1]) for name, pair in decomposed.items()}
        pairs = list(combinations(sorted(spans), 2))
        most = max((moments.weight(a, b) for a, b in pairs), default=0)
        return cls(
            factors,
            {name: moments.mean(name) for name in spans},
            {name: span @ vectors[name] for name, span in spans.items()},
            {name: np.maximum(pair.eigenvalues[::-1], 0) for name, pair in decomposed.items()},
            {name: _level(moments, name, factors[name]) for name in spans},
            {(a, b): vectors[a].T @ inner.covariance(a, b) @ vectors[b] for a, b in pairs},
            {(a, b): moments.weight(a, b) / (most or 1) for a, b in pairs},
        )

    def rows(self, name: str, features: NDArray[Any]) -> NDArray[np.float32]:
        """Components, float32 (n, q), of features (n, d)."""
        basis = self.bases[name]
        return np.asarray(features @ basis.astype(np.float32) - (self.means[name] @ basis).astype(np.float32))


def canonical(components: Components, ridges: Ridges, most: int) -> Directions:
    """Regularized multi-view CCA: the top directions (q, k <= most) of each modality, each of unit variance.

    Each modality is whitened with a ridge, P = (C + r m I)^(-1/2), m the mean variance of its standardized features.
    The directions are the top eigenvectors of the block matrix of whitened cross-covariances, zero on its diagonal:
    the SUMCOR form of Kettenring 1971, "Canonical analysis of several sets of variables", relaxed to one constraint,
    with the ridge of Vinod 1976; for two modalities, the singular vectors of P_x C_xy P_y, which is classical CCA.
    """
    roots = {
        name: 1 / np.sqrt(np.maximum(values + ridges[name] * components.level[name], np.finfo(float).tiny))
        for name, values in components.values.items()
    }
    top = _block_eigenvectors(components, roots, most)
    variates = {name: roots[name][:, np.newaxis] * vectors for name, vectors in top.items()}
    deviation = {name: np.sqrt(components.values[name] @ inner**2) for name, inner in variates.items()}
    return {
        name: np.divide(inner, deviation[name], out=np.zeros_like(inner), where=deviation[name] > DEAD)
        for name, inner in variates.items()
    }


def partial_least_squares(components: Components, most: int) -> Directions:
    """PLS: the singular vectors of the cross-covariance of standardized features (Tucker 1958, "inter-battery"
    analysis); of more than two modalities, the top eigenvectors of their block matrix, each part of length 1."""
    ones = {name: np.ones(len(values)) for name, values in components.values.items()}
    top = _block_eigenvectors(components, ones, most)
    return {name: _unit_columns(vectors) for name, vectors in top.items()}


def procrustes(components: Components, size: int) -> Directions:
    """Orthogonal Procrustes: rotations of the first `size` components of each modality onto each other.

    Of two modalities, the rotations are the singular vectors of their cross-covariance (Schönemann 1966); of more,
    they are turned one after the other to the polar factor of what the others make of it (ten Berge 1977).
    The directions are ordered by the covariance that they share.
    """
    names = sorted(components.values)
    size = min(size, *(len(components.values[name]) for name in names))
    cross = {pair: components.weights[pair] * matrix[:size, :size] for pair, matrix in components.cross.items()}

    def of(a: str, b: str) -> Matrix:
        return cross[a, b] if a < b else cross[b, a].T

    turned = {name: np.eye(size) for name in names}
    before = -np.inf
    for _ in range(_ROTATIONS):
        for name in names[1:]:
            pull = sum((of(name, other) @ turned[other] for other in names if other != name), np.zeros((size, size)))
            left, _, right = np.linalg.svd(pull)
            turned[name] = left @ right
        shared = sum((turned[a].T @ matrix @ turned[b] for (a, b), matrix in cross.items()), np.zeros((size, size)))
        if np.trace(shared) <= before * (1 + _CONVERGED):
            break
        before = float(np.trace(shared))
    # One more rotation of all, which changes no inner product: what is shared most comes first.
    order = np.linalg.eigh((shared + shared.T) / 2).eigenvectors[:, ::-1]
    padding = {name: len(components.values[name]) - size for name in names}
    return _with_signs({name: np.pad(turned[name] @ order, ((0, padding[name]), (0, 0))) for name in names})


def ridge(components: Components, anchor: str, penalty: float, most: int) -> Directions:
    """Ridge regression of the standardized features of one modality, the anchor, from those of each other one.

    The space is that of the anchor's features, turned so that what the others predict of it comes first (reduced-rank
    regression, Izenman 1975): with all directions kept, inner products are those of predictions and features.

    Args:
        penalty: in units of the mean variance of standardized features.
    """
    others = [name for name in components.values if name != anchor]

    def cross(name: str) -> Matrix:
        return components.cross[name, anchor] if name < anchor else components.cross[anchor, name].T

    slopes = {
        name: cross(name) / (components.values[name] + penalty * components.level[name])[:, np.newaxis]
        for name in others
    }
    weight = {name: components.weights[min(name, anchor), max(name, anchor)] for name in others}
    predicted = sum(
        weight[name] * slopes[name].T @ (components.values[name][:, np.newaxis] * slopes[name]) for name in others
    )
    turn = np.linalg.eigh(predicted).eigenvectors[:, ::-1][:, :most]
    return _with_signs({anchor: turn, **{name: slopes[name] @ turn for name in others}})


def _block_eigenvectors(components: Components, roots: Mapping[str, Matrix], most: int) -> dict[str, Matrix]:
    """The top eigenvectors of the weighted block matrix of cross-covariances, each modality's part (q, k)."""
    from scipy.linalg import eigh

    names = sorted(components.values)
    if len(names) == 2:
        return _singular_vectors(components, roots, most)
    ends = np.cumsum([0, *(len(components.values[name]) for name in names)])
    place = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(names)}
    block = np.zeros((ends[-1], ends[-1]))
    for (a, b), cross in components.cross.items():
        block[place[a], place[b]] = components.weights[a, b] * roots[a][:, np.newaxis] * cross * roots[b]
        block[place[b], place[a]] = block[place[a], place[b]].T
    # No more than some two modalities can share: a narrow third one must not cut off what the others have.
    count = min(most, sorted(len(values) for values in components.values.values())[-2])
    _, vectors = eigh(block, subset_by_index=[ends[-1] - count, ends[-1] - 1])
    vectors = _signed(vectors[:, ::-1])
    return {name: vectors[place[name]] for name in names}


def _singular_vectors(components: Components, roots: Mapping[str, Matrix], most: int) -> dict[str, Matrix]:
    """The same of two modalities, by the eigenvectors of the smaller Gram matrix: a tenth of the time.

    Squaring costs singular values below 1e-7 or so, which carry nothing.
    """
    from scipy.linalg import eigh

    a, b = sorted(components.values)
    cross = roots[a][:, np.newaxis] * components.cross[a, b] * roots[b]
    wide = len(cross) > cross.shape[1]
    narrow = cross.T if wide else cross
    size = len(narrow)
    values, first = eigh(narrow @ narrow.T, subset_by_index=[size - min(most, size), size - 1])
    singular = np.sqrt(np.maximum(values[::-1], 0))
    first = first[:, ::-1]
    second = np.divide(
        narrow.T @ first, singular, out=np.zeros((narrow.shape[1], len(singular))), where=singular > DEAD
    )
    first = first * (singular > DEAD)
    return _with_signs({a: second, b: first} if wide else {a: first, b: second})


def _signed(vectors: Matrix) -> Matrix:
    """Columns, each with its largest entry positive: a decomposition leaves the sign to chance."""
    return vectors * _signs(vectors)


def _with_signs(inner: dict[str, Matrix]) -> dict[str, Matrix]:
    """The same signs for all modalities, by the largest entry of all parts of a column."""
    signs = _signs(np.concatenate(list(inner.values())))
    return {name: matrix * signs for name, matrix in inner.items()}


def _signs(vectors: Matrix) -> Matrix:
    """That of the largest entry of each column, 1 or -1, (k,)."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.where(largest < 0, -1.0, 1.0)


def _unit_columns(matrix: Matrix) -> Matrix:
    lengths = np.linalg.norm(matrix, axis=0)
    return np.asarray(np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > DEAD))


def _level(moments: Moments, name: str, factor: Matrix) -> float:
    return max(float(np.mean(np.diag(moments.covariance(name, name)) * factor**2)), DEAD)
