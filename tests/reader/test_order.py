from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mmembed.reader.order import picked, share, shuffled, steps

SEEDS = st.integers(0, 2**40)


@given(st.integers(1, 5000), SEEDS, st.integers(0, 9))
def test_an_order_has_each_sample_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(np.arange(count), count, seed, epoch).tolist()) == list(range(count))


@given(st.integers(1, 3000), SEEDS, st.data())
def test_any_part_of_an_order_is_that_of_the_whole(count: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=50)), np.int64)
    whole = shuffled(np.arange(count), count, seed, 3)
    assert np.array_equal(shuffled(positions, count, seed, 3), whole[positions])


def test_the_orders_of_a_few_samples_are_equally_likely() -> None:
    seen = Counter(tuple(shuffled(np.arange(4), 4, seed, 0).tolist()) for seed in range(2400))
    assert len(seen) == 24
    assert chisquare(list(seen.values())).pvalue > 0.001


@pytest.mark.parametrize("what", ["seed", "epoch"])
def test_seeds_and_epochs_have_orders_of_their_own(what: str) -> None:
    count, place = 20_000, np.arange(20_000)
    orders = [shuffled(place, count, **({"seed": 1, "epoch": 1} | {what: value})) for value in (1, 2)]
    assert np.mean(orders[0] == orders[1]) < 0.001
    for one, other in [(orders[0], orders[1]), (orders[0], place), (orders[0][1:], orders[0][:-1])]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(count)  # four standard errors


def test_a_shuffle_is_global() -> None:
    order = shuffled(np.arange(100_000), 100_000, 0, 0)
    by_thousands = np.stack([np.bincount(part // 1000, minlength=100) for part in np.split(order, 100)])
    assert (
        chisquare(by_thousands.ravel()).pvalue > 0.001
    )  # each hundredth of the epoch has of each hundredth of the data


def test_an_order_is_the_same_for_ever() -> None:
    assert shuffled(np.arange(8), 8, 0, 0).tolist() == [3, 0, 6, 4, 1, 7, 2, 5]


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 7), st.booleans(), st.data())
def test_steps_share_the_rest_of_an_epoch_without_overlap_or_loss(
    count: int, size: int, ranks: int, drop_last: bool, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, count))
    found = list(steps(start, count, size, ranks, drop_last))
    read = [place for first, last in found for place in range(first, last)]
    left = (count - start) % (size * ranks) if drop_last else 0
    assert read == list(range(start, count - left))
    shares = [[share(first, last, rank, ranks) for rank in range(ranks)] for first, last in found]
    for several in shares:
        sizes = [last - first for first, last in several]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) == size or several in shares[-2 if size > 1 else -1 :]
        if size > 1 and count - start >= ranks:
            assert min(sizes) > 0  # no rank waits for one that has nothing to do


def test_picks_are_even_and_of_their_own() -> None:
    samples, counts = np.arange(30_000), np.full(30_000, 3)
    found = {
        key: picked(samples, counts, *key) for key in [(0, 0, "text"), (0, 1, "text"), (1, 0, "text"), (0, 0, "image")]
    }
    for one in found.values():
        assert chisquare(np.bincount(one, minlength=3)).pvalue > 0.001
    first, *others = found.values()
    assert all(abs(np.mean(first == other) - 1 / 3) < 0.02 for other in others)
    assert picked(samples[:3], np.array([0, 1, 5]), 0, 0, "text")[:2].tolist() == [0, 0]
