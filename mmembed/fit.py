"""Features to maps: moments and a sample of the training records on the workers, then the fit.

What nobody should have to set is chosen by cross-validation over folds of the training records. Ridges: by the
information that held-out correlations carry, from the folds' moments alone, for the training moments of a split are
the merge of the other folds'. The number of directions and their weights, and whether a lift or gradient descent pay
off: by how well records of the sample find each other when they were not fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed import closed_form, refine
from mmembed.closed_form import Components, Directions, scales
from mmembed.config import FitConfig
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.features import UnitFeatures, read_unit
from mmembed.files import Place
from mmembed.linear import Lift, LinearMap, Scoring
from mmembed.moments import Matrix, Moments, View, concatenate, merge_all
from mmembed.pairs import Pairs, join, reciprocal_rank
from mmembed.shards import fetched, write_bytes, write_json
from mmembed.splits import TRAIN, Groups, fold_of, position, split_of
from mmembed.types import Space

Ridges = dict[str, float]

VERSION = "4"
"""Of the way maps are learned: a change of it needs another one, so that maps of both never count as one space."""

FOLDS = 5
MOMENTS = "maps/moments"
"""Where blocks leave their moments and sample until they are merged; not part of the data set."""

SAMPLE_RECORDS = 50_000
SAMPLE_BYTES = 256 << 20
"""Of the training records that are kept in memory, at most."""

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""In units of the mean variance of standardized features."""

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Directions are weighted by s^p, s their held-out correlations (Gong et al. 2014, section 3.2, has eigenvalues)."""

SIZES = (16, 32, 64, 128, 256)

_UNITS_AT_ONCE = 8  # enough rows for a matrix product to outweigh the merge of its result
_TRIAL_COMPONENTS = 256  # of each modality: what the ridge leaves of the others decides no trial, but costs its cube
_TRIAL_RECORDS = 2_500  # that are tried: their ranks are within 0.01 or so of those of all
_TRIAL_DIRECTIONS = 64  # the directions that follow are noise in each set tried
_MIN_PAIRS = 10  # fewer say nothing about how modalities go together
_MAX_CORRELATION = 0.98  # a canonical variate that is nearly the same in both modalities must not drown the others
_ENOUGH = 0.995  # of the best rank: fewer dimensions that give so much are taken
_DESCENT_RECORDS = 500  # fewer can't tell whether gradient descent helps
_DESCENT_SLICES = 3
_WAVES = 512  # random Fourier features of a lift
_WIDTHS = (0.5, 1.0)  # of the kernel, in typical distances of two records
_LIFT_DIMS = 1024  # wider features come from encoders that leave nothing to bend, and a trial costs their cube
_LIFT_RIDGES = (0.01, 0.1, 1.0)
_LIFT_GAIN = 1.05  # what a lift must give in a first trial: it makes maps twice as large


def training_data(
    dataset: Dataset, units: Sequence[int], modalities: Sequence[str], config: FitConfig, groups: Groups, share: float
) -> tuple[list[Moments], Pairs]:
    """Moments of the training records of some units, one for each fold, and a sample of the records.

    Units come in order, a few in memory at a time.

    Args:
        share: of the records that go into the sample.
    """
    moments: list[Moments] = []
    samples = []
    for start in range(0, len(units), _UNITS_AT_ONCE):
        some = [read_unit(dataset, number, modalities) for number in units[start : start + _UNITS_AT_ONCE]]
        found, sample = _units_data(some, config, groups, share)
        samples.append(sample)
        for fold, part in enumerate(found):  # one fold more in memory at a time
            if start:
                moments[fold] = moments[fold].merge(part)
            else:
                moments.append(part)
    return moments, join(samples)


def _units_data(
    units: Sequence[UnitFeatures], config: FitConfig, groups: Groups, share: float
) -> tuple[Iterator[Moments], Pairs]:
    records = [(id, record) for unit in units for id, record in zip(unit.ids, unit.records, strict=True)]
    group = [groups.of(id, record) for id, record in records]
    training = np.array([split_of(name, config.holdout) == TRAIN for name in group], bool)
    folds = np.array([fold_of(name, FOLDS) for name in group], np.int64)
    weights = np.array([_weight(record, config) for _, record in records]) * training
    names = list(units[0].views)
    views = {name: concatenate(unit.views[name] for unit in units) for name in names}
    media = {name: np.concatenate([unit.media[name] for unit in units]) for name in names}
    chosen = (weights > 0) & np.array([position(id, "sample") < share for id, _ in records], bool)
    moments = (
        Moments.of(views, weights * (folds == fold), by_segment=config.count == "segments") for fold in range(FOLDS)
    )
    return moments, Pairs.of(views, folds, media).take(chosen)


def _weight(record: Mapping[str, Any], config: FitConfig) -> float:
    """The product of the weights of all rules that a record meets."""
    met = [
        weight
        for (key, value), weight in config.weights.items()
        if record.get(key) is not None and str(record[key]) == value
    ]
    return float(np.prod(met))


def sample_share(records: int, dims: Sequence[int]) -> float:
    """The share of so many records whose features of so many dimensions may be kept in memory."""
    return min(1.0, SAMPLE_RECORDS / max(records, 1), SAMPLE_BYTES / (4 * sum(dims) * max(records, 1)))


def fit_bytes(dims: Sequence[int]) -> int:
    """About what fitting features of so many dimensions takes: moments of all folds, what is made of them, and the
    sample."""
    return (1 << 30) + 3 * FOLDS * 8 * sum(dims) ** 2 + 4 * SAMPLE_BYTES


@dataclass(frozen=True)
class AccumulateBlock:
    """Writes the moments of a block of units by fold, and its part of the sample: a picklable value, called on workers.

    Attributes:
        share: of the records that go into the sample.
    """

    dataset: Dataset
    modalities: Sequence[str]
    config: FitConfig
    groups: Groups
    share: float

    def __call__(self, block: int, units: tuple[int, ...]) -> str:
        from safetensors.numpy import save

        folds, sample = training_data(self.dataset, units, self.modalities, self.config, self.groups, self.share)
        arrays = {
            f"{fold}/{name}": array for fold, moments in enumerate(folds) for name, array in moments.to_arrays().items()
        }
        arrays |= {f"sample/{name}": np.ascontiguousarray(array) for name, array in sample.to_arrays().items()}
        name = f"{MOMENTS}/block-{block:05d}.safetensors"
        write_bytes(self.dataset.root / name, save(arrays))
        return name


@dataclass(frozen=True)
class ReadMoments:
    """Reads one fold of what `AccumulateBlock` wrote in the same run: a picklable value, called on a worker."""

    root: Place

    def __call__(self, name: str, fold: int) -> Moments:
        return Moments.from_arrays(_read_block(self.root / name, f"{fold}/"))


def _read_block(path: Place, prefix: str) -> dict[str, NDArray[Any]]:
    from safetensors import safe_open

    with fetched(path) as local, safe_open(local, framework="numpy") as file:
        keys = [key for key in list(file.keys()) if key.startswith(prefix)]
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


@dataclass(frozen=True)
class WriteMaps:
    """Moments by fold to the files of maps/: a picklable value, called on a worker with the names of the blocks.

    Attributes:
        version: of the space that the maps lead to.
    """

    root: Place
    spaces: Mapping[str, Space]
    config: FitConfig
    version: str

    def __call__(self, folds: list[Moments], blocks: list[str]) -> list[str]:
        pairs = join(Pairs.from_arrays(_read_block(self.root / name, "sample/")) for name in blocks)
        maps, report = fit_maps(folds, pairs, self.spaces, self.config, self.version)
        for name, linear_map in maps.items():
            write_bytes(self.root / f"maps/{name}.safetensors", linear_map.to_bytes())
        write_json(self.root / "maps/fit.json", report)
        return [*maps, "fit.json"]


def fit_maps(
    folds: Sequence[Moments], pairs: Pairs, spaces: Mapping[str, Space], config: FitConfig, version: str
) -> tuple[dict[str, LinearMap], dict[str, Any]]:
    """Maps by modality into one space of at most `config.dim` dimensions, and how they came about.

    The last bits depend on the number of BLAS threads, which pipelines set to one (`threadpoolctl`).

    Args:
        folds: moments of disjoint training records.
        pairs: a sample of these records.

    Raises:
        UsageError: no two modalities come together in enough records, or nothing that was learned holds in the fold
            that was not fitted, or the method can't be used here.
    """
    total = merge_all(folds)
    if config.fit == "identity":
        return _identity(total, spaces, version)
    modalities = _paired(total)
    tried = _spread(pairs, _TRIAL_RECORDS)
    lifts, lift_report = _choose_lift(total, pairs, tried, modalities, config)
    if lifts:
        folds, pairs, tried = _lifted_folds(pairs, lifts), _lifted(pairs, lifts), _lifted(tried, lifts)
        total = merge_all(folds)
    components = Components.of(total, modalities)
    counts = {(a, b): total.count(a, b) for a, b in combinations(modalities, 2)}
    sides = _sides(folds, tried, components)
    found = _METHODS[config.fit](components, sides, counts)
    # Nothing above depends on `config.dim`: the rows of a smaller map are the first rows of a larger one.
    found, refine_report = _refined(found, sides, pairs, components, counts, config.refine)
    same = _shared_space(modalities, spaces, config.dim)
    if same and (kept := _better_unchanged(found, sides, same, counts)):
        maps, report = _identity(total, dict.fromkeys(modalities, same), version)
        return maps, {**report, "decision": kept}
    output = Space("mmembed", version[:16], min(config.dim or found.size, found.most))
    maps = {name: _map(found, components, name, spaces[name], output, lifts.get(name)) for name in modalities}
    report = {
        "method": config.fit,
        "modalities": list(maps),
        "output": asdict(output),
        "spectrum": found.scoring.first(output.dim).to_json(),
        "pairs": {f"{a}+{b}": count for (a, b), count in counts.items()},
        "records": {name: total.count(name, name) for name in modalities},
        "sample": len(pairs),
        "folds": len(sides),
        **found.report,
        "refinement": refine_report,
        "lift": lift_report,
        "dead_features": {name: int((components.factors[name] == 0).sum()) for name in modalities},
    }
    return maps, report


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What a method found.

    Attributes:
        directions: of all training records' components, (q, most) each.
        of_sides: the same, of each side of cross-validation.
        matrices: by modality (most, most), what variates are multiplied with; a diagonal before refinement.
        scoring: of all directions.
        size: how many directions pay off.
    """

    directions: Directions
    of_sides: Sequence[Directions]
    matrices: dict[str, NDArray[np.float32]]
    scoring: Scoring
    size: int
    report: Mapping[str, Any]

    @property
    def most(self) -> int:
        """The directions that there are."""
        return int(next(iter(self.matrices.values())).shape[1])

    @property
    def width(self) -> int:
        """How many of the directions that pay off all sides have."""
        return min(self.size, *(_width(directions) for directions in self.of_sides))


