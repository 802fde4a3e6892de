"""An index that is tuned here beside the one that autofaiss chooses, at the same memory and recall of cross-modal
queries.

    python benchmarks/index.py --autofaiss OTHER_ENVIRONMENT/bin/python [--rows 1000000] [--dim 256]

autofaiss needs another environment (`pip install autofaiss 'pyarrow<26'`), for it wants an older numpy. Both index the
same
rows: pictures in a learned space, whose spectrum decays, in clusters; queries are texts and sounds that belong to other
pictures, and lie apart from them. autofaiss chooses and tunes first; its bytes, and the recall that its index has for
these queries, are then the budget of ours. Builds have one thread each, so seconds are of a core; queries one at a
time, on one thread, both indexes in turn.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mmembed import kinds, tune
from mmembed.evaluate import columns
from mmembed.linear import normalize_rows
from mmembed.tune import Budget, Probes

Array = NDArray[np.float32]

ASKED, TUNED = 1000, 1000  # queries of each modality that are measured, and others that ours is tuned with

AUTOFAISS = """
import json, resource, sys, time
import numpy
from autofaiss import build_index
rows, index, infos, memory = sys.argv[1:]
start = time.perf_counter()
build_index(numpy.load(rows, allow_pickle=False), index_path=index, index_infos_path=infos,
            max_index_memory_usage=memory, current_memory_available="14GB",
            max_index_query_time_ms=10, metric_type="ip", nb_cores=1, verbose=40)
wall, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}))
"""


def planted(rows: int, dim: int, seed: int = 7) -> tuple[Array, dict[str, Array]]:
    """Rows (n, dim), and queries of two other modalities, (ASKED + TUNED, dim) each."""
    random = np.random.default_rng(seed)
    spectrum = (0.95 * (1 + np.arange(dim) / 16) ** -0.8).astype(np.float32)
    centers = random.standard_normal((3000, dim), dtype=np.float32)
    shares = (np.arange(3000) + 20.0) ** -0.9
    shares /= shares.sum()
    gaps = {name: random.standard_normal(dim, dtype=np.float32) for name in ("image", "text", "audio")}

    def latent(count: int) -> Array:
        chosen = centers[random.choice(3000, count, p=shares)]
        mixed: Array = np.sqrt(np.float32(0.5)) * (chosen + random.standard_normal((count, dim), dtype=np.float32))
        return mixed

    def view(of: Array, name: str, strength: float) -> Array:
        noise = np.sqrt(1 - strength * spectrum) * random.standard_normal(of.shape, dtype=np.float32)
        gap = 0.4 * np.linalg.norm(spectrum) * gaps[name] / np.linalg.norm(gaps[name])
        return normalize_rows((np.sqrt(strength * spectrum) * of + noise) * spectrum + gap)

    blocks = [min(50_000, rows - start) for start in range(0, rows, 50_000)]
    found = np.concatenate([view(latent(count), "image", 1) for count in blocks])
    others = latent(ASKED + TUNED)
    return found, {"text": view(others, "text", 1), "audio": view(others, "audio", 0.6)}


def probes_of(queries: dict[str, Array], part: slice, rows: Array) -> Probes:
    """Some of the queries of both modalities, and what an exact search finds for them."""
    chosen = {name: values[part] for name, values in queries.items()}
    names = np.repeat(np.array(list(chosen)), [len(values) for values in chosen.values()])
    return tune.with_truth(np.concatenate(list(chosen.values())), names, "heldout", rows)


def cpu_seconds() -> float:
    """Of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Theirs:
    """The index that autofaiss chose and tuned."""

    def __init__(self, python: str, folder: Path, memory: str) -> None:
        paths = [str(folder / name) for name in ("rows.npy", "their.faiss", "their.json")]
        words = [python, "-c", AUTOFAISS, *paths, memory]
        built = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        self.built: dict[str, float] = json.loads(built)
        infos = json.loads((folder / "their.json").read_text("utf-8"))
        self.name = f"{infos['index_key']}, {infos['index_param']}"
        self.bytes = (folder / "their.faiss").stat().st_size
        self.index = faiss.read_index(paths[1])  # made a moment ago
        faiss.ParameterSpace().set_index_parameters(self.index, infos["index_param"])

    def search(self, queries: Array) -> NDArray[np.int64]:
        """Rows that it finds, (q, 10)."""
        rows: NDArray[np.int64] = self.index.search(queries, kinds.RECALL_K)[1]
        return rows


