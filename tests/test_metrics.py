from __future__ import annotations

from itertools import permutations
from math import comb, log2
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import bootstrap, permutation_test, rankdata, skew
from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score, top_k_accuracy_score

import mmembed.metrics
from mmembed.linear import normalize_rows
from mmembed.metrics import (
    Outcome,
    chance,
    classification,
    modality_gap,
    outcome,
    paired_test,
    per_query,
    skewness_of_hits,
    summary,
)

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def ranks(*asked: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The rank of the best right answer to each query, and how many there are."""
    found = outcome(*asked)
    return found.rank, found.right


def _unit(random: np.random.Generator, rows: int, dim: int = 5) -> NDArray[np.float32]:
    return normalize_rows(random.normal(size=(rows, dim)).astype(np.float32))


def _single(count: int) -> NDArray[np.int64]:
    return np.arange(count)[:, np.newaxis]


def test_figures_equal_those_of_scikit_learn_where_one_answer_is_right() -> None:
    random = np.random.default_rng(0)
    queries, candidates = _unit(random, 60), _unit(random, 60)
    result = summary(outcome(queries, candidates, np.arange(60), _single(60), _single(60)))
    scores = queries @ candidates.T
    for k in (1, 5, 10):
        assert result[f"recall@{k}"] == pytest.approx(top_k_accuracy_score(np.arange(60), scores, k=k))
    assert result["mrr"] == pytest.approx(label_ranking_average_precision_score(np.eye(60), scores))
    assert result["median_rank"] == np.median([rankdata(-row)[i] for i, row in enumerate(scores)])


def _slow_ranks(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> list[float]:
    found = []
    for row, good in zip(scores, right, strict=True):
        best = max(score for score, is_right in zip(row, good, strict=True) if is_right)
        above = sum(score > best + 1e-6 for score in row)
        ties = [is_right for score, is_right in zip(row, good, strict=True) if abs(score - best) <= 1e-6]
        orders = [first.index(True) for first in set(permutations(ties))]  # each equally likely
        found.append(1 + above + sum(orders) / len(orders))
    return found


@few
@given(seeds, st.integers(1, 6), st.integers(1, 7))
def test_ranks_equal_the_mean_over_all_orders_of_what_ties(seed: int, labels: int, count: int) -> None:
    random = np.random.default_rng(seed)
    choices = _unit(random, 3)  # few vectors for many candidates: ties everywhere
    sizes = random.integers(1, 4, count)
    candidates = choices[random.integers(0, 3, sizes.sum())]
    starts = np.cumsum([0, *sizes[:-1]])
    queries = _unit(random, count)
    own = random.integers(0, labels, (count, 2))
    other = np.where(random.random((count, 2)) < 0.3, -1, own)
    other[:, 0] = own[:, 0]  # each query's own record is right
    found, right = ranks(queries, candidates, starts, own, other)
    scores = np.array([[max(q @ c for c in part) for part in np.split(candidates, starts[1:])] for q in queries])
    relevant = (own[:, np.newaxis] == other).any(axis=2)
    np.testing.assert_allclose(found, _slow_ranks(scores, relevant))
    assert (right == relevant.sum(axis=1)).all()


@few
@given(seeds, st.integers(1, 30), st.integers(1, 5))
def test_one_score_for_all_gives_the_mean_rank_of_a_random_order(seed: int, count: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    queries, label = _unit(random, count), random.integers(0, labels, (count, 1))
    same = np.repeat(_unit(random, 1), count, axis=0)
    found, right = ranks(queries, same, np.arange(count), label, label)
    np.testing.assert_allclose(found, (count + 1) / (right + 1))


@few
@given(seeds, st.integers(1, 12))
def test_the_order_of_the_candidates_does_not_matter(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    queries, candidates = _unit(random, count), _unit(random, 3)[random.integers(0, 3, count)]
    order = random.permutation(count)
    plain = ranks(queries, candidates, np.arange(count), _single(count), _single(count))[0]
    mixed = ranks(queries, candidates[order], np.arange(count), _single(count), _single(count)[order])[0]
    np.testing.assert_array_equal(plain, mixed)


def test_copies_of_the_right_answer_do_no_harm() -> None:
    vector = np.array([[1, 0]], np.float32)
    candidates = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    label = np.array([[7]])
    assert ranks(vector, candidates, np.arange(4), label, np.array([[7], [7], [7], [1]]))[0].tolist() == [1]
    assert ranks(vector, candidates, np.arange(4), label, np.array([[7], [2], [3], [1]]))[0].tolist() == [2]


def test_what_differs_by_rounding_alone_ties() -> None:
    query, label = np.array([[1, 0]], np.float32), np.array([[7]])
    for wrong, rank in ((0.5000001, 1.5), (0.4999999, 1.5), (0.50001, 2), (0.49999, 1)):
        candidates = np.array([[0.5, 0], [wrong, 0]], np.float32)
        assert ranks(query, candidates, np.arange(2), label, np.array([[7], [1]]))[0].tolist() == [rank]


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    queries, candidates = _unit(random, 23), _unit(random, 23)
    whole = ranks(queries, candidates, np.arange(23), _single(23), _single(23))
    monkeypatch.setattr(mmembed.metrics, "_BLOCK_SCORES", 50)
    blocks = ranks(queries, candidates, np.arange(23), _single(23), _single(23))
    assert (whole[0] == blocks[0]).all() and (whole[1] == blocks[1]).all()


def test_blocks_of_queries_and_of_samples_change_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    queries, candidates, label = _unit(random, 23), _unit(random, 23), random.integers(0, 5, (23, 1))
    whole = summary(outcome(queries, candidates, np.arange(23), label, label))
    monkeypatch.setattr(mmembed.metrics, "_BLOCK_SCORES", 50)
    monkeypatch.setattr(mmembed.metrics, "_BLOCK_DRAWS", 50)
    assert summary(outcome(queries, candidates, np.arange(23), label, label)) == pytest.approx(whole)


def test_a_query_without_a_right_answer_is_an_error() -> None:
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="no right candidate"):
        ranks(vectors, vectors, np.arange(2), np.array([[1], [5]]), np.array([[1], [2]]))


def test_without_queries_or_with_values_that_are_not_finite_nothing_is_measured() -> None:
    vectors, label = np.eye(2, dtype=np.float32), _single(2)
    for measure in (ranks, outcome):
        with pytest.raises(ValueError, match="0 queries and 2 candidates"):
            measure(vectors[:0], vectors, np.arange(2), label[:0], label)
        for wrong in (np.nan, np.inf):
            with pytest.raises(ValueError, match="not finite"):
                measure(vectors, np.full_like(vectors, wrong), np.arange(2), label, label)
    with pytest.raises(ValueError, match="one value for each query"):
        Outcome(np.ones(2), np.ones(3, np.int64), np.ones(2), np.ones(2), 3)


@few
@given(st.integers(1, 40), st.data())
def test_chance_is_the_binomial_formula_and_what_random_orders_give(n: int, data: st.DataObject) -> None:
    right = np.array(data.draw(st.lists(st.integers(1, n), min_size=1, max_size=5)))
    result = chance(n, right)
    for k in (1, 5, 10):
        exact = np.mean([1 - comb(n - r, k) / comb(n, k) if k <= n else 1 for r in right.tolist()])
        assert result[f"chance_recall@{k}"] == pytest.approx(exact, abs=1e-12)
    reciprocal = np.mean(
        [sum(comb(n - i, r - 1) / comb(n, r) / i for i in range(1, n - r + 2)) for r in right.tolist()]
    )
    assert result["chance_mrr"] == pytest.approx(reciprocal)


def test_random_vectors_score_like_chance() -> None:
    random = np.random.default_rng(4)
    queries, candidates, label = _unit(random, 4000), _unit(random, 200), random.integers(0, 80, (200, 1))
    asked = label[random.integers(0, 200, 4000)]
    result = summary(outcome(queries, candidates, np.arange(200), asked, label))
    for name in ("recall@1", "recall@5", "recall@10", "mrr"):
        assert result[name] == pytest.approx(result[f"chance_{name}"], abs=0.02)


BOUNDED = ("recall@1", "recall@5", "recall@10", "mrr", "map", "ndcg@10")


def _random_outcome(random: np.random.Generator, count: int) -> Outcome:
    rank = random.geometric(0.2, count).astype(np.float64)
    return Outcome(rank, np.ones(count, np.int64), random.random(count), random.random(count), 100)


def _repeated(found: Outcome, index: NDArray[np.int64]) -> Outcome:
    columns = (found.rank[index], found.right[index], found.average_precision[index], found.ndcg[index])
    return Outcome(*columns, found.candidates)


def _ranx(scores: NDArray[np.float32], right: NDArray[np.bool_], names: list[str]) -> dict[str, NDArray[np.float64]]:
    """Of each query, by an independent implementation, which sorts the queries by name.

    It runs as plain Python: to compile it takes a minute and a half.
    """
    qrels = {f"q{i:03}": {f"d{j}": 1 for j in np.flatnonzero(row)} for i, row in enumerate(right)}
    run = {f"q{i:03}": {f"d{j}": float(score) for j, score in enumerate(row)} for i, row in enumerate(scores)}
    with patch("numba.config.DISABLE_JIT", True):
        import ranx

        found: dict[str, NDArray[np.float64]] = ranx.evaluate(
            ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False
        )
    return found


def test_figures_equal_those_of_ranx_where_several_answers_are_right() -> None:
    random = np.random.default_rng(6)
    queries = 9 * random.normal(size=(70, 6)).astype(np.float32)  # of no unit length
    candidates = random.normal(size=(90, 6)).astype(np.float32)
    asked, label = random.integers(0, 12, (70, 1)), np.arange(90)[:, np.newaxis] % 12
    label[:30] = 3  # more right ones than there are first ranks
    found = outcome(queries, candidates, np.arange(90), asked, label)
    assert found.right.max() > 30 and found.right.min() > 1
    names = {f"recall@{k}": f"hit_rate@{k}" for k in (1, 5, 10)} | {name: name for name in ("mrr", "map", "ndcg@10")}
    theirs = _ranx(queries @ candidates.T, asked == label.T, list(names.values()))
    result = summary(found, samples=10)
    for name, values in per_query(found).items():
        np.testing.assert_allclose(values, theirs[names[name]], rtol=1e-9, atol=1e-12)
        assert result[name] == pytest.approx(theirs[names[name]].mean())


def _slow_gains(scores: list[int], right: list[bool]) -> tuple[float, float]:
    """Average precision and nDCG@10 as means over all orders that sort the scores."""
    best_first = sorted(scores, reverse=True)
    orders = [order for order in permutations(range(len(scores))) if [scores[i] for i in order] == best_first]
    ideal = sum(1 / log2(2 + place) for place in range(min(10, sum(right))))
    precisions, gains = [], []
    for order in orders:
        places = [place for place, candidate in enumerate(order) if right[candidate]]
        precisions.append(np.mean([(hits + 1) / (place + 1) for hits, place in enumerate(places)]))
        gains.append(sum(1 / log2(2 + place) for place in places if place < 10) / ideal)
    return float(np.mean(precisions)), float(np.mean(gains))


@few
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=7), st.floats(1e-3, 1e6))
def test_precision_and_gain_equal_the_means_over_all_orders_of_what_ties(
    drawn: list[tuple[int, bool]], length: float
) -> None:
    scores, right = [score for score, _ in drawn], [drawn[0][1] or not any(good for _, good in drawn)]
    right += [good for _, good in drawn[1:]]
    candidates = np.array(scores, np.float32)[:, np.newaxis]
    label = np.array(right, np.int64)[:, np.newaxis]
    found = outcome(np.array([[length]], np.float32), candidates, np.arange(len(scores)), np.array([[1]]), label)
    precision, gain = _slow_gains(scores, right)
    assert found.average_precision[0] == pytest.approx(precision)
    assert found.ndcg[0] == pytest.approx(gain)


def test_only_the_first_ten_ranks_count_for_the_gain_among_ties_too() -> None:
    candidates = np.array([[2.0]] * 6 + [[1.0]] * 8, np.float32)  # the right one is at one of the ranks 7 to 14
    label = np.array([[0]] * 13 + [[1]])
    found = outcome(np.ones((1, 1), np.float32), candidates, np.arange(14), np.array([[1]]), label)
    assert found.ndcg[0] == pytest.approx(sum(1 / log2(1 + rank) for rank in range(7, 11)) / 8)
    assert found.average_precision[0] == pytest.approx(sum(1 / rank for rank in range(7, 15)) / 8)


@few
@given(seeds, st.integers(1, 25), st.integers(1, 5))
def test_an_outcome_has_the_ranks_of_ranks_and_stays_within_its_bounds(seed: int, count: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    queries, candidates = _unit(random, count), _unit(random, 4)[random.integers(0, 4, count)]
    label = random.integers(0, labels, (count, 1))
    found = outcome(queries, candidates, np.arange(count), label, label)
    rank, right = ranks(queries, candidates, np.arange(count), label, label)
    assert (found.rank == rank).all() and (found.right == right).all()
    for values in per_query(found).values():
        assert ((values >= 0) & (values <= 1)).all()
    order = random.permutation(count)
    mixed = outcome(queries, candidates[order], np.arange(count), label, label[order])
    np.testing.assert_allclose(found.average_precision, mixed.average_precision)
    np.testing.assert_allclose(found.ndcg, mixed.ndcg)


@few
@given(seeds, st.integers(-12, 12))
def test_the_length_of_long_vectors_does_not_matter(seed: int, exponent: int) -> None:
    random = np.random.default_rng(seed)
    queries, candidates = _unit(random, 12), _unit(random, 3)[random.integers(0, 3, 12)]
    label = random.integers(0, 4, (12, 1))
    plain = outcome(queries, candidates, np.arange(12), label, label)
    factor = np.float32(10.0**exponent)
    scaled = outcome(queries * factor, candidates * np.float32(3e3 / factor), np.arange(12), label, label)
    assert (plain.rank == scaled.rank).all()
    np.testing.assert_allclose(plain.average_precision, scaled.average_precision)


def test_what_differs_by_the_rounding_of_long_vectors_ties() -> None:
    query, label = np.array([[1000, 0]], np.float32), np.array([[7]])
    for wrong, rank in ((500.0003, 1.5), (499.9997, 1.5), (500.003, 2), (499.997, 1)):
        candidates = np.array([[500, 0], [wrong, 0]], np.float32)
        found = outcome(query, candidates, np.arange(2), label, np.array([[7], [1]]))
        assert found.rank.tolist() == [rank]
        assert found.average_precision[0] == pytest.approx({1: 1, 1.5: 0.75, 2: 0.5}[rank])


def test_bounds_are_those_of_scipy_where_queries_are_independent() -> None:
    found = _random_outcome(np.random.default_rng(7), 60)
    result = summary(found, samples=9999)
    for name, values in per_query(found).items():
        theirs = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
        assert result[f"{name}_low"] == pytest.approx(theirs.low, abs=0.02)
        assert result[f"{name}_high"] == pytest.approx(theirs.high, abs=0.02)


def test_bounds_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(8)
    results = [summary(_random_outcome(random, 60), samples=300, seed=seed) for seed in range(300)]
    held = np.mean([result["map_low"] <= 0.5 <= result["map_high"] for result in results])
    assert 0.9 < held < 0.98


@few
@given(seeds, st.integers(1, 30), st.integers(1, 5))
def test_copies_of_queries_in_their_clusters_make_no_bounds_narrower(seed: int, count: int, copies: int) -> None:
    random = np.random.default_rng(seed)
    found = _random_outcome(random, count)
    index = random.permutation(np.tile(np.arange(count), copies))
    alone, copied = summary(found, samples=50), summary(_repeated(found, index), clusters=index, samples=50)
    for name in BOUNDED:
        for key in (name, f"{name}_low", f"{name}_high"):
            assert copied[key] == pytest.approx(alone[key])
        assert alone[f"{name}_low"] <= alone[f"{name}_high"]


def test_bounds_over_clusters_are_those_of_a_slow_loop() -> None:
    random = np.random.default_rng(9)
    clusters = random.integers(100, 110, 60)
    value = (random.normal(size=10)[clusters - 100] + 0.1 * random.normal(size=60) > 0).astype(np.float64)
    found = Outcome(np.ones(60), np.ones(60, np.int64), value, value, 60)
    members = [value[clusters == name] for name in np.unique(clusters)]
    means = [np.concatenate([members[i] for i in random.integers(0, 10, 10)]).mean() for _ in range(5000)]
    result = summary(found, clusters, samples=5000)
    assert result["map_low"] == pytest.approx(np.percentile(means, 2.5), abs=0.03)
    assert result["map_high"] == pytest.approx(np.percentile(means, 97.5), abs=0.03)
    assert result["map_high"] - result["map_low"] > 1.5 * (summary(found)["map_high"] - summary(found)["map_low"])
    assert summary(found, clusters) == summary(found, clusters) != summary(found, clusters, seed=1)


def test_clusters_of_another_number_of_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each query"):
        summary(_random_outcome(np.random.default_rng(0), 3), np.zeros(2, np.int64))


def test_p_is_that_of_scipy() -> None:
    random = np.random.default_rng(10)
    for count, shift in ((9, 0.3), (40, 0.2), (40, 0.0), (200, 0.1)):
        a, gain = random.random(count), random.normal(shift, 0.7, count)
        theirs = permutation_test((gain,), np.mean, permutation_type="samples", n_resamples=9999, rng=random)
        ours = paired_test(a, a + gain)
        assert ours["p"] == pytest.approx(theirs.pvalue, abs=0.02)
        assert ours["difference"] == pytest.approx(gain.mean())
        assert ours["difference_low"] < gain.mean() < ours["difference_high"]


def test_p_over_clusters_is_that_of_scipy_on_their_sums() -> None:
    random = np.random.default_rng(11)
    clusters = random.integers(0, 12, 80)
    a, gain = random.random(80), 0.25 + 0.3 * random.normal(size=12)[clusters]
    sums = np.bincount(clusters, gain)
    theirs = permutation_test((sums,), np.mean, permutation_type="samples", n_resamples=9999, rng=random)
    ours = paired_test(a, a + gain, clusters)
    assert ours["p"] == pytest.approx(theirs.pvalue, abs=0.02)
    assert ours["p"] > 3 * paired_test(a, a + gain)["p"]  # queries of a cluster are no witnesses of their own


def test_p_is_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(12)
    pairs = random.normal(size=(1000, 2, 30))
    p = np.array([paired_test(a, b, samples=99, seed=seed)["p"] for seed, (a, b) in enumerate(pairs)])
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert (p <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 1000))


def test_p_is_one_without_a_difference_and_never_zero() -> None:
    values = np.random.default_rng(13).random(50)
    assert paired_test(values, values) == {"difference": 0, "difference_low": 0, "difference_high": 0, "p": 1}
    assert paired_test(values, values + 1, samples=99)["p"] == 0.01
    thirds = np.full(7, 0.1)  # sums of equal numbers differ in their last bits by order: all 2 in 128 must count
    assert paired_test(0 * thirds, thirds)["p"] == pytest.approx(2 / 128, abs=0.005)


@few
@given(seeds, st.integers(1, 40))
def test_the_order_of_the_two_turns_the_difference(seed: int, count: int) -> None:
    a, b = np.random.default_rng(seed).random((2, count))
    one, other = paired_test(a, b, samples=50), paired_test(b, a, samples=50)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["difference_low"] == pytest.approx(-other["difference_high"])
    assert one["p"] == other["p"]


def test_values_that_are_no_pairs_are_refused() -> None:
    for a, b in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0)), (np.ones((2, 1)), np.ones((2, 1)))):
        with pytest.raises(ValueError, match="are no pairs"):
            paired_test(a, b)


@few
@given(seeds, st.integers(1, 30), st.integers(1, 20), st.integers(1, 5))
def test_skewness_of_hits_is_that_of_scipy(seed: int, n: int, queries: int, k: int) -> None:
    hits = np.random.default_rng(seed).integers(0, n, (queries, k))
    counts = np.bincount(hits.ravel(), minlength=n)
    expected = skew(counts) if len(set(counts.tolist())) > 1 else 0.0
    assert skewness_of_hits(hits, n) == pytest.approx(expected, abs=1e-9)


def test_skewness_of_equal_counts_is_zero_and_of_a_hub_large() -> None:
    assert skewness_of_hits(np.arange(12).reshape(6, 2) % 3, 3) == 0
    assert skewness_of_hits(np.zeros((50, 1), np.int64), 50) > 6.5
    with pytest.raises(ValueError, match="candidate 3 was hit, and there are 3"):
        skewness_of_hits(np.array([[3]]), 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of scikit-learn, on classes that were guessed alone
@few
@given(seeds, st.integers(1, 40), st.integers(1, 6))
def test_classification_is_that_of_scikit_learn(seed: int, count: int, classes: int) -> None:
    predicted, true = np.random.default_rng(seed).integers(0, classes, (2, count))
    result = classification(predicted, true)
    assert result["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    expected = f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
    assert result["macro_f1"] == pytest.approx(expected)
    assert result["classes"] == len(np.unique(true))


def test_classes_that_do_not_pair_are_refused() -> None:
    for predicted, true in ((np.zeros(2), np.zeros(3)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(ValueError, match="both for each item"):
            classification(predicted.astype(np.int64), true.astype(np.int64))


@few
@given(seeds, st.integers(1, 20), st.integers(1, 20))
def test_the_gap_is_the_distance_of_the_means(seed: int, n: int, m: int) -> None:
    random = np.random.default_rng(seed)
    a, b, step = _unit(random, n), _unit(random, m), _unit(random, 1)
    gap = modality_gap(a, b)
    assert gap == pytest.approx(sum((x - y) ** 2 for x, y in zip(a.mean(axis=0), b.mean(axis=0), strict=True)) ** 0.5)
    assert 0 <= gap <= 2 + 1e-6
    assert modality_gap(a + step, b + step) == pytest.approx(gap, abs=1e-5)
    assert modality_gap(a, a + 3 * step) == pytest.approx(3, abs=1e-5)
    assert modality_gap(b, a) == gap and modality_gap(a, a) == 0