@dataclass(frozen=True, eq=False)
class _Side:
    """One split of cross-validation.

    Attributes:
        fitted: components of the records outside the fold.
        held_out: moments of these components over the records of the fold.
        rows: components of the sample's records of the fold, by modality float32 (n, q).
        fold: the number of the fold.
        pairs: the sample's records of the fold.
    """

    fitted: Components
    held_out: Moments
    rows: Mapping[str, NDArray[np.float32]]
    fold: int
    pairs: Pairs

    def score(self, directions: Mapping[str, Matrix], scoring: Scoring, counts: Mapping[tuple[str, str], int]) -> float:
        """Mean reciprocal rank of the fold's records, of both directions of each pair of modalities, which count by
        their records. Not a number where the fold has no pair."""
        z = {
            name: scoring.embeddings(self.rows[name][:, : len(matrix)] @ matrix.astype(np.float32))
            for name, matrix in directions.items()
        }
        return reciprocal_rank(z, self.pairs, scoring, counts)


def _sides(folds: Sequence[Moments], pairs: Pairs, components: Components) -> list[_Side]:
    names = list(components.values)
    sides = []
    for number, fold in enumerate(folds):
        others = merge_all([*folds[:number], *folds[number + 1 :]])
        if not all(fold.count(name, name) and others.count(name, name) for name in names):
            continue
        fitted = components.within(others, _TRIAL_COMPONENTS)
        mine = pairs.take(pairs.folds == number)
        rows = {name: fitted.rows(name, mine.means[name]) for name in names}
        sides.append(_Side(fitted, fold.projected(fitted.bases), rows, number, mine))
    if not sides:
        raise UsageError(
            f"maps are tried on a part of the records that was not fitted, but no fold holds some of each of "
            f"{', '.join(names)} and leaves some to the others: give more records, or a --group-column with more "
            "values"
        )
    return sides


