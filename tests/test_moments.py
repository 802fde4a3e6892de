from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmembed.moments import Moments, PairMoments, View, concatenate, merge_all

Views = dict[str, NDArray[np.float64]]
Present = dict[str, NDArray[np.bool_]]

DIMS = {"audio": 2, "image": 4, "text": 3}


def data(rows: int, seed: int = 0, share: float = 0.6) -> tuple[Views, Present]:
    """Views far from the origin, and who has which."""
    random = np.random.default_rng(seed)
    views = {name: 1e6 + random.normal(size=(rows, dim)) for name, dim in DIMS.items()}
    return views, {name: random.random(rows) < share for name in DIMS}


def moments_of(views: Views, present: Present, weights: NDArray[np.float64] | None = None) -> Moments:
    return Moments.of({name: View.single(view, present[name]) for name, view in views.items()}, weights)


def part(views: Views, present: Present, rows: NDArray[np.intp]) -> Moments:
    return moments_of(
        {name: view[rows] for name, view in views.items()}, {name: has[rows] for name, has in present.items()}
    )


def assert_equal(found: Moments, expected: Moments) -> None:
    assert found.pairs.keys() == expected.pairs.keys()
    for pair, moments in expected.pairs.items():
        assert found.pairs[pair].count == moments.count
        np.testing.assert_allclose(found.pairs[pair].mean_x, moments.mean_x, rtol=1e-12)
        np.testing.assert_allclose(found.pairs[pair].mean_y, moments.mean_y, rtol=1e-12)
        scale = max(moments.count, 1)  # of the comoments of standard normal values
        np.testing.assert_allclose(found.pairs[pair].comoment, moments.comoment, rtol=1e-9, atol=1e-9 * scale)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 60), parts=st.integers(1, 8), seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.6, 1])
)
def test_parts_merged_in_any_order_are_the_whole(rows: int, parts: int, seed: int, share: float) -> None:
    views, present = data(rows, seed, share)
    random = np.random.default_rng(seed)
    owner = random.integers(0, parts, rows)  # some parts may be empty
    pieces = [part(views, present, np.flatnonzero(owner == k)) for k in random.permutation(parts)]
    whole = moments_of(views, present)
    assert_equal(reduce(Moments.merge, pieces), whole)
    assert_equal(reduce(lambda right, left: left.merge(right), pieces), whole)


def test_far_from_the_origin_merged_comoments_keep_nine_digits() -> None:
    """Sums of squares would lose them all: 1e6 squared times 10,000 leaves four digits of a deviation of 1."""
    exact = np.random.default_rng(0).integers(-8, 8, size=(10_000, 2)) / 8.0  # with 1e6 added still exact
    near, far = (
        reduce(
            PairMoments.merge,
            [PairMoments.of(x[i : i + 37], x[i : i + 37], np.ones(len(x[i : i + 37]))) for i in range(0, len(x), 37)],
        )
        for x in (exact, exact + 1e6)
    )
    np.testing.assert_allclose(far.comoment, near.comoment, rtol=1e-9)
    np.testing.assert_allclose(far.mean_x, near.mean_x + 1e6, rtol=1e-15)


@pytest.mark.parametrize("a, b", [("image", "text"), ("text", "image"), ("audio", "audio")])
def test_covariances_are_those_of_numpy_over_the_records_that_have_both(a: str, b: str) -> None:
    views, present = data(200)
    moments = moments_of(views, present)
    both = present[a] & present[b]
    expected = np.cov(views[a][both].T, views[b][both].T, bias=True)[: DIMS[a], DIMS[a] :]
    np.testing.assert_allclose(moments.covariance(a, b), expected, rtol=1e-6, atol=1e-9)
    assert moments.count(a, b) == both.sum() > 10


def test_a_mean_is_over_all_records_that_have_the_modality() -> None:
    views, present = data(200)
    moments = moments_of(views, present)
    for name in DIMS:
        np.testing.assert_allclose(moments.mean(name), views[name][present[name]].mean(axis=0), rtol=1e-14)
        assert moments.count(name, name) == present[name].sum()
        assert moments.dim(name) == DIMS[name]


def test_rows_of_records_that_lack_a_modality_are_not_looked_at() -> None:
    views, present = data(50)
    spoilt = {name: np.where(present[name][:, None], view, np.nan) for name, view in views.items()}
    assert_equal(moments_of(spoilt, present), moments_of(views, present))


def test_merging_with_nothing_changes_no_bit() -> None:
    views, present = data(20)
    whole, nothing = moments_of(views, present), part(views, present, np.arange(0))
    for merged in (whole.merge(nothing), nothing.merge(whole)):
        for pair, moments in whole.pairs.items():
            assert merged.pairs[pair].comoment.tobytes() == moments.comoment.tobytes()


