"""Retrieval by the maps of mmembed and of its peers, on the same features and the same held-out records.

    python benchmarks/maps.py digits
    python benchmarks/maps.py OUT IMAGE TEXT [--group-column text] [--without weak] [--splits 2] [--csls]
    python benchmarks/maps.py features.npz IMAGE TEXT [...]

OUT is an extracted data set; features.npz holds `ids`, `records` (the JSON of each) and, by modality, features and
`has_…`. Needs the packages of the tests. Peers get standardized features and choose their parameters on a fifth of the
training records. Figures are means of both directions and all splits; equal texts are equally right, and so are equal
pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mmembed.config import FitConfig
from mmembed.dataset import Dataset
from mmembed.features import read_unit
from mmembed.fit import FOLDS, fit_maps
from mmembed.hubness import csls_terms
from mmembed.linear import Scoring, normalize_rows
from mmembed.metrics import chance, outcome, per_query
from mmembed.moments import Moments, View
from mmembed.pairs import Pairs, reciprocal_rank
from mmembed.report import table
from mmembed.splits import Groups, fold_of, position, twins
from mmembed.types import Space

Array = NDArray[np.float32]

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
DIMS = (32, 128)


@dataclass(frozen=True, eq=False)
class Data:
    """Pairs of features, (n, dx) and (n, dy), their groups, and numbers for equal media, (n,) each."""

    x: Array
    y: Array
    groups: list[str]
    media: dict[str, NDArray[np.uint64]]

    def take(self, rows: NDArray[np.bool_]) -> Data:
        groups = [group for group, row in zip(self.groups, rows) if row]
        return Data(self.x[rows], self.y[rows], groups, {name: of[rows] for name, of in self.media.items()})

    def pairs(self) -> Pairs:
        folds = np.array([fold_of(group, FOLDS) for group in self.groups], np.int64)
        return Pairs.of({"x": View.single(self.x), "y": View.single(self.y)}, folds, self.media)


Answer = tuple[Array, Array, Scoring]
Method = Callable[[Data, Data], Answer]


def digits() -> Data:
    """The left and the right halves of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32)
    number = np.arange(len(images), dtype=np.uint64)
    halves = (images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32))
    return Data(*halves, [str(n) for n in number], {"x": number, "y": number})


def read(path: Path, names: tuple[str, str], group_column: str, without: str) -> Data:
    """The records of a data set, or of an .npz, that have both modalities."""
    if path.suffix == ".npz":
        file = np.load(path, allow_pickle=False)
        records = [json.loads(record) for record in file["records"]]
        ids = [str(id) for id in file["ids"]]
        views = {name: View.single(file[name], file[f"has_{name}"]) for name in names}
        media = {
            name: np.unique([str(record.get(name)) for record in records], return_inverse=True)[1].astype(np.uint64)
            for name in names
        }
    else:
        dataset = Dataset.open(path)
        units = [read_unit(dataset, number, names) for number in range(len(dataset.below("records")))]
        ids = [id for unit in units for id in unit.ids]
        records = [record for unit in units for record in unit.records]
        views = {name: View.single(np.concatenate([u.views[name].means for u in units])) for name in names}
        present = {name: np.concatenate([u.views[name].present for u in units]) for name in names}
        views = {name: View.single(view.means, present[name]) for name, view in views.items()}
        media = {name: np.concatenate([u.media[name] for u in units]) for name in names}
    both = views[names[0]].present & views[names[1]].present
    both &= np.array([not (without and record.get(without)) for record in records])
    groups = Groups(group_column)
    plain = [groups.of(id, record) for id, record in zip(ids, records)]
    links = [(plain[row], f"{name}{media[name][row]}") for name in names for row in np.flatnonzero(both)]
    groups = Groups(group_column, twins(links)[0])
    data = [views[name].means.astype(np.float32) for name in names]
    named = [groups.of(id, record) for id, record in zip(ids, records)]
    return Data(data[0], data[1], named, dict(zip("xy", (media[name] for name in names)))).take(both)


def ours(**config: str) -> Method:
    """The maps of mmembed, all of whose parameters choose themselves."""

    def method(train: Data, test: Data) -> Answer:
        pairs = train.pairs()
        views = {"x": View.single(train.x), "y": View.single(train.y)}
        folds = [Moments.of(views, (pairs.folds == fold).astype(float)) for fold in range(FOLDS)]
        spaces = {name: Space(name, "1", view.means.shape[1]) for name, view in views.items()}
        maps, report = fit_maps(folds, pairs, spaces, FitConfig(**config), "0" * 16)  # type: ignore[arg-type]
        for what in ("lift", "refinement"):
            print(f"    {config}: {what} {report[what]['decision']}")
        x, y = (maps[name].apply(of, spaces[name]) for name, of in (("x", test.x), ("y", test.y)))
        return x, y, maps["x"].scoring

    return method