def _canonical(components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]) -> _Fitted:
    """CCA: directions of unit variance, weighted by s^p."""
    directions, of_sides, s, report = _canonical_directions(components, sides, counts)
    weighted = {power: s**power for power in POWERS}
    size, power, sizes = _choose(sides, of_sides, weighted, Scoring(), counts)
    report |= {"power": power, "sizes": sizes}
    return _Fitted(directions, of_sides, _diagonals(directions, weighted[power]), Scoring(), size, report)


def _gaussian(components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]) -> _Fitted:
    """The score that a CCA model itself implies: z = u sqrt(s / (1 - s^2)), see `mmembed.linear.Scoring`."""
    directions, of_sides, s, report = _canonical_directions(components, sides, counts)
    weight, scoring = np.sqrt(s / (1 - s**2)), Scoring(s.astype(np.float32))
    size, _, sizes = _choose(sides, of_sides, {1.0: weight}, scoring, counts)
    report |= {"sizes": sizes}
    return _Fitted(directions, of_sides, _diagonals(directions, weight), scoring, size, report)


def _canonical_directions(
    components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]
) -> tuple[Directions, list[Directions], Matrix, dict[str, Any]]:
    """Canonical directions of all records and of each side, their held-out correlations, and what the report says."""
    ridges, rho, trials = _choose_ridges(sides, counts)
    directions = closed_form.canonical(components, ridges, len(rho))
    of_sides = [closed_form.canonical(side.fitted, ridges, len(rho)) for side in sides]
    s = rho[: _width(directions)]
    report = {"ridge": ridges, "correlations": [round(float(value), 6) for value in s], "trials": trials}
    return directions, of_sides, s, report