def test_no_records_have_covariances_of_zero() -> None:
    views, present = data(0)
    moments = moments_of(views, present)
    assert moments.modalities == ["audio", "image", "text"]
    assert (moments.covariance("text", "image") == np.zeros((3, 4))).all()
    assert moments.count("text", "image") == 0


def test_moments_of_other_modalities_do_not_merge() -> None:
    views, present = data(5)
    alone = moments_of({"image": views["image"]}, {"image": present["image"]})
    with pytest.raises(ValueError, match=r"don't merge"):
        moments_of(views, present).merge(alone)


def test_moments_come_back_from_plain_arrays_to_the_last_bit() -> None:
    moments = moments_of(*data(20))
    arrays = moments.to_arrays()
    assert all(array.flags.c_contiguous for array in arrays.values())
    read = Moments.from_arrays(arrays)
    assert read.pairs.keys() == moments.pairs.keys()
    for pair, expected in moments.pairs.items():
        assert read.pairs[pair].count == expected.count and type(read.pairs[pair].count) is int
        assert read.pairs[pair].weight == expected.weight
        for name in ("mean_x", "mean_y", "comoment"):
            assert getattr(read.pairs[pair], name).tobytes() == getattr(expected, name).tobytes()


def test_a_weight_is_worth_as_many_records() -> None:
    views, present = data(40)
    weights = np.random.default_rng(1).integers(0, 4, 40)
    found = moments_of(views, present, weights.astype(float))
    repeated = part(views, present, np.repeat(np.arange(40), weights))
    for pair, moments in repeated.pairs.items():
        assert found.pairs[pair].weight == moments.count
        np.testing.assert_allclose(found.pairs[pair].mean_y, moments.mean_y, rtol=1e-12)
        np.testing.assert_allclose(found.covariance(*pair), repeated.covariance(*pair), atol=1e-8)


def segmented(seed: int) -> tuple[dict[str, View], dict[str, list[NDArray[np.float64]]]]:
    """Views of 12 records with 0 to 3 segments each, and the segments by record."""
    random = np.random.default_rng(seed)
    segments = {
        name: [random.normal(size=(random.integers(0, 4), dim)) for _ in range(12)] for name, dim in DIMS.items()
    }
    owners = {name: np.repeat(np.arange(12), [len(of) for of in rows]) for name, rows in segments.items()}
    return {name: View.of(np.concatenate(rows), owners[name], 12) for name, rows in segments.items()}, segments


@pytest.mark.parametrize("by_segment", [False, True])
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_moments_are_those_of_all_pairs_of_segments(by_segment: bool, seed: int) -> None:
    views, segments = segmented(seed)
    found = Moments.of(views, by_segment=by_segment)
    for a, b in found.pairs:
        x, y, weights = [], [], []
        for left, right in zip(segments[a], segments[b]):
            pairs = [(u, u) for u in left] if a == b else [(u, v) for u in left for v in right]
            x += [u for u, _ in pairs]
            y += [v for _, v in pairs]
            weights += [1.0 if by_segment else 1 / max(len(pairs), 1)] * len(pairs)
        if not x:
            continue
        w, left_rows, right_rows = np.array(weights)[:, None], np.array(x), np.array(y)
        centred = left_rows - (w * left_rows).sum(0) / w.sum(), right_rows - (w * right_rows).sum(0) / w.sum()
        np.testing.assert_allclose(found.covariance(a, b), (w * centred[0]).T @ centred[1] / w.sum(), atol=1e-9)
        assert found.weight(a, b) == pytest.approx(w.sum())


def test_views_one_after_the_other_are_one_view_and_chosen_records_are_those_alone() -> None:
    (first, _), (second, _) = segmented(1), segmented(2)
    both = {name: concatenate([first[name], second[name]]) for name in DIMS}
    assert_equal(Moments.of(both), merge_all([Moments.of(first), Moments.of(second)]))
    chosen = np.arange(24) < 12
    assert_equal(Moments.of(both, chosen.astype(float)), Moments.of(first))


def test_projected_moments_are_those_of_projected_features() -> None:
    views, present = data(50)
    random = np.random.default_rng(0)
    bases = {name: random.normal(size=(DIMS[name], 2)) for name in ("image", "text")}
    projected = moments_of({name: views[name] @ basis for name, basis in bases.items()}, present)
    found = moments_of(views, present).projected(bases)
    assert found.modalities == ["image", "text"]
    np.testing.assert_allclose(found.covariance("text", "image"), projected.covariance("text", "image"), atol=1e-6)
    factors = {name: np.full(DIMS[name], 3.0) for name in bases}
    scaled = moments_of(views, present).scaled(factors)
    np.testing.assert_allclose(
        scaled.covariance("image", "text"), 9 * moments_of(views, present).covariance("image", "text")
    )