def standardized(train: Data, test: Data) -> tuple[list[Array], list[Array]]:
    """Features over their deviation, less dead ones: of training and of test records."""
    found: tuple[list[Array], list[Array]] = ([], [])
    for a, b in ((train.x, test.x), (train.y, test.y)):
        alive = a.std(axis=0) > 1e-6 * np.abs(a.mean(axis=0))
        mean, scale = a.mean(axis=0)[alive], a.std(axis=0)[alive]
        found[0].append((a[:, alive] - mean) / scale)
        found[1].append((b[:, alive] - mean) / scale)
    return found


def tuned(fit: Callable[..., Callable[[list[Array]], list[Array]]], choices: Iterable[tuple[float, ...]]) -> Method:
    """A peer whose parameters are chosen on a fifth of the training records, by mean reciprocal rank."""

    def method(train: Data, test: Data) -> Answer:
        slice_ = np.array([position(group, "peers") < 0.2 for group in train.groups])
        inner, outer = train.take(~slice_), train.take(slice_)
        seen, fresh = standardized(inner, outer)

        def score(choice: tuple[float, ...]) -> float:
            x, y = map(normalize_rows, fit(seen, *choice)(fresh))
            return reciprocal_rank({"x": x, "y": y}, outer.pairs(), Scoring(), {("x", "y"): 1})

        best = max(choices, key=score)
        print(f"    {fit.__name__}: {best}")
        all_, held_out = standardized(train, test)
        x, y = fit(all_, *best)(held_out)
        return normalize_rows(x), normalize_rows(y), Scoring()

    return method


def mcca(views: list[Array], shrinkage: float, dim: float, power: float) -> Callable[[list[Array]], list[Array]]:
    """cca-zoo's MCCA, its variates weighted by training correlations to a power (CSA has 1)."""
    from cca_zoo.linear import MCCA

    size = min(int(dim), *(view.shape[1] for view in views), len(views[0]) - 1)
    model = MCCA(size, shrinkage=shrinkage).fit([view.astype(float) for view in views])
    scores = [view @ weights for view, weights in zip(views, model.weights_)]
    deviation = [np.maximum(of.std(axis=0), 1e-9) for of in scores]
    rho = np.clip(np.mean(scores[0] / deviation[0] * scores[1] / deviation[1], axis=0), 0, 1) ** power

    def apply(others: list[Array]) -> list[Array]:
        return [
            np.asarray(view @ weights / scale * rho, np.float32)
            for view, weights, scale in zip(others, model.weights_, deviation)
        ]

    return apply


def ridge(views: list[Array], alpha: float, direction: float) -> Callable[[list[Array]], list[Array]]:
    """scikit-learn's Ridge of one modality from the other; alpha in units of the number of records."""
    from sklearn.linear_model import Ridge

    source, target = (0, 1) if direction else (1, 0)
    model = Ridge(alpha=alpha * len(views[0])).fit(views[source], views[target])

    def apply(others: list[Array]) -> list[Array]:
        found = list(others)
        found[source] = np.asarray(model.predict(others[source]), np.float32)
        return found

    return apply


def cca(views: list[Array], dim: float) -> Callable[[list[Array]], list[Array]]:
    """scikit-learn's CCA."""
    import warnings

    from sklearn.cross_decomposition import CCA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model = CCA(int(dim), scale=False).fit(*views)
    return lambda others: [np.asarray(of, np.float32) for of in model.transform(*others)]


def asif(train: Data, test: Data) -> Answer:
    """ASIF (Norelli et al. 2022): similarities to the training pairs, the 100 largest to the 4th power; not linear."""
    seen, fresh = standardized(train, test)
    found = []
    for a, b in zip(seen, fresh):
        similarity = np.maximum(normalize_rows(b) @ normalize_rows(a).T, 0)
        kept = min(100, similarity.shape[1])
        least = np.partition(similarity, -kept, axis=1)[:, -kept][:, np.newaxis]
        found.append(normalize_rows(np.where(similarity >= least, similarity, 0) ** 4))
    return found[0], found[1], Scoring()


