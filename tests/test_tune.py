from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import kinds, tune
from mmembed.errors import UsageError
from mmembed.kinds import RECALL_K, Kind
from mmembed.linear import normalize_rows
from mmembed.tune import Budget, Measured, Probes

ROWS, DIM = 4000, 32


def planted(seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows in clusters, and queries of two other modalities, which lie apart from them."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(50, DIM))
    latent = centers[random.integers(0, 50, ROWS)] + 0.6 * random.normal(size=(ROWS, DIM))
    gap = 2 * random.normal(size=DIM) / np.sqrt(DIM)
    queries = {
        name: normalize_rows(
            (latent[start : start + 200] + noise * random.normal(size=(200, DIM)) + gap).astype(np.float32)
        )
        for name, start, noise in (("text", 0, 0.5), ("audio", 500, 1.0))
    }
    return normalize_rows(latent.astype(np.float32)), queries


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, Probes]:
    rows, queries = planted()
    names = np.repeat(np.array(list(queries)), 200)
    return rows, tune.with_truth(np.concatenate(list(queries.values())), names, "heldout", rows)


def test_the_truth_is_an_exact_search(data: tuple[np.ndarray, Probes]) -> None:
    rows, probes = data
    expected = -np.sort(-(probes.queries @ rows.T), axis=1)[:, :RECALL_K]
    np.testing.assert_allclose(probes.truth, expected, rtol=1e-5)
    assert probes.counts == {"audio": 200, "text": 200}