def _least_squares(components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]) -> _Fitted:
    """PLS, whose directions are not weighted: those of little covariance are short by themselves."""
    directions = closed_form.partial_least_squares(components, _TRIAL_COMPONENTS)
    of_sides = [closed_form.partial_least_squares(side.fitted, _TRIAL_COMPONENTS) for side in sides]
    return _plain(directions, of_sides, sides, counts, {})


def _procrustes(components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]) -> _Fitted:
    """Orthogonal Procrustes, of as many principal components as pay off."""
    tried = {
        size: [closed_form.procrustes(side.fitted, size) for side in sides]
        for size in SIZES
        if size <= max(SIZES[0], min(map(len, components.values.values())))
    }
    scores = {size: _mean_score(sides, found, Scoring(), counts) for size, found in tried.items()}
    best = max(scores, key=scores.__getitem__)
    directions = closed_form.procrustes(components, best)
    report = {"components": best, "trials": [{"components": size, "mrr": value} for size, value in scores.items()]}
    return _plain(directions, tried[best], sides, counts, report)


def _ridge(components: Components, sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]) -> _Fitted:
    """Ridge regression of one modality from each other one."""
    names = list(components.values)
    anchors = [name for name in names if all(n >= _MIN_PAIRS for pair, n in counts.items() if name in pair)]
    if not anchors:
        raise UsageError("fit = 'ridge': no modality comes together with each other one; use cca, which needs no such")
    tried = {
        (anchor, penalty): [closed_form.ridge(side.fitted, anchor, penalty, _TRIAL_COMPONENTS) for side in sides]
        for anchor in anchors
        for penalty in RIDGES
    }
    scores = {choice: _mean_score(sides, found, Scoring(), counts) for choice, found in tried.items()}
    best = max(scores, key=scores.__getitem__)
    directions = closed_form.ridge(components, *best, most=_TRIAL_COMPONENTS)
    trials = [{"anchor": a, "ridge": penalty, "mrr": value} for (a, penalty), value in scores.items()]
    report = {"anchor": best[0], "ridge": best[1], "trials": trials}
    return _plain(directions, tried[best], sides, counts, report)


