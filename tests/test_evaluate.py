from __future__ import annotations

import json
from itertools import permutations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import Row, build, random_rows, rewrite
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

import mmembed.evaluate
from mmembed.errors import DatasetError, UsageError
from mmembed.evaluate import chance, evaluate, format_table, ranks, retrieval
from mmembed.linear import normalize_rows
from mmembed.shards import read_table

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def _unit(random: np.random.Generator, rows: int, dim: int = 5) -> NDArray[np.float32]:
    return normalize_rows(random.normal(size=(rows, dim)).astype(np.float32))


def _single(count: int) -> NDArray[np.int64]:
    return np.arange(count)[:, np.newaxis]


def test_figures_equal_those_of_scikit_learn_where_one_answer_is_right() -> None:
    random = np.random.default_rng(0)
    queries, candidates = _unit(random, 60), _unit(random, 60)
    result = retrieval(queries, candidates, np.arange(60), _single(60), _single(60))
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
    monkeypatch.setattr(mmembed.evaluate, "_BLOCK_SCORES", 50)
    blocks = ranks(queries, candidates, np.arange(23), _single(23), _single(23))
    assert (whole[0] == blocks[0]).all() and (whole[1] == blocks[1]).all()


def test_a_query_without_a_right_answer_is_an_error() -> None:
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="no right candidate"):
        ranks(vectors, vectors, np.arange(2), np.array([[1], [5]]), np.array([[1], [2]]))


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
    result = retrieval(queries, candidates, np.arange(200), asked, label)
    for name in ("recall@1", "recall@5", "recall@10", "mrr"):
        assert result[name] == pytest.approx(result[f"chance_{name}"], abs=0.02)


def test_evaluation_of_a_data_set_equals_a_slow_loop(tmp_path: Path) -> None:
    rows = random_rows(24, ["image", "text"], 6, seed=5)
    rows[3] = Row(rows[3].id, {"text": rows[3].vectors["text"]})  # a candidate, never a query
    rows[5] = Row(rows[5].id, rows[5].vectors, hashes={"text": "twin"})
    rows[9] = Row(rows[9].id, rows[9].vectors, hashes={"text": "twin"})
    rows[11] = Row(rows[11].id, rows[11].vectors, hashes={"text": "twin"})  # not held out: no candidate
    held_out = {row.id for i, row in enumerate(rows) if i % 3 == 0 or i == 5}
    result = evaluate(build(tmp_path, rows, held_out=held_out))

    asked = [row for row in rows if row.id in held_out and "image" in row.vectors]
    answers = [row for row in rows if row.id in held_out]
    found = []
    for query in asked:
        mean = normalize_rows(normalize_rows(query.vectors["image"]).mean(axis=0, keepdims=True))[0]
        scores = {row.id: float((normalize_rows(row.vectors["text"]) @ mean).max()) for row in answers}
        good = {query.id} | ({"r005", "r009"} if query.id in ("r005", "r009") else set())
        best = max(scores[id] for id in good)
        found.append(1 + sum(score > best for score in scores.values()))
    (row,) = (row for row in result["rows"] if (row["query"], row["target"]) == ("image", "text"))
    assert result["records"] == {"image": 8, "text": 9}
    assert (row["queries"], row["candidates"]) == (8, 9)
    assert row["median_rank"] == np.median(found)
    assert row["mrr"] == pytest.approx(np.mean([1 / rank for rank in found]))
    assert row["recall@5"] == np.mean([rank <= 5 for rank in found])
    twins = sum(row.id in ("r005", "r009") for row in asked)
    assert twins == 2
    assert row["chance_recall@1"] == pytest.approx((6 * 1 + 2 * 2) / 9 / 8)
    (back,) = (row for row in result["rows"] if (row["query"], row["target"]) == ("text", "image"))
    assert (back["queries"], back["candidates"]) == (8, 8)
    assert back["chance_recall@1"] == pytest.approx((6 * 1 + 2 * 2) / 8 / 8)  # the same text is as right
    assert json.loads(json.dumps(result)) == result


def test_every_ordered_pair_is_measured_and_shown(tmp_path: Path) -> None:
    names = ["audio", "image", "text"]
    rows = random_rows(12, names, 6)
    result = evaluate(build(tmp_path, rows, names, held_out={row.id for row in rows}))
    assert [(row["query"], row["target"]) for row in result["rows"]] == list(permutations(names, 2))
    lines = format_table(result).splitlines()
    assert len(lines) == 1 + 6 + 1
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[1].split()[:4] == ["audio", "image", "12", "12"]
    assert f"{result['rows'][0]['recall@5']:.1%} ({5 / 12:.1%})" in lines[1]


def test_without_held_out_records_the_note_says_why(tmp_path: Path) -> None:
    result = evaluate(build(tmp_path, random_rows(5, ["image", "text"], 6)))
    assert result["rows"] == [] and "no record is held out" in result["note"]
    assert format_table(result) == result["note"]


def test_held_out_records_of_one_modality_each_make_no_row(tmp_path: Path) -> None:
    rows = [*random_rows(2, ["image"], 6), Row("t", {"text": np.ones((1, 6), np.float32)})]
    result = evaluate(build(tmp_path, rows, held_out={"r000", "t"}))
    assert result["rows"] == [] and "(1 with image, 1 with text)" in result["note"]


def test_features_of_other_rows_are_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(8, ["image", "text"], 6), held_out={"r000"})
    path = "features/text/part-00001.parquet"
    table = read_table(dataset.read(path))
    with pytest.raises(DatasetError, match="not of the same rows"):
        evaluate(rewrite(dataset, path, table.take(list(reversed(range(table.num_rows))))))


def test_without_embeddings_the_message_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mmembed project"):
        evaluate(build(tmp_path, random_rows(3, ["image", "text"], 6), until="fit"))
