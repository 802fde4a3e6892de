"""Time and memory of the fit, beside its peers in memory and through Beam.

    python benchmarks/fit.py peers [--records 20000] [--dims 1280 384]
    python benchmarks/fit.py beam FOLDER [--records 100000 1000000] [--dims 512 384]

`peers` fits pairs of random features with planted factors, one BLAS thread, each method with its search for the ridge.
`beam` writes such features as data sets below FOLDER and runs `mmembed fit` on them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mmembed.config import Config, FitConfig, to_json
from mmembed.dataset import Dataset, Stage, describe
from mmembed.fit import FOLDS, fit_maps
from mmembed.moments import Moments, View
from mmembed.pairs import Pairs
from mmembed.report import table
from mmembed.shards import shard_path, write_table
from mmembed.tables import RECORDS, features_schema, vectors_to_arrow
from mmembed.types import Space

NAMES = ("image", "text")
UNIT = 4096
SHRINKAGES = (0.001, 0.01, 0.1, 0.3, 0.7)
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # as many as ours has


def features(records: int, dims: tuple[int, int], seed: int = 0) -> list[NDArray[np.float32]]:
    """Two views of 64 factors through matrices that are the same for all seeds, with noise, float32 (records, d)."""
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((records, 64), np.float32)
    return [
        hidden @ np.random.default_rng(number).standard_normal((64, dim), np.float32)
        + 8 * random.standard_normal((records, dim), np.float32)
        for number, dim in enumerate(dims)
    ]


def ours(**config: str) -> Callable[[list[NDArray[np.float32]]], Any]:
    """All of the fit, moments included."""

    def fit(views: list[NDArray[np.float32]]) -> Any:
        fold = np.arange(len(views[0])) % FOLDS
        seen = {name: View.single(view) for name, view in zip(NAMES, views)}
        folds = [Moments.of(seen, (fold == k).astype(float)) for k in range(FOLDS)]
        spaces = {name: Space(name, "1", view.shape[1]) for name, view in zip(NAMES, views)}
        settings: dict[str, Any] = config
        return fit_maps(folds, Pairs.of(seen, fold), spaces, FitConfig(**settings), "0" * 16)

    return fit


def mcca(views: list[NDArray[np.float32]]) -> None:
    """cca-zoo's MCCA, its shrinkage searched on a fifth."""
    from cca_zoo.linear import MCCA

    cut = len(views[0]) // 5
    data = [(view - view.mean(axis=0)) / view.std(axis=0) for view in views]
    scores = {}
    for shrinkage in SHRINKAGES:
        model = MCCA(64, shrinkage=shrinkage).fit([view[cut:] for view in data])
        x, y = (view[:cut] @ weights for view, weights in zip(data, model.weights_))
        scores[shrinkage] = np.mean([np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(64)])
    MCCA(64, shrinkage=max(scores, key=scores.__getitem__)).fit(data)


def ridge(views: list[NDArray[np.float32]]) -> None:
    """scikit-learn's Ridge in both directions, its penalty searched on a fifth."""
    from sklearn.linear_model import Ridge

    cut = len(views[0]) // 5
    data = [(view - view.mean(axis=0)) / view.std(axis=0) for view in views]
    for x, y in (data, data[::-1]):
        scores = {
            penalty: Ridge(alpha=penalty * len(x)).fit(x[cut:], y[cut:]).score(x[:cut], y[:cut])
            for penalty in PENALTIES
        }
        Ridge(alpha=max(scores, key=scores.__getitem__) * len(x)).fit(x, y)