_METHODS: Mapping[str, Callable[[Components, Sequence[_Side], Mapping[tuple[str, str], int]], _Fitted]] = {
    "cca": _canonical,
    "pmi": _gaussian,
    "ridge": _ridge,
    "procrustes": _procrustes,
    "pls": _least_squares,
}


def _plain(
    directions: Directions,
    of_sides: Sequence[Directions],
    sides: Sequence[_Side],
    counts: Mapping[tuple[str, str], int],
    report: Mapping[str, Any],
) -> _Fitted:
    """Directions that are not weighted, as many as pay off."""
    ones = np.ones(_width(directions))
    size, _, sizes = _choose(sides, of_sides, {0.0: ones}, Scoring(), counts)
    return _Fitted(directions, of_sides, _diagonals(directions, ones), Scoring(), size, {**report, "sizes": sizes})


def _choose(
    sides: Sequence[_Side],
    of_sides: Sequence[Directions],
    weighted: Mapping[float, Matrix],
    scoring: Scoring,
    counts: Mapping[tuple[str, str], int],
) -> tuple[int, float, list[dict[str, float]]]:
    """How many directions are enough, and the key of the best weights for so many; and what was tried."""
    most = min(len(next(iter(weighted.values()))), *(_width(found) for found in of_sides))
    sizes = [size for size in SIZES if size < most] + [most]
    scores = {
        (size, power): _mean_score(sides, _cut(of_sides, weights, size), scoring.first(size), counts)
        for size in sizes
        for power, weights in weighted.items()
    }
    best = max(scores.values())
    size = min((size for size, power in scores if scores[size, power] >= _ENOUGH * best), default=most)
    power = max(weighted, key=lambda power: scores[size, power])
    trials = [{"dim": dim, "power": exponent, "mrr": value} for (dim, exponent), value in scores.items()]
    whole = size if size < most else len(next(iter(weighted.values())))
    return whole, power, trials


def _cut(of_sides: Sequence[Directions], weights: Matrix, size: int) -> list[Directions]:
    return [{name: matrix[:, :size] * weights[:size] for name, matrix in found.items()} for found in of_sides]


def _mean_score(
    sides: Sequence[_Side],
    of_sides: Sequence[Directions],
    scoring: Scoring,
    counts: Mapping[tuple[str, str], int],
) -> float:
    scores = [side.score(found, scoring, counts) for side, found in zip(sides, of_sides, strict=True)]
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else 0.0


def _refined(
    found: _Fitted,
    sides: Sequence[_Side],
    pairs: Pairs,
    components: Components,
    counts: Mapping[tuple[str, str], int],
    wanted: str,
) -> tuple[_Fitted, dict[str, Any]]:
    """With gradient descent from there on, if it is wanted; if the tool is to decide, if each slice says it helps."""
    if wanted == "none":
        return found, {"decision": "not wanted"}
    if wanted == "auto" and len(pairs) < _DESCENT_RECORDS:
        return found, {"decision": f"not tried: {len(pairs)} training records, fewer than {_DESCENT_RECORDS}"}
    loss = "softmax" if wanted == "auto" else wanted
    width, scoring = found.width, found.scoring.first(found.width)
    start = {name: matrix[:width, :width] for name, matrix in found.matrices.items()}

    courses = []
    for side, directions in list(zip(sides, found.of_sides))[:_DESCENT_SLICES]:
        cut = {name: matrix[:, :width] for name, matrix in directions.items()}
        others = pairs.take(pairs.folds != side.fold)
        variates = _variates(side.fitted, cut, others)

        def validate(matrices: refine.Parameters, side: _Side = side, cut: Directions = cut) -> float:
            return side.score({name: cut[name] @ matrix for name, matrix in matrices.items()}, scoring, counts)

        courses.append(
            refine.descend(variates, others.present, others.media, start, loss, scoring.spectrum, validate=validate)
        )
    steps = set.intersection(*(set(course.scores) for course in courses))
    mean = {step: float(np.mean([course.scores[step] for course in courses])) for step in sorted(steps)}
    step = max((step for step in mean if step), key=mean.__getitem__)
    gains = [course.scores[step] - course.scores[0] for course in courses]
    report: dict[str, Any] = {
        "loss": loss,
        "slices": len(courses),
        "validation": [{"step": at, "mrr": value} for at, value in mean.items()],
    }
    said = f"{loss}, {step} steps: mean reciprocal rank {mean[0]:.4f} to {mean[step]:.4f} on {len(courses)} slices"
    if wanted == "auto" and not min(gains) > 0:
        return found, {**report, "decision": f"not used: {said}, worse or equal on one of them"}
    cut = {name: matrix[:, :width] for name, matrix in found.directions.items()}
    variates = _variates(components, cut, pairs)
    course = refine.descend(variates, pairs.present, pairs.media, start, loss, scoring.spectrum, steps=step)
    matrices = {name: matrix.copy() for name, matrix in found.matrices.items()}
    for name, matrix in course.matrices.items():
        matrices[name][:width, :width] = matrix
    report |= {
        "decision": f"used: {said}",
        "training": [{"step": at, "loss": value} for at, value in course.losses.items()],
    }
    return replace(found, matrices=matrices), report