PEERS: dict[str, Method] = {
    "scikit-learn Ridge": tuned(ridge, [(a, d) for a in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) for d in (0, 1)]),
    "cca-zoo MCCA, shrinkage 0 (CCA)": tuned(mcca, [(1e-6, dim, 0) for dim in DIMS]),
    "cca-zoo MCCA": tuned(mcca, [(s, dim, 0) for s in SHRINKAGES for dim in DIMS]),
    "CSA: cca-zoo MCCA x correlations": tuned(mcca, [(s, dim, 1) for s in SHRINKAGES for dim in DIMS]),
    "ASIF (not linear)": asif,
}
OURS: dict[str, Method] = {
    "mmembed (default)": ours(),
    "mmembed --refine none --lift none": ours(refine="none", lift="none"),
    "mmembed --fit pmi": ours(fit="pmi"),
    "mmembed --fit pmi --refine none --lift none": ours(fit="pmi", refine="none", lift="none"),
    "mmembed --fit ridge": ours(fit="ridge", refine="none", lift="none"),
    "mmembed --fit procrustes": ours(fit="procrustes", refine="none", lift="none"),
    "mmembed --fit pls": ours(fit="pls", refine="none", lift="none"),
}


def figures(answer: Answer, test: Data, banks: tuple[Array, Array] | None = None) -> NDArray[np.float64]:
    """Recall@1, recall@10 and MRR, mean of both directions."""
    x, y, scoring = answer
    labels = np.stack([test.media["x"], test.media["y"]], axis=1).astype(np.int64)
    found = []
    for number, (queries, candidates) in enumerate(((x, y), (y, x))):
        terms = scoring.terms(candidates)
        extra = np.zeros(len(candidates), np.float32) if terms is None else terms
        if banks:
            extra = extra + csls_terms(candidates, banks[number], scoring)
        rows = np.concatenate([candidates, extra[:, np.newaxis]], axis=1)
        asked = np.concatenate([queries, np.ones((len(queries), 1), np.float32)], axis=1)
        values = per_query(outcome(asked, rows, np.arange(len(rows)), labels, labels))
        found.append([values[name].mean() for name in ("recall@1", "recall@10", "mrr")])
    return np.asarray(np.mean(found, axis=0))


def by_chance(test: Data) -> NDArray[np.float64]:
    """What a random order gives."""
    labels = np.stack([test.media["x"], test.media["y"]], axis=1)
    right = np.array([(row == labels).any(axis=1).sum() for row in labels])
    expected = chance(len(labels), right)
    return np.array([expected[f"chance_{name}"] for name in ("recall@1", "recall@10", "mrr")])


def main() -> None:
    """Print a table, a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("modalities", nargs="*")
    parser.add_argument("--group-column", default="")
    parser.add_argument("--without", default="", help="leave out records where this key is true")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--holdout", type=float, default=0.3)
    parser.add_argument("--sklearn-cca", action="store_true", help="also scikit-learn's CCA of 16 dimensions: slow")
    parser.add_argument("--csls", action="store_true", help="also the default and pmi with --hubness csls")
    options = parser.parse_args()
    if options.data == "digits":
        data = digits()
    else:
        data = read(Path(options.data), tuple(options.modalities), options.group_column, options.without)
    methods = {**OURS, **PEERS}
    if options.sklearn_cca:
        methods["scikit-learn CCA, 16 dimensions"] = tuned(cca, [(16,)])
    found: dict[str, list[NDArray[np.float64]]] = {}
    seconds: dict[str, float] = {}
    with threadpool_limits(1):
        for split in range(options.splits):
            held_out = np.array([position(group, f"split{split}") < options.holdout for group in data.groups])
            train, test = data.take(~held_out), data.take(held_out)
            print(f"  split {split}: {len(train.x):,} training pairs, {len(test.x):,} held out")
            for name, method in methods.items():
                start = time.monotonic()
                answer = method(train, test)
                seconds[name] = seconds.get(name, 0) + time.monotonic() - start
                found.setdefault(name, []).append(figures(answer, test))
                if options.csls and name in ("mmembed (default)", "mmembed --fit pmi"):
                    banks = method(train, train)[:2]
                    found.setdefault(f"{name} --hubness csls", []).append(figures(answer, test, banks))
            found.setdefault("chance", []).append(by_chance(test))
    means = {name: [f"{value:.3f}" for value in np.mean(values, axis=0)] for name, values in found.items()}
    rows = [[name, *values, f"{seconds[name]:.0f}" if name in seconds else ""] for name, values in means.items()]
    print(table(["method", "R@1", "R@10", "MRR", "seconds"], rows))


if __name__ == "__main__":
    main()