class Ours:
    """The index that is chosen and tuned here, by the steps of the stage."""

    def __init__(self, rows: Array, tuned_with: dict[str, Array], budget: Budget) -> None:
        start, cpu = time.perf_counter(), cpu_seconds()
        everything = slice(None)
        sample = np.array(rows[kinds.sample_of(len(rows), tune.PILOT_ROWS, seed=1)])
        kind, _ = tune.choose(len(rows), sample, probes_of(tuned_with, everything, sample), budget, 0)
        chosen = time.perf_counter(), cpu_seconds()
        self.index, self.kind, self.rows = kinds.build(kind, rows, 0), kind, rows
        self.built = {"wall": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
        self.choosing = chosen[1] - cpu
        points = tune.measure(self.index, kind, rows, probes_of(tuned_with, everything, rows), 0, len(rows))
        best = tune.cheapest(points, budget.recall) or max(points, key=lambda point: point.sure)
        self.point, self.said, self.bytes = best.search, best.recall, len(faiss.serialize_index(self.index))
        self.name = f"{kind.name}, {', '.join(f'{key}={value}' for key, value in best.search.items())}"
        self.tuned = {"wall": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}

    def search(self, queries: Array) -> NDArray[np.int64]:
        """Rows that it finds, (q, 10)."""
        return kinds.search(self.index, self.kind, self.rows, queries, kinds.RECALL_K, self.point)[1]


def recalls(of: Theirs | Ours, probes: Probes, rows: Array) -> dict[str, float]:
    """Recall@10 of an index by exact scores of what it finds."""
    return probes.recall(-np.sort(-kinds.scores_of(probes.queries, rows, of.search(probes.queries)), axis=1))


def times(several: list[Theirs | Ours], queries: Array) -> list[float]:
    """Milliseconds of a query, the median, of several indexes in turn."""
    spent = np.empty((len(several), len(queries)))
    for place in range(len(queries)):
        for number, of in enumerate(several):
            start = time.perf_counter()
            of.search(queries[place : place + 1])
            spent[number, place] = 1000 * (time.perf_counter() - start)
    return [float(value) for value in np.median(spent, axis=1)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--autofaiss", required=True, metavar="PYTHON", help="the interpreter that has it")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--memory", default="4GB", help="what autofaiss may use")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        folder = Path(name)
        rows, queries = planted(options.rows, options.dim)
        np.save(folder / "rows.npy", rows)
        rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        asked = probes_of(queries, slice(ASKED), rows)
        theirs = Theirs(options.autofaiss, folder, options.memory)
        their_recall = recalls(theirs, asked, rows)
        budget = Budget(min(their_recall.values()), theirs.bytes)
        ours = Ours(rows, {name: values[ASKED:] for name, values in queries.items()}, budget)
        both: list[Theirs | Ours] = [theirs, ours]
        spent = times(both, asked.queries[::5])
        table = [_line(of, recalls(of, asked, rows), of_it) for of, of_it in zip(both, spent, strict=True)]
        print(columns(["index", "build s", "build CPU s", "MB", "recall@10 text", "audio", "ms a query"], table))
        print(
            f"ours: {ours.choosing:.0f} CPU s to choose, {ours.tuned['cpu'] - ours.built['cpu']:.0f} more to tune; said"
        )
        print(f"recall {ours.said}, on other queries than those that are measured above")


def _line(of: Any, recall: dict[str, float], milliseconds: float) -> list[str]:
    built = of.built
    figures = [built["wall"], built["cpu"], of.bytes / 1e6]
    return [
        of.name,
        *(f"{value:,.0f}" for value in figures),
        *(f"{recall[name]:.3f}" for name in ("text", "audio")),
        f"{milliseconds:.2f}",
    ]


if __name__ == "__main__":
    main()
