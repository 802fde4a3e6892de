"""Which index: tuned with the queries that will be asked, those of other modalities.

Recall that is measured with an index's own rows as queries says little of queries by another modality: these lie apart
from the rows (the "modality gap"). So probes are held-out records' embeddings in the other modalities, and the truth
for each is an exact search. A kind is chosen by trying all that fit into the budget on a sample of the rows; its
parameters are then chosen on all rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed import kinds
from mmembed.errors import UsageError
from mmembed.kinds import RECALL_K, REFINES, Kind, Point
from mmembed.shards import fingerprint

Array = NDArray[np.float32]

PILOT_ROWS = 20_000
"""Rows that kinds are compared on."""

COMFORT_MS = 2.0
"""What a query may take where nobody says."""

FLAT = Kind("Flat")

TIMED = 50
"""Queries that a point is timed with, one at a time."""

_ENOUGH = 0.999  # beyond this recall no further points are tried
_TIE = 1e-5


@dataclass(frozen=True)
class Budget:
    """What an index may cost, and must find.

    Attributes:
        recall: recall@10 against exact search, of queries by each modality.
        memory: bytes, 0 for no limit.
        milliseconds: of a query on one core, 0 for no limit.
    """

    recall: float
    memory: int = 0
    milliseconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Probes:
    """Queries that indexes are measured with, and what an exact search finds for them.

    Attributes:
        queries: rows as of the index, float32 (q, D).
        modalities: of each query, (q,).
        split: of the records that they are made of.
        truth: scores of the RECALL_K best rows, best first, float32 (q, RECALL_K); -inf where there are fewer.
    """

    queries: Array
    modalities: NDArray[np.str_]
    split: str
    truth: Array

    @property
    def counts(self) -> dict[str, int]:
        """How many probes there are by modality."""
        names, counts = np.unique(self.modalities, return_counts=True)
        return {str(name): int(count) for name, count in zip(names, counts)}

    @property
    def fingerprint(self) -> str:
        """Of the queries and their truth."""
        return fingerprint(self.queries.tobytes().hex(), self.truth.tobytes().hex(), self.modalities.tolist())

    def found(self, scores: Array) -> NDArray[np.float64]:
        """The share of the best rows that is among those found, float64 (q,). Rows that tie with the last of them count
        as well.

        Args:
            scores: of the rows found, float32 (q, k).
        """
        least = self.truth[:, -1:]
        for column in range(self.truth.shape[1] - 1, 0, -1):  # of an index with fewer rows than that
            least = np.where(np.isneginf(least), self.truth[:, column - 1 : column], least)
        wanted = np.isfinite(self.truth).sum(axis=1)
        tolerance = _TIE * np.maximum(1, np.abs(least))
        hits = np.minimum((scores >= least - tolerance).sum(axis=1), wanted)
        return np.asarray(hits / np.maximum(wanted, 1), np.float64)

    def recall(self, scores: Array) -> dict[str, float]:
        """Mean of `found` by modality."""
        found = self.found(scores)
        return {name: float(found[self.modalities == name].mean()) for name in self.counts}

    def sure(self, scores: Array) -> float:
        """The recall that the modality of the lowest has with some certainty: its mean less its standard error, so that
        no point is chosen for its luck with these probes."""
        found = self.found(scores)
        parts = [found[self.modalities == name] for name in self.counts]
        return min(float(part.mean() - part.std() / np.sqrt(len(part))) for part in parts)


def with_truth(queries: Array, modalities: NDArray[np.str_], split: str, rows: Array) -> Probes:
    """Probes with what an exact search among rows (n, D) finds."""
    return Probes(queries, modalities, split, exact_search(queries, rows))


def exact_search(queries: Array, rows: Array) -> Array:
    """Scores of the RECALL_K best rows for each query, float32 (q, RECALL_K), on a GPU where FAISS has one.

    Blocks of rows are read at a time.
    """
    import faiss

    best = np.full((len(queries), RECALL_K), -np.inf, np.float32)
    size = 1 << 18
    for start in range(0, len(rows), size):
        block = np.ascontiguousarray(rows[start : start + size], np.float32)
        if getattr(faiss, "get_num_gpus", int)():
            flat = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(block.shape[1]))
            flat.add(block)
            scores, numbers = flat.search(queries, min(RECALL_K, len(block)))
        else:
            scores, numbers = faiss.knn(queries, block, min(RECALL_K, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores = np.where(numbers < 0, -np.inf, scores)
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :RECALL_K]
    return best


@dataclass(frozen=True)
class Measured:
    """An operating point of an index, as `curve` of index.json has it.

    Attributes:
        rows: that it was measured with.
        bytes: of the index of all rows.
        recall: recall@10 by the modality of the queries.
        sure: see `Probes.sure`.
        expected: milliseconds of a query among all rows, by the model.
        milliseconds: measured, the median of single queries on one thread; 0 where it was not.
    """

    kind: Kind
    search: Point
    rows: int
    bytes: int
    recall: Mapping[str, float]
    sure: float
    expected: float
    milliseconds: float = 0.0

    def to_json(self, chosen: bool) -> dict[str, Any]:
        """As a row of `curve`."""
        return {
            "kind": self.kind.name,
            "search": dict(self.search),
            "rows": self.rows,
            "bytes": self.bytes,
            "recall": dict(self.recall),
            "milliseconds": self.milliseconds,
            "expected_milliseconds": self.expected,
            "chosen": chosen,
        }


def measure(
    index: Any, kind: Kind, vectors: Array, probes: Probes, radius: float, all_rows: int, until: float = _ENOUGH
) -> list[Measured]:
    """Operating points of an index, the cheapest first: those that no cheaper one surpasses.

    Args:
        vectors: the rows of the index (n, D).
        all_rows: rows of the index that points are wanted for, of which these may be a sample: an inverted file is then
            expected to need the same share of its lists, which is more than it does need.
        until: a recall beyond which no further points are tried.
    """
    dim = vectors.shape[1] + bool(radius)
    full = kinds.for_rows(kind, all_rows)
    found: list[Measured] = []
    refines = (1,) if kind.gives_scores(radius) else REFINES
    # A graph looks at as many nodes as are wanted of it, so each depth is a search of its own.
    together = [[refine] for refine in refines] if kind.is_graph else [refines]
    for point in kind.points():
        reached = 0.0
        for some in together:
            depth = min(RECALL_K * some[-1], len(vectors))
            _, rows = kinds.candidates(index, kind, probes.queries, depth, point, radius)
            scores = kinds.scores_of(probes.queries, vectors, rows)
            for refine in some:
                best = -np.sort(-scores[:, : RECALL_K * refine], axis=1)[:, :RECALL_K]
                asked = {**point, "refine": refine}
                wider = {**asked, "nprobe": -(-point["nprobe"] * full.lists // kind.lists)} if kind.lists else asked
                expected = full.milliseconds(all_rows, dim, wider)
                sure = probes.sure(best)
                reached = max(reached, sure)
                found.append(
                    Measured(kind, asked, len(vectors), full.bytes(all_rows, dim), probes.recall(best), sure, expected)
                )
        if reached >= until:
            break
    return frontier(found)


def frontier(points: Sequence[Measured]) -> list[Measured]:
    """Points that find more than every cheaper one, the cheapest first."""
    kept: list[Measured] = []
    for point in sorted(points, key=lambda point: (point.expected, -point.sure)):
        if not kept or point.sure > kept[-1].sure:
            kept.append(point)
    return kept


def timed(point: Measured, index: Any, vectors: Array, queries: Array, radius: float) -> Measured:
    """A point with the time that a query (of q, D) takes on one thread, the median of TIMED."""
    import faiss

    chosen = np.linspace(0, len(queries) - 1, min(TIMED, len(queries))).astype(np.intp)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    times = []
    try:
        for place in chosen:
            query, start = queries[place : place + 1], time.perf_counter()
            kinds.search(index, point.kind, vectors, query, RECALL_K, point.search, radius)
            times.append(1000 * (time.perf_counter() - start))
    finally:
        faiss.omp_set_num_threads(threads)
    return replace(point, milliseconds=float(np.median(times)) if times else 0.0)


def cheapest(points: Sequence[Measured], recall: float) -> Measured | None:
    """The point that takes the least time among those that find enough; None where there is none."""
    return min((point for point in points if point.sure >= recall), key=lambda point: point.expected, default=None)


def shared_out(budget: Budget, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Budget]:
    """What of a budget each index gets: of the memory the least that it needs, and of what is left as much as an exact
    index would take beyond that.

    Args:
        sizes: by modality, rows and their width.

    Raises:
        UsageError: not even the smallest kinds fit together, or none is as fast.
    """
    exact_ms = max((FLAT.milliseconds(*size, {}) for size in sizes.values()), default=0.0)
    if 0 < budget.milliseconds < kinds.LEAST_MS and budget.recall < 1:
        raise UsageError(
            f"--latency {budget.milliseconds:g}ms: no query is expected to take less than "
            f"{_rounded_up(kinds.LEAST_MS)}ms, whatever the index"
        )
    if 0 < budget.milliseconds < exact_ms and budget.recall >= 1:
        raise UsageError(
            f"--latency {budget.milliseconds:g}ms: a query of these exact indexes (--recall 1) is expected to take "
            f"{_rounded_up(exact_ms)}ms: allow that much, or a lower --recall"
        )
    flat = {name: FLAT.bytes(*size) for name, size in sizes.items()}
    least = {
        name: min(
            kind.bytes(*size) for tier in kinds.tiers(*size) for kind in tier if kind.is_exact or budget.recall < 1
        )
        for name, size in sizes.items()
    }
    if not budget.memory:
        return dict.fromkeys(sizes, budget)
    if sum(least.values()) > budget.memory:
        parts = ", ".join(f"{megabytes(least[name])} for {rows:,} of {name}" for name, (rows, _) in sizes.items())
        raise UsageError(
            f"--memory {megabytes(budget.memory)}: indexes with --recall {budget.recall:g} take "
            f"{megabytes(sum(least.values()))} at least ({parts}): allow that much"
        )
    beyond = {name: flat[name] - least[name] for name in sizes}
    left = (budget.memory - sum(least.values())) / max(sum(beyond.values()), 1)
    return {name: replace(budget, memory=int(least[name] + left * beyond[name])) for name in sizes}


def megabytes(count: float) -> str:
    """Bytes for a person, rounded up: "0.031MB", "1.3MB", "120MB"."""
    digits = 3 if count < 1e6 else 1 if count < 1e7 else 0
    return f"{np.ceil(count / 1e6 * 10**digits) / 10**digits:,.{digits}f}MB"


def _rounded_up(milliseconds: float) -> str:
    """To two digits, so that what is allowed suffices: "0.073", "12"."""
    digits = max(0, 1 - int(np.floor(np.log10(milliseconds))))
    return f"{np.ceil(milliseconds * 10**digits) / 10**digits:g}"


def is_exact_enough(rows: int, dim: int, budget: Budget) -> bool:
    """Whether an exact index is small and fast enough, or nothing else will do."""
    if not _fits(FLAT, rows, dim, budget):
        return False
    return budget.recall >= 1 or FLAT.milliseconds(rows, dim, {}) <= (budget.milliseconds or COMFORT_MS)


def _fits(kind: Kind, rows: int, dim: int, budget: Budget) -> bool:
    return not budget.memory or kind.bytes(rows, dim) <= budget.memory


def choose(rows: int, sample: Array, probes: Probes, budget: Budget, radius: float) -> tuple[Kind, list[Measured]]:
    """The kind of index for all rows where an exact one does not suit, and what was measured on a sample of them.

    Args:
        rows: n.
        sample: PILOT_ROWS rows of them, or all (m, D).
        probes: their truth is of the sample.
        radius: as of `kinds.codable`.

    Raises:
        UsageError: nothing within the budget finds enough, or fast enough; the message has what comes nearest.
    """
    width, tried = sample.shape[1] + bool(radius), []
    for tier in kinds.tiers(rows, width):
        good = []
        for kind in tier:
            if kind.is_exact or not _fits(kind, rows, width, budget):
                continue
            small = kinds.for_rows(kind, len(sample))
            points = measure(kinds.build(small, sample, radius), small, sample, probes, radius, rows)
            tried += points
            good += [best] if (best := cheapest(points, budget.recall)) else []
        best = min(good, key=lambda point: point.expected, default=None)
        if best and best.expected <= (budget.milliseconds or COMFORT_MS):
            return kinds.for_rows(best.kind, rows), tried
    enough = [point for point in tried if point.sure >= budget.recall]
    if _fits(FLAT, rows, width, budget):
        expected = FLAT.milliseconds(rows, width, {})
        enough.append(Measured(FLAT, {}, rows, FLAT.bytes(rows, width), {}, 1.0, expected))
    nearest = min(enough, key=lambda point: point.expected, default=None)
    if nearest and not budget.milliseconds:
        return kinds.for_rows(nearest.kind, rows), tried
    raise UsageError(_out_of_reach(budget, nearest, tried, rows, FLAT.bytes(rows, width)))


def _out_of_reach(
    budget: Budget, nearest: Measured | None, tried: Sequence[Measured], rows: int, exact_bytes: int
) -> str:
    share = f" within {megabytes(budget.memory)} (their share of --memory)" if budget.memory else ""
    asked = f"no index of these {rows:,} rows is expected to have --recall {budget.recall:g}{share}"
    if nearest:
        return (
            f"{asked} in --latency {budget.milliseconds:g}ms; the nearest is {nearest.kind.name} with "
            f"{_rounded_up(nearest.expected)}ms: allow that much, or a lower recall"
        )
    more = f"more --memory (an exact one takes {megabytes(exact_bytes)})"
    if not tried:
        return f"{asked}: allow {more}"
    best = max(tried, key=lambda point: point.sure)
    return f"{asked}; the nearest is {best.kind.name} with {best.sure:.3f}: allow that recall, or {more}"