def compare(records: int, dims: tuple[int, int], rounds: int) -> None:
    """Print seconds of each method, and what part of them ours takes; medians of rounds in turn."""
    views = features(records, dims)
    methods: dict[str, Callable[[list[NDArray[np.float32]]], Any]] = {
        "mmembed, ridge, power and dimension chosen": ours(refine="none", lift="none"),
        "mmembed --fit ridge, 10 penalties": ours(fit="ridge", refine="none", lift="none"),
        "mmembed --fit pmi": ours(fit="pmi", refine="none", lift="none"),
        "scikit-learn Ridge, both directions, 10 penalties": ridge,
        "cca-zoo MCCA, 5 shrinkages": mcca,
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with threadpool_limits(1):
        for _ in range(rounds):
            for name, method in methods.items():
                start = time.process_time()
                method(views)
                seconds[name].append(time.process_time() - start)
        start = time.process_time()
        ours()(views)
        default = time.process_time() - start
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    base = next(iter(median.values()))
    rows = [[name, f"{value:.1f}", f"{value / base:.1f}"] for name, value in median.items()]
    rows.append(["mmembed, with trials of a lift and of gradient descent", f"{default:.1f}", f"{default / base:.1f}"])
    print(table(["method", "CPU seconds", "times ours"], rows))


def units(records: int) -> Iterator[tuple[int, int]]:
    """Numbers of units and how many records each has."""
    for number, start in enumerate(range(0, records, UNIT)):
        yield number, min(UNIT, records - start)


@patch("os.fsync", lambda descriptor: None)
def write(root: Path, records: int, dims: tuple[int, int]) -> None:
    """A data set of which only features and records are there."""
    dataset = Dataset(root)
    counts: dict[str, int] = {}
    for number, size in units(records):
        ids = pa.array([f"{number:05d}-{row:04d}" for row in range(size)])
        columns = {
            "id": ids,
            "source": ids,
            "record": pa.array(["{}"] * size),
            "media": pa.array([[] for _ in range(size)], RECORDS.field("media").type),
            "digest": ids,
        }
        write_table(root / shard_path("records", number), pa.table(columns, schema=RECORDS), {})
        counts[shard_path("records", number)] = size
        for name, view in zip(NAMES, features(size, dims, number + 1)):
            schema = features_schema(view.shape[1])
            values = {
                "id": ids,
                "segment": pa.array([0] * size, pa.int32()),
                "span": pa.array([[]] * size, schema.field("span").type),
                "media": ids,
                "content_hash": pa.array([f"{name}{id}" for id in ids.to_pylist()]),
                "feature": vectors_to_arrow(view, schema.field("feature").type),
            }
            path = shard_path(f"features/{name}", number)
            write_table(root / path, pa.table(values, schema=schema), {})
            counts[path] = size
    spaces = {name: asdict(Space(name, "1", dim)) for name, dim in zip(NAMES, dims)}
    summary = {
        "folders": ["features", "records"],
        "spaces": spaces,
        "records": records,
        "segments": dict.fromkeys(NAMES, records),
        "columns": [],
        "kinds": {},
    }
    files = {path: describe(root, path, rows) for path, rows in counts.items()}
    dataset.commit("extract", Stage("benchmark", summary), files, "made by hand", config=to_json(Config()))


def through_beam(folder: Path, sizes: list[int], dims: tuple[int, int]) -> None:
    """Print seconds and the largest resident set of any process of `mmembed fit`, by number of records."""
    rows = []
    for records in sizes:
        root = folder / f"fit-{records}"
        if not (root / "dataset.json").exists():
            write(root, records, dims)
        command = [sys.executable, "-m", "mmembed", "fit", str(root), "--holdout", f"{0.1 + records % 7 / 1000}"]
        start = time.monotonic()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        rows.append([f"{records:,}", f"{time.monotonic() - start:.0f}", f"{usage.ru_maxrss / 1024:.0f}"])
    print(table(["records", "seconds", "MB"], rows))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    peers = commands.add_parser("peers")
    peers.add_argument("--records", type=int, default=20_000)
    peers.add_argument("--dims", type=int, nargs=2, default=[1280, 384])
    peers.add_argument("--rounds", type=int, default=1)
    runs = commands.add_parser("beam")
    runs.add_argument("folder", type=Path)
    runs.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    runs.add_argument("--dims", type=int, nargs=2, default=[512, 384])
    options = parser.parse_args()
    dims = (options.dims[0], options.dims[1])
    if options.command == "peers":
        compare(options.records, dims, options.rounds)
    else:
        through_beam(options.folder, options.records, dims)


if __name__ == "__main__":
    main()