def test_the_fingerprint_is_of_queries_and_truth(data: tuple[np.ndarray, Probes]) -> None:
    rows, probes = data
    again = tune.with_truth(probes.queries, probes.modalities, "heldout", rows)
    other = tune.with_truth(probes.queries, probes.modalities, "heldout", rows[1:])
    fewer = tune.with_truth(probes.queries[1:], probes.modalities[1:], "heldout", rows)
    assert again.fingerprint == probes.fingerprint
    assert len({probes.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.integers(0, 100))
def test_recall_counts_ties_and_is_whole_where_all_is_found(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, (count, 2)).astype(np.float32)
    queries = random.integers(0, 2, (4, 2)).astype(np.float32)
    probes = tune.with_truth(queries, np.array(["a", "a", "b", "b"]), "train", rows)
    scores = -np.sort(-(queries @ rows.T), axis=1)
    assert probes.found(scores[:, :RECALL_K]).tolist() == [1, 1, 1, 1]
    assert probes.recall(scores[:, :RECALL_K]) == {"a": 1, "b": 1}
    missed = np.pad(scores[:, 1:RECALL_K], ((0, 0), (0, 1)), constant_values=-np.inf)
    least = scores[:, min(count, RECALL_K) - 1]
    reachable = (missed >= least[:, np.newaxis] - 1e-5).sum(axis=1) / min(count, RECALL_K)
    assert probes.found(missed).tolist() == pytest.approx(reachable.tolist())


def test_certainty_is_of_the_worst_modality_less_its_error(data: tuple[np.ndarray, Probes]) -> None:
    _, probes = data
    scores = probes.truth.copy()
    scores[probes.modalities == "audio", 5:] = -np.inf
    scores[:100, 9] = -np.inf  # of text
    assert probes.recall(scores) == pytest.approx({"audio": 0.5, "text": 0.95})
    assert probes.sure(scores) == pytest.approx(0.5)
    scores = probes.truth.copy()
    scores[:50] = -np.inf
    found = np.array([0] * 50 + [1] * 150)
    assert probes.sure(scores) == pytest.approx(found.mean() - found.std() / np.sqrt(200))


@pytest.mark.parametrize("name", ["IVF64,Flat", "OPQ16_32,IVF64,PQ16x4fs", "SQ8"])
def test_measured_recall_is_that_of_a_search_at_that_point(name: str, data: tuple[np.ndarray, Probes]) -> None:
    rows, probes = data
    kind = Kind(name)
    index = kinds.build(kind, rows, 0)
    points = tune.measure(index, kind, rows, probes, 0, ROWS)
    assert len(points) > (1 if kind.lists else 0)
    assert [point.expected for point in points] == sorted(point.expected for point in points)
    assert [point.sure for point in points] == sorted(point.sure for point in points)
    sure = [point for point in points if point.sure > 0.9]  # a search that finds too few rows compares all
    for point in sure[:: max(1, len(sure) // 4)]:
        scores, _ = kinds.search(index, kind, rows, probes.queries, RECALL_K, point.search)
        assert point.recall == pytest.approx(probes.recall(scores), abs=5e-3)  # codes of 4 bits tie
    assert max(point.sure for point in points) > 0.97


@pytest.mark.parametrize("unit", [True, False], ids=["unit", "any length"])
def test_a_graph_is_measured_as_it_is_searched(unit: bool) -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(8000, DIM)).astype(np.float32)
    rows = normalize_rows(rows) if unit else rows
    radius = 0.0 if unit else float(np.linalg.norm(rows, axis=1).max()) * 1.000001
    queries = normalize_rows(random.normal(size=(150, DIM)).astype(np.float32))
    probes = tune.with_truth(queries, np.repeat("text", 150), "heldout", rows)
    kind = Kind("HNSW32")
    index = kinds.build(kind, rows, radius)
    points = tune.measure(index, kind, rows, probes, radius, len(rows))
    assert points[0].sure < 0.95  # so that there is something to choose
    for point in points:
        scores, _ = kinds.search(index, kind, rows, queries, RECALL_K, point.search, radius)
        assert point.recall == pytest.approx(probes.recall(scores), abs=5e-3)


def test_own_rows_as_queries_would_mislead(data: tuple[np.ndarray, Probes]) -> None:
    """The reason for all this: at one point, recall of own rows is not that of queries by another modality."""
    rows, probes = data
    kind = Kind("IVF64,Flat")
    index = kinds.build(kind, rows, 0)
    own = tune.with_truth(rows[::20], np.repeat("own", len(rows[::20])), "own rows", rows)
    point = {"nprobe": 1, "refine": 1}
    recalls: dict[str, float] = {}
    for of in (own, probes):
        recalls |= of.recall(kinds.search(index, kind, rows, of.queries, RECALL_K, point)[0])
    assert abs(recalls["own"] - recalls["audio"]) > 0.03


def test_the_cheapest_point_that_finds_enough_is_taken() -> None:
    def point(sure: float, expected: float) -> Measured:
        return Measured(Kind("SQ8"), {}, 1, 1, {"text": sure}, sure, expected)

    points = [point(0.8, 1), point(0.96, 2), point(0.97, 3), point(0.99, 9)]
    chosen = tune.cheapest(points, 0.95)
    assert chosen is points[1]
    assert tune.cheapest(points, 0.995) is None
    assert tune.frontier([points[3], point(0.9, 2.5), points[0], points[1]]) == [points[0], points[1], points[3]]


@pytest.mark.parametrize(
    ("budget", "kind"),
    [
        (Budget(0.95, 0, 0.1), "OPQ|IVF"),  # an exact search takes .11 ms
        (Budget(0.95, 250_000), "SQ8|OPQ|IVF"),
        (Budget(0.9, 100_000), "PQ"),
    ],
)
def test_a_kind_is_chosen_within_the_budget(budget: Budget, kind: str, data: tuple[np.ndarray, Probes]) -> None:
    rows, probes = data
    assert not tune.is_exact_enough(ROWS, DIM, budget)
    chosen, tried = tune.choose(ROWS, rows, probes, budget, 0)
    assert any(part in chosen.name for part in kind.split("|"))
    assert not budget.memory or chosen.bytes(ROWS, DIM) <= budget.memory
    points = tune.measure(kinds.build(chosen, rows, 0), chosen, rows, probes, 0, ROWS)
    best = tune.cheapest(points, budget.recall)
    assert best is not None and min(best.recall.values()) >= budget.recall
    assert {point.kind.name for point in tried} >= {chosen.name}


def test_an_exact_index_suits_where_it_is_small_and_fast_or_asked_for() -> None:
    assert tune.is_exact_enough(10_000, 128, Budget(0.95))
    assert not tune.is_exact_enough(1_000_000, 256, Budget(0.95))
    assert tune.is_exact_enough(1_000_000, 256, Budget(1.0))
    assert not tune.is_exact_enough(1_000_000, 256, Budget(1.0, 10_000_000))
    assert not tune.is_exact_enough(10_000, 128, Budget(0.95, 1_000_000))


def test_what_can_not_be_had_is_refused_with_the_nearest(data: tuple[np.ndarray, Probes]) -> None:
    rows, probes = data
    with pytest.raises(UsageError, match=r"--memory 0.010MB: indexes with --recall 0.95 take \S+MB at least"):
        tune.shared_out(Budget(0.95, 10_000), {"image": (ROWS, DIM)})
    with pytest.raises(UsageError, match=r"indexes with --recall 1 take 0.517MB at least"):
        tune.shared_out(Budget(1.0, 100_000), {"image": (ROWS, DIM)})
    with pytest.raises(UsageError, match=r"--recall 0.95 in --latency 0.001ms; the nearest is \S+ with 0.\d+ms"):
        tune.choose(ROWS, rows, probes, Budget(0.95, 0, 0.001), 0)
    with pytest.raises(
        UsageError,
        match=r"0.9999 within 0.1\d*MB \(their share of --memory\); the nearest is \S+ with 0.\d+: allow that recall",
    ):
        tune.choose(ROWS, rows, probes, Budget(0.9999, 100_000), 0)
    with pytest.raises(UsageError, match=r"0.08ms: a query of these exact indexes \(--recall 1\) is .* 0.12ms"):
        tune.shared_out(Budget(1.0, 0, 0.08), {"image": (ROWS, DIM)})


def test_the_nearest_may_be_an_exact_index_and_it_is_taken_where_no_other_finds_enough(
    data: tuple[np.ndarray, Probes],
) -> None:
    rows, probes = data
    few = replace(probes, truth=tune.exact_search(probes.queries, rows[:400]))
    with pytest.raises(UsageError, match=r"the nearest is Flat with (0.\d+)ms") as refused:
        tune.choose(400, rows[:400], few, Budget(0.95, 0, 0.061), 0)
    nearest = float(str(refused.value).split("with ")[1].split("ms")[0])
    assert tune.is_exact_enough(400, DIM, Budget(0.95, 0, nearest))
    chosen, _ = tune.choose(ROWS, rows, replace(probes, truth=probes.truth + 1), Budget(0.95), 0)
    assert chosen.name == "Flat"


def test_a_graphics_card_is_used_where_faiss_has_one(
    data: tuple[np.ndarray, Probes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    used = []

    def to_all(index: faiss.Index) -> faiss.Index:
        used.append(index)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_all, raising=False)
    rows, probes = data
    np.testing.assert_allclose(tune.exact_search(probes.queries, rows), probes.truth, rtol=1e-5)
    assert used