def _variates(components: Components, directions: Directions, pairs: Pairs) -> dict[str, NDArray[np.float32]]:
    """By modality (n, k); zeros where a record lacks it."""
    return {
        name: components.rows(name, pairs.means[name])[:, : len(matrix)]
        @ matrix.astype(np.float32)
        * pairs.present[name][:, np.newaxis]
        for name, matrix in directions.items()
    }


def _choose_ridges(
    sides: Sequence[_Side], counts: Mapping[tuple[str, str], int]
) -> tuple[Ridges, Matrix, list[dict[str, Any]]]:
    """The ridges with the most held-out information: first one for all, then a walk to better neighbours.

    Returns:
        The ridges, the held-out correlation of each direction, and what was tried.

    Raises:
        UsageError: no direction holds in records that were not fitted.
    """
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
    ridges = dict(zip(names, (RIDGES[step] for step in best), strict=True))
    rho = _spectrum(sides, counts, ridges)
    if not (rho > 0).any():
        raise UsageError(
            f"the modalities show nothing in common: of what was learned from {sum(counts.values())} pairs, nothing "
            "holds in the records that were not fitted. Give more pairs, or see whether ids and media go together"
        )
    report = [
        {"ridge": dict(zip(names, values, strict=True)), "information": round(value, 6)}
        for values, value in trials.items()
    ]
    return ridges, rho[rho > 0], report


def _information(sides: Sequence[_Side], counts: Mapping[tuple[str, str], int], ridges: Ridges) -> float:
    """Mutual information of held-out canonical variates in nats, -1/2 sum log(1 - rho^2), over the directions whose
    correlation stands above its noise; pairs of modalities count by their records."""
    value = 0.0
    for pair, rho in _held_out(sides, ridges, _TRIAL_DIRECTIONS).items():
        sure = np.clip(rho[rho > 2 / np.sqrt(max(counts[pair], 1))], 0, 0.999)
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
    found = [_fold_correlations(side, closed_form.canonical(side.fitted, ridges, count)) for side in sides]
    size = min(len(values) for fold in found for values in fold.values())
    return {pair: np.mean([fold[pair][:size] for fold in found], axis=0) for pair in found[0]}


def _fold_correlations(side: _Side, directions: Directions) -> dict[tuple[str, str], Matrix]:
    variances = {
        name: ((side.held_out.covariance(name, name) @ inner) * inner).sum(axis=0) for name, inner in directions.items()
    }
    return {
        (a, b): ((side.held_out.covariance(a, b) @ directions[b]) * directions[a]).sum(axis=0)
        / np.sqrt(np.maximum(variances[a] * variances[b], np.finfo(float).tiny))
        for a, b in combinations(directions, 2)
    }


