from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.splits import HELD_OUT, TRAIN, Groups, fold_of, group_of, position, split_of, twins

IDS = [f"r{number}" for number in range(5000)]


@settings(deadline=None, max_examples=50)
@given(st.text(), st.sampled_from(["holdout", "fold"]))
def test_a_position_is_a_number_from_0_to_1_that_depends_on_the_group_alone(group: str, salt: str) -> None:
    assert 0 <= position(group, salt) < 1
    assert position(group, salt) == position(group, salt)


def test_positions_stay_what_they_are_from_release_to_release() -> None:
    assert [round(position(group, "holdout"), 6) for group in ("", "a", "grün")] == [0.555967, 0.055777, 0.728734]
    assert [n for n in range(20) if split_of(f"r{n}", 0.3) == HELD_OUT] == [2, 6, 7, 8, 10, 11, 12, 15, 16, 19]


@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.3])
def test_the_share_that_is_held_out_is_the_one_asked_for(holdout: float) -> None:
    found = sum(split_of(id, holdout) == HELD_OUT for id in IDS) / len(IDS)
    assert abs(found - holdout) <= 4 * (holdout * (1 - holdout) / len(IDS)) ** 0.5


def test_who_is_held_out_stays_so_when_more_are() -> None:
    assert all(split_of(id, 0.3) == HELD_OUT for id in IDS if split_of(id, 0.1) == HELD_OUT)


def test_folds_have_about_one_size_also_within_the_training_records() -> None:
    folds = [fold_of(id, 5) for id in IDS if split_of(id, 0.3) == TRAIN]
    assert set(folds) == set(range(5))
    assert all(abs(folds.count(k) / len(folds) - 0.2) < 0.03 for k in range(5))


def test_records_of_one_group_are_on_one_side() -> None:
    groups = {group_of(id, {"family": f"f{number % 7}"}, "family") for number, id in enumerate(IDS)}
    assert groups == {f"f{number}" for number in range(7)}


@pytest.mark.parametrize(
    "record, column, group",
    [
        ({"family": "frog"}, "family", "frog"),
        ({"family": 7}, "family", "7"),
        ({"family": 0}, "family", "0"),
        ({"family": None}, "family", "id"),
        ({}, "family", "id"),
        ({"family": "frog"}, "", "id"),
    ],
)
def test_a_group_is_the_column_or_without_one_the_id(record: dict[str, object], column: str, group: str) -> None:
    assert group_of("id", record, column) == group


def test_groups_that_share_media_are_one_by_any_chain_of_them() -> None:
    media = [("c", "x"), ("b", "x"), ("b", "y"), ("a", "y"), ("d", "z"), ("e", "w"), ("e", "w")]
    assert twins(media) == twins(media[::-1]) == ({"b": "a", "c": "a"}, 0)
    assert twins([]) == ({}, 0)


def test_a_medium_that_many_have_is_a_label_and_binds_nothing() -> None:
    label = [(f"r{number:03d}", "cat") for number in range(21)]
    assert twins(label) == ({}, 0)
    assert len(twins(label[:20])[0]) == 19
    many = [(f"r{number:04d}", f"own {number}") for number in range(3000)]
    assert len(twins([*many, *((group, "cat") for group, _ in many[:30])])[0]) == 29  # 1 % of 3000


def test_a_group_that_has_a_medium_many_times_counts_once() -> None:
    assert twins([("a", "x")] * 50 + [("b", "x")]) == ({"b": "a"}, 0)


def test_a_chain_does_not_swallow_the_data_set() -> None:
    """Each picture with several captions and each caption with several pictures: one component of nearly all."""
    random = Random(0)
    media = []
    for number in range(2000):
        media += [
            (f"r{number:04d}", f"picture {random.randrange(700)}"),
            (f"r{number:04d}", f"{random.randrange(500)}"),
        ]
    linked, cut = twins(media)
    assert cut > 1900
    sizes = Counter(linked.values())
    assert max(sizes.values(), default=0) < 100  # 5 %
    held_out = sum(split_of(linked.get(f"r{n:04d}", f"r{n:04d}"), 0.1) == HELD_OUT for n in range(2000))
    assert 100 < held_out < 300


def test_a_record_is_of_the_group_of_its_twins() -> None:
    groups = Groups("family", {"felidae": "canidae"})
    assert groups.of("r", {"family": "felidae"}) == "canidae"
    assert groups.of("r", {"family": "ursidae"}) == "ursidae"
    assert Groups(twins={"r2": "r1"}).of("r2", {}) == "r1"
