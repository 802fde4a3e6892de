from __future__ import annotations

import numpy as np

from mmembed.linear import Scoring, normalize_rows
from mmembed.moments import View
from mmembed.pairs import Pairs, join, reciprocal_rank


def some(rows: int, seed: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    present = {"image": np.ones(rows, bool), "text": random.random(rows) < 0.7}
    views = {name: View.single(random.normal(size=(rows, 5)), has) for name, has in present.items()}
    media = {name: random.integers(0, 2 * rows // 3, rows).astype(np.uint64) for name in views}
    return Pairs.of(views, np.arange(rows) % 3, media)


def assert_same(found: Pairs, expected: Pairs) -> None:
    left, right = found.to_arrays(), expected.to_arrays()
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[key], right[key]) for key in left)


def test_pairs_come_back_from_plain_arrays_and_from_their_parts() -> None:
    pairs = some(20)
    assert_same(Pairs.from_arrays(pairs.to_arrays()), pairs)
    assert_same(join([pairs.take(np.arange(7)), pairs.take(np.arange(7, 20))]), pairs)
    assert len(pairs.take(pairs.folds == 1)) == 7
    assert not pairs.means["text"][~pairs.present["text"]].any()


def slow_rank(pairs: Pairs, z: dict[str, np.ndarray], spectrum: np.ndarray | None) -> float:
    found = []
    both = [row for row in range(len(pairs)) if pairs.present["image"][row] and pairs.present["text"][row]]
    for query, target in (("image", "text"), ("text", "image")):
        for i in both:
            scores = {}
            for j in both:
                scores[j] = float(z[query][i] @ z[target][j])
                if spectrum is not None:
                    scores[j] -= float(spectrum @ z[target][j] ** 2) / 2
            right = [j for j in both if any(pairs.media[name][i] == pairs.media[name][j] for name in z)]
            best = max(scores[j] for j in right)
            found.append(1 / (1 + sum(scores[j] >= best for j in both if j not in right)))
    return float(np.mean(found))


def test_the_mean_reciprocal_rank_is_that_of_a_slow_loop() -> None:
    for seed in range(3):
        pairs = some(30, seed)
        z = {name: normalize_rows(means) for name, means in pairs.means.items()}
        found = reciprocal_rank(z, pairs, Scoring(), {("image", "text"): 3})
        np.testing.assert_allclose(found, slow_rank(pairs, z, None), rtol=1e-6)
        spectrum = np.linspace(0.9, 0.1, 5).astype(np.float32)
        found = reciprocal_rank(pairs.means, pairs, Scoring(spectrum), {("image", "text"): 3})
        np.testing.assert_allclose(found, slow_rank(pairs, dict(pairs.means), spectrum), rtol=1e-6)


def test_what_tells_no_records_apart_is_worth_nothing() -> None:
    pairs = some(30)
    pairs = Pairs(
        pairs.means, pairs.present, {name: np.arange(30, dtype=np.uint64) for name in pairs.media}, pairs.folds
    )
    same = {name: np.ones_like(means) for name, means in pairs.means.items()}
    assert reciprocal_rank(same, pairs, Scoring(), {("image", "text"): 1}) < 0.06


def test_no_pair_has_no_rank() -> None:
    pairs = some(10)
    alone = Pairs(pairs.means, {**pairs.present, "text": np.zeros(10, bool)}, pairs.media, pairs.folds)
    assert np.isnan(reciprocal_rank(dict(pairs.means), alone, Scoring(), {("image", "text"): 1}))