def _choose_lift(
    total: Moments, pairs: Pairs, tried: Pairs, modalities: Sequence[str], config: FitConfig
) -> tuple[dict[str, Lift], dict[str, Any]]:
    """Random Fourier features for each modality if they help by far in a first trial; none if not."""
    if config.lift == "none":
        return {}, {"decision": "not wanted"}
    if config.weight or config.count == "segments":
        return {}, {"decision": "not tried: records are weighted, or segments count"}
    if (widest := max(total.dim(name) for name in modalities)) > _LIFT_DIMS:
        return {}, {"decision": f"not tried: features of {widest} dimensions, more than {_LIFT_DIMS}"}
    if len(tried) < _DESCENT_RECORDS:
        return {}, {"decision": f"not tried: {len(tried)} training records, fewer than {_DESCENT_RECORDS}"}
    if not _same_moments(_pair_moments(pairs), total, modalities):
        return {}, {"decision": "not tried: not all training records are in memory, or some have several segments"}
    plain = _trial_rank(tried, modalities)
    lifts = {width: {name: _lift(total, name, width) for name in modalities} for width in _WIDTHS}
    scores = {width: _trial_rank(_lifted(tried, lift), modalities) for width, lift in lifts.items()}
    best = max(scores, key=scores.__getitem__)
    said = f"mean reciprocal rank {plain:.4f} without, {scores[best]:.4f} with {_WAVES} features of width {best:g}"
    if scores[best] < _LIFT_GAIN * plain:
        return {}, {"decision": f"not used: {said}"}
    return lifts[best], {"decision": f"used: {said}", "features": _WAVES, "width": best}


def _same_moments(sample: Moments, total: Moments, modalities: Sequence[str]) -> bool:
    """Whether a sample of records with one segment each are all that there are."""
    return all(
        sample.count(name, name) == total.count(name, name)
        and np.allclose(scales(sample, name), scales(total, name), rtol=1e-3)
        for name in modalities
    )


def _lift(moments: Moments, name: str, width: float) -> Lift:
    """Of standardized features, whose typical distance is sqrt(2 d)."""
    factor = 1 / scales(moments, name)
    random = np.random.default_rng(0)
    distance = width * np.sqrt(2 * np.count_nonzero(factor))
    frequencies = random.normal(size=(_WAVES, len(factor))) / distance * factor
    phases = random.uniform(0, 2 * np.pi, _WAVES) - frequencies @ moments.mean(name)
    return Lift(frequencies.astype(np.float32), phases.astype(np.float32))


def _lifted(pairs: Pairs, lifts: Mapping[str, Lift]) -> Pairs:
    means = {name: lift.apply(pairs.means[name]) * pairs.present[name][:, np.newaxis] for name, lift in lifts.items()}
    return replace(pairs, means=means)


def _lifted_folds(pairs: Pairs, lifts: Mapping[str, Lift]) -> list[Moments]:
    """The moments of lifted features of all training records, which are all in the sample."""
    return [_pair_moments(_lifted(pairs.take(pairs.folds == fold), lifts)) for fold in range(FOLDS)]


def _pair_moments(pairs: Pairs) -> Moments:
    return Moments.of({name: View.single(means, pairs.present[name]) for name, means in pairs.means.items()})


def _trial_rank(pairs: Pairs, modalities: Sequence[str]) -> float:
    """Cross-validated mean reciprocal rank of CCA with one ridge for all modalities and the square root of the
    correlations as weights: enough to compare features."""
    folds = [
        _pair_moments(replace(part, means={name: part.means[name] for name in modalities}))
        for part in (pairs.take(pairs.folds == fold) for fold in range(FOLDS))
    ]
    total = merge_all(folds)
    counts = {(a, b): total.count(a, b) for a, b in combinations(modalities, 2)}
    sides = _sides(folds, pairs, Components.of(total, modalities))
    ridge = max(_LIFT_RIDGES, key=lambda ridge: _information(sides, counts, _same(ridge, modalities)))
    ridges = _same(ridge, modalities)
    s = _spectrum(sides, counts, ridges)[: SIZES[-2]]
    of_sides = [closed_form.canonical(side.fitted, ridges, len(s)) for side in sides]
    width = min(_width(found) for found in of_sides)
    return _mean_score(sides, _cut(of_sides, np.sqrt(s[:width]), width), Scoring(), counts)


def common_dim(spaces: Mapping[str, Space]) -> int:
    """The dimension of features that are embeddings as they are, of all modalities.

    Raises:
        UsageError: they differ.
    """
    dims = {name: space.dim for name, space in spaces.items()}
    if len(set(dims.values())) != 1:
        listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise UsageError(f"fit = 'identity' needs features of one dimension, of encoders trained together: {listed}")
    return next(iter(dims.values()))


