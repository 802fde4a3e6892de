"""Moments to maps: regularized multi-view canonical correlation analysis, in closed form.

Each modality is standardized and whitened with a ridge, P = (C + r m I)^(-1/2), where C is its correlation matrix and
m the mean of its eigenvalues. The maps are the top eigenvectors of the block matrix of whitened cross-correlations
(zero on its diagonal): the MAXVAR generalization of CCA (Kettenring 1971, "Canonical analysis of several sets of
variables"), with ridge as in Vinod 1976. For two modalities it is the SVD of P_x C_xy P_y, which is classical CCA.

The ridge of each modality and the weights of the directions are chosen by cross-validation over folds of the training
records. Only the folds' moments are needed: those of the training side are the merge of the other folds.

Each direction is scaled to unit variance over the training records and weighted by the square root of its held-out
correlation: the inner product of two embeddings is then sum_k rho_k u_k v_k, which is the log-ratio
log p(u, v) / p(u) p(v) of jointly Gaussian canonical variates to first order in rho.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.config import FitConfig
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.features import UnitFeatures, read_unit
from mmembed.linear import LinearMap
from mmembed.moments import Moments
from mmembed.shards import write_bytes, write_json
from mmembed.splits import TRAIN, fold_of, group_of, split_of
from mmembed.types import Space

Matrix = NDArray[np.float64]
Ridges = dict[str, float]

VERSION = "2"
"""Of the way maps are learned: a change of it needs another one, so that maps of both never count as one space."""

FOLDS = 5
MOMENTS = "maps/moments"
"""Where blocks leave their moments until they are merged; not part of the data set."""

_UNITS_AT_ONCE = 8  # enough rows for a matrix product to outweigh the merge of its result
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_TRIAL_COMPONENTS = 256  # of each modality: what the ridge leaves of the others decides no trial, but costs its cube
_MIN_PAIRS = 10  # fewer say nothing about how modalities go together
_TRIAL_DIRECTIONS = 64  # the directions that follow are noise in each set tried
_MAX_CORRELATION = 0.999
_DEAD = 1e-6  # a feature whose deviation is below this share of its mean carries rounding errors only


def training_moments(
    dataset: Dataset, units: Sequence[int], modalities: Sequence[str], config: FitConfig
) -> list[Moments]:
    """Moments of the training records of some units, one for each fold; units in order, a few in memory at a time.

    Features are pooled by record: a record counts once, however many segments it has.
    """
    merged: list[Moments] = []
    for start in range(0, len(units), _UNITS_AT_ONCE):
        some = [read_unit(dataset, number, modalities) for number in units[start : start + _UNITS_AT_ONCE]]
        for fold, moments in enumerate(_units_moments(some, config)):  # one fold more in memory at a time
            if start:
                merged[fold] = merged[fold].merge(moments)
            else:
                merged.append(moments)
    return merged


def _units_moments(units: Sequence[UnitFeatures], config: FitConfig) -> Iterator[Moments]:
    groups = [
        group_of(id, record, config.group_column)
        for unit in units
        for id, record in zip(unit.ids, unit.records, strict=True)
    ]
    training = np.array([split_of(group, config.holdout) == TRAIN for group in groups], bool)
    fold = np.array([fold_of(group, FOLDS) for group in groups], np.intp)
    views = {name: np.concatenate([unit.pooled[name] for unit in units]) for name in units[0].pooled}
    present = {name: np.concatenate([unit.present[name] for unit in units]) for name in views}
    for number in range(FOLDS):
        yield Moments.of(views, {name: has & training & (fold == number) for name, has in present.items()})


@dataclass(frozen=True)
class AccumulateBlock:
    """Writes the moments of a block of units by fold: a picklable value, called on workers."""

    dataset: Dataset
    modalities: Sequence[str]
    config: FitConfig

    def __call__(self, block: int, units: tuple[int, ...]) -> str:
        from safetensors.numpy import save

        folds = training_moments(self.dataset, units, self.modalities, self.config)
        arrays = {
            f"{fold}/{name}": array for fold, moments in enumerate(folds) for name, array in moments.to_arrays().items()
        }
        name = f"{MOMENTS}/block-{block:05d}.safetensors"
        write_bytes(self.dataset.root / name, save(arrays))
        return name


@dataclass(frozen=True)
class ReadMoments:
    """Reads one fold of what `AccumulateBlock` wrote in the same run: a picklable value, called on a worker."""

    root: Path

    def __call__(self, name: str, fold: int) -> Moments:
        from safetensors import safe_open

        with safe_open(self.root / name, framework="numpy") as file:
            keys = [key for key in list(file.keys()) if key.startswith(f"{fold}/")]
            return Moments.from_arrays({key.partition("/")[2]: file.get_tensor(key) for key in keys})


@dataclass(frozen=True)
class WriteMaps:
    """Moments by fold to the files of maps/: a picklable value, called on a worker.

    Attributes:
        version: of the space that the maps lead to.
    """

    root: Path
    spaces: Mapping[str, Space]
    config: FitConfig
    version: str

    def __call__(self, folds: list[Moments]) -> list[str]:
        maps, report = fit_maps(folds, self.spaces, self.config.dim, self.version)
        for name, linear_map in maps.items():
            write_bytes(self.root / f"maps/{name}.safetensors", linear_map.to_bytes())
        write_json(self.root / "maps/fit.json", report)
        return [*maps, "fit.json"]


def fit_maps(
    folds: Sequence[Moments], spaces: Mapping[str, Space], dim: int, version: str
) -> tuple[dict[str, LinearMap], dict[str, Any]]:
    """Maps by modality into one space of at most `dim` dimensions, and how they came about.

    The last bits depend on the number of BLAS threads, which pipelines set to one (`threadpoolctl`).

    Args:
        folds: moments of disjoint training records.

    Raises:
        UsageError: no two modalities come together in enough records, or nothing that was learned holds in the fold
            that was not fitted.
    """
    total = _merge(folds)
    modalities = _paired(total)
    if not modalities:
        seen = ", ".join(f"{a} with {b}: {total.count(a, b)}" for a, b in combinations(total.modalities, 2))
        raise UsageError(
            f"maps are learned from records that have two modalities, at least {_MIN_PAIRS} of them that are not held "
            f"out; here are {seen}. Give such records, or the maps of another data set with --maps"
        )
    scales = {name: _scales(total, name) for name in modalities}
    sides = [
        _Side(
            _Whitening.of(_merge([*folds[:k], *folds[k + 1 :]]), scales, _TRIAL_COMPONENTS), _correlations(fold, scales)
        )
        for k, fold in enumerate(folds)
        if all(0 < fold.count(name, name) < total.count(name, name) for name in modalities)
    ]
    counts = {(a, b): total.count(a, b) for a, b in combinations(modalities, 2)}
    if not sides:
        raise UsageError(
            f"maps are tried on a part of the records that was not fitted, but no fold holds some of each of "
            f"{', '.join(modalities)} and leaves some to the others: give more records, or a --group-column with more "
            "values"
        )
    ridges, trials = _choose_ridges(sides, counts)
    rho = _spectrum(sides, counts, ridges)
    if not (rho > 0).any():
        raise UsageError(
            f"the modalities show nothing in common: of what was learned from {sum(counts.values())} pairs, nothing "
            "holds in the records that were not fitted. Give more pairs, or see whether ids and media go together"
        )
    # Nothing above depends on `dim`: the rows of a smaller map are the first rows of a larger one.
    directions = _Whitening.of(total, scales).directions(ridges, int((rho > 0).sum()))
    output = Space("mmembed", version[:16], min(dim, next(iter(directions.values())).shape[1]))
    weights = np.sqrt(rho[: output.dim])
    maps = {
        name: _map(directions[name][:, : output.dim] * weights, total, name, scales[name], spaces[name], output)
        for name in modalities
    }
    report = {
        "method": "regularized multi-view CCA, directions weighted by cross-validated correlation",
        "modalities": list(maps),
        "output": asdict(output),
        "pairs": {f"{a}+{b}": count for (a, b), count in counts.items()},
        "records": {name: total.count(name, name) for name in modalities},
        "folds": len(sides),
        "ridge": ridges,
        "correlations": [round(float(value), 6) for value in rho[: output.dim]],
        "trials": trials,
        "dead_features": {name: int(np.isinf(scales[name]).sum()) for name in modalities},
    }
    return maps, report


@dataclass(frozen=True, eq=False)
class _Whitening:
    """Principal components of each modality's correlations, and cross-correlations between components.

    Attributes:
        mean: of all eigenvalues of a modality, also of those that were left out.
        values: eigenvalues, (q,) each.
        vectors: eigenvectors, (d, q) each.
        cross: by pair, (q, q).
        weights: by pair, its share of the records of the most frequent pair: a pair that was seldom seen together
            has cross-correlations that are mostly noise, and would else take the first directions.
    """

    mean: dict[str, float]
    values: dict[str, Matrix]
    vectors: dict[str, Matrix]
    cross: dict[tuple[str, str], Matrix]
    weights: dict[tuple[str, str], float]

    @classmethod
    def of(cls, moments: Moments, scales: Mapping[str, Matrix], components: int | None = None) -> _Whitening:
        correlations = _correlations(moments, scales)
        decomposed = {name: np.linalg.eigh(correlations[name, name]) for name in scales}
        values = {name: np.maximum(pair.eigenvalues[::-1], 0) for name, pair in decomposed.items()}
        vectors = {name: pair.eigenvectors[:, ::-1][:, :components] for name, pair in decomposed.items()}
        pairs = list(combinations(scales, 2))
        most = max(moments.count(a, b) for a, b in pairs)
        return cls(
            {name: max(float(all_.mean()), _DEAD) for name, all_ in values.items()},
            {name: all_[:components] for name, all_ in values.items()},
            vectors,
            {(a, b): vectors[a].T @ correlations[a, b] @ vectors[b] for a, b in pairs},
            {(a, b): moments.count(a, b) / max(most, 1) for a, b in pairs},
        )

    def directions(self, ridges: Ridges, most: int) -> dict[str, Matrix]:
        """The top directions (d, k <= most) of each modality, for standardized features, of unit variance."""
        from scipy.linalg import eigh

        roots = {name: 1 / np.sqrt(values + ridges[name] * self.mean[name]) for name, values in self.values.items()}
        ends = np.cumsum([0, *(len(values) for values in self.values.values())])
        place = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(self.values)}
        block = np.zeros((ends[-1], ends[-1]))
        for (a, b), cross in self.cross.items():
            block[place[a], place[b]] = self.weights[a, b] * roots[a][:, None] * cross * roots[b]
            block[place[b], place[a]] = block[place[a], place[b]].T
        # No more than some two modalities can share: a narrow third one must not cut off what the others have.
        count = min(most, sorted(len(values) for values in self.values.values())[-2])
        _, vectors = eigh(block, subset_by_index=[ends[-1] - count, ends[-1] - 1])
        vectors = vectors[:, ::-1]
        vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), range(count)] < 0, -1, 1)
        variates = {name: roots[name][:, None] * vectors[place[name]] for name in place}
        deviations = {name: np.sqrt(self.values[name] @ variates[name] ** 2) for name in place}
        return {
            name: self.vectors[name]
            @ np.divide(
                variates[name], deviations[name], out=np.zeros_like(variates[name]), where=deviations[name] > _DEAD
            )
            for name in place
        }


@dataclass(frozen=True, eq=False)
class _Side:
    """One split of cross-validation: what is fitted, and the correlations of the fold that is not."""

    fitted: _Whitening
    held_out: dict[tuple[str, str], Matrix]


def _choose_ridges(
    sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]
) -> tuple[Ridges, list[dict[str, Any]]]:
    """The ridges with the most held-out information: first one for all, then a walk to better neighbours."""
    trials: dict[tuple[float, ...], float] = {}
    names = sorted({name for pair in counts for name in pair})

    def information(steps: tuple[int, ...]) -> float:
        ridges = tuple(RIDGES[step] for step in steps)
        if ridges not in trials:
            trials[ridges] = _information(sides, counts, dict(zip(names, ridges, strict=True)))
        return trials[ridges]

    best = max(((step,) * len(names) for step in range(len(RIDGES))), key=information)
    while True:
        neighbours = [
            (*best[:i], best[i] + move, *best[i + 1 :])
            for i in range(len(names))
            for move in (-1, 1)
            if 0 <= best[i] + move < len(RIDGES)
        ]
        better = max([best, *neighbours], key=information)
        if better == best:
            break
        best = better
    report = [
        {"ridge": dict(zip(names, ridges, strict=True)), "information": round(value, 6)}
        for ridges, value in trials.items()
    ]
    return dict(zip(names, (RIDGES[step] for step in best), strict=True)), report


def _information(sides: Sequence[_Side], counts: Mapping[tuple[str, str], int], ridges: Ridges) -> float:
    """Mutual information of held-out canonical variates in nats, -1/2 sum log(1 - rho^2), over the directions whose
    correlation stands above its noise; pairs of modalities count by their records."""
    value = 0.0
    for pair, rho in _held_out(sides, ridges, _TRIAL_DIRECTIONS).items():
        sure = np.clip(rho[rho > 2 / np.sqrt(max(counts[pair], 1))], 0, _MAX_CORRELATION)
        value -= counts[pair] / max(counts.values()) * 0.5 * float(np.log1p(-(sure**2)).sum())
    return value


def _spectrum(sides: Sequence[_Side], counts: Mapping[tuple[str, str], int], ridges: Ridges) -> Matrix:
    """Held-out correlation of each direction, mean of the pairs of modalities by their records, made non-increasing."""
    rho = sum(counts[pair] * values for pair, values in _held_out(sides, ridges, _TRIAL_COMPONENTS).items()) / sum(
        counts.values()
    )
    return np.clip(_non_increasing(np.asarray(rho)), 0, _MAX_CORRELATION)


def _held_out(sides: Sequence[_Side], ridges: Ridges, count: int) -> dict[tuple[str, str], Matrix]:
    """By pair of modalities, the correlation (k,) of each direction in the fold not fitted; mean of the folds."""
    found = [_fold_correlations(side, side.fitted.directions(ridges, count)) for side in sides]
    size = min(len(values) for fold in found for values in fold.values())
    return {pair: np.mean([fold[pair][:size] for fold in found], axis=0) for pair in found[0]}


def _fold_correlations(side: _Side, directions: Mapping[str, Matrix]) -> dict[tuple[str, str], Matrix]:
    variances = {name: ((side.held_out[name, name] @ v) * v).sum(axis=0) for name, v in directions.items()}
    return {
        (a, b): ((side.held_out[a, b] @ directions[b]) * directions[a]).sum(axis=0)
        / np.sqrt(np.maximum(variances[a] * variances[b], np.finfo(float).tiny))
        for a, b in combinations(directions, 2)
    }


def _correlations(moments: Moments, scales: Mapping[str, Matrix]) -> dict[tuple[str, str], Matrix]:
    return {(a, b): moments.covariance(a, b) / np.outer(scales[a], scales[b]) for a in scales for b in scales if a <= b}


def _scales(moments: Moments, name: str) -> Matrix:
    """Deviation of each feature; infinite for a dead one, so that it gets no weight."""
    deviation = np.sqrt(np.maximum(np.diag(moments.covariance(name, name)), 0))
    return np.where(deviation > _DEAD * np.abs(moments.mean(name)), deviation, np.inf)


def _paired(moments: Moments) -> list[str]:
    """The modalities that come together with another one in enough records, those with dead features only left out."""
    alive = [name for name in moments.modalities if np.isfinite(_scales(moments, name)).any()]
    pairs = [pair for pair in combinations(alive, 2) if moments.count(*pair) >= _MIN_PAIRS]
    return sorted({name for pair in pairs for name in pair})


def _map(directions: Matrix, total: Moments, name: str, scale: Matrix, input: Space, output: Space) -> LinearMap:
    weight = (directions / scale[:, None]).T
    bias = -weight @ total.mean(name)
    return LinearMap(weight.astype(np.float32), bias.astype(np.float32), input, output)


def _merge(several: Sequence[Moments]) -> Moments:
    return reduce(Moments.merge, several)


def _non_increasing(values: Matrix) -> Matrix:
    """The nearest non-increasing sequence in least squares (pool adjacent violators)."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(values, increasing=False).x)