def _identity(total: Moments, spaces: Mapping[str, Space], version: str) -> tuple[dict[str, LinearMap], dict[str, Any]]:
    """The features as they are, of encoders that were trained together."""
    names = [name for name in total.modalities if name in spaces and total.count(name, name)]
    dim = common_dim({name: spaces[name] for name in names})
    output = Space("mmembed", version[:16], dim)
    maps = {
        name: LinearMap(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32), spaces[name], output)
        for name in names
    }
    report = {
        "method": "identity",
        "modalities": names,
        "output": asdict(output),
        "spectrum": None,
        "pairs": {f"{a}+{b}": total.count(a, b) for a, b in combinations(names, 2)},
        "records": {name: total.count(name, name) for name in names},
    }
    return maps, report


def _shared_space(modalities: Sequence[str], spaces: Mapping[str, Space], dim: int) -> Space | None:
    """The space of all modalities' features, if it is one: they come from encoders trained together.

    None too where fewer dimensions are wanted, for the features as they are are then no choice.
    """
    first = spaces[modalities[0]]
    shared = all(spaces[name] == first for name in modalities)
    return first if shared and not 0 < dim < first.dim else None


def _better_unchanged(
    found: _Fitted, sides: Sequence[_Side], space: Space, counts: Mapping[tuple[str, str], int]
) -> str:
    """Why the features of encoders trained together are kept as they are; "" where the fit is better."""
    width = found.width
    fitted = _mean_score(
        sides,
        [
            {name: matrix[:, :width] @ found.matrices[name][:width, :width] for name, matrix in directions.items()}
            for directions in found.of_sides
        ],
        found.scoring.first(width),
        counts,
    )
    plain = Scoring()
    scores = [
        reciprocal_rank(
            # Without what a lift has appended.
            {name: plain.embeddings(means[:, : space.dim]) for name, means in side.pairs.means.items()},
            side.pairs,
            plain,
            counts,
        )
        for side in sides
    ]
    unchanged = float(np.nanmean(scores))
    if fitted > unchanged:
        return ""
    return (
        f"the encoders share a space, which is kept: mean reciprocal rank {unchanged:.4f}, with a fit on top of it "
        f"{fitted:.4f}"
    )


def _paired(moments: Moments) -> list[str]:
    """The modalities that come together with another one in enough records, those with dead features only left out.

    Raises:
        UsageError: there are none.
    """
    alive = [name for name in moments.modalities if np.isfinite(scales(moments, name)).any()]
    pairs = [pair for pair in combinations(alive, 2) if moments.count(*pair) >= _MIN_PAIRS]
    if not pairs:
        seen = ", ".join(f"{a} with {b}: {moments.count(a, b)}" for a, b in combinations(moments.modalities, 2))
        raise UsageError(
            f"maps are learned from records that have two modalities, at least {_MIN_PAIRS} of them that are not held "
            f"out; here are {seen}. Give such records, or the maps of another data set with --maps"
        )
    return sorted({name for pair in pairs for name in pair})


def _map(
    found: _Fitted, components: Components, name: str, input: Space, output: Space, lift: Lift | None
) -> LinearMap:
    inner = found.directions[name] @ found.matrices[name].astype(np.float64)[:, : output.dim]
    weight = (components.bases[name] @ inner).T
    bias = -weight @ components.means[name]
    scoring = found.scoring.first(output.dim)
    return LinearMap(weight.astype(np.float32), bias.astype(np.float32), input, output, scoring, lift)


def _spread(pairs: Pairs, count: int) -> Pairs:
    """At most so many of the records, evenly spread."""
    if len(pairs) <= count:
        return pairs
    return pairs.take(np.linspace(0, len(pairs) - 1, count).astype(np.intp))


def _same(ridge: float, modalities: Sequence[str]) -> Ridges:
    return dict.fromkeys(modalities, ridge)


def _width(directions: Directions) -> int:
    return int(next(iter(directions.values())).shape[1])


def _diagonals(directions: Directions, weights: Matrix) -> dict[str, NDArray[np.float32]]:
    return {name: np.diag(weights).astype(np.float32) for name in directions}


def _non_increasing(values: Matrix) -> Matrix:
    """The nearest non-increasing sequence in least squares (pool adjacent violators)."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(values, increasing=False).x)
