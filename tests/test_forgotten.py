"""What is remembered of records that are forgotten, and how groups go on without their names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from dataset_builder import build, random_rows

from mmembed.dataset import Dataset
from mmembed.forgotten import NOTHING, Forgotten
from mmembed.splits import Groups, split_of
from mmembed.verify import verify


def test_an_id_is_known_by_a_hash_that_no_other_data_set_has() -> None:
    one, two = (NOTHING.with_pending(["Ünna"], ["fit"]) for _ in range(2))
    assert "Ünna" in one and "Unna" not in one and "Ünna" not in NOTHING and not NOTHING
    assert not one.ids & two.ids and "nna" not in json.dumps(one.to_json())
    assert Forgotten.from_json(one.to_json()) == one and Forgotten.from_json({}) == NOTHING
    more = replace(one, pending=frozenset()).with_pending(["b"], [])
    assert "Ünna" in more and more.is_pending("b") and not more.is_pending("Ünna")


def test_groups_stay_on_their_side_when_their_name_is_forgotten() -> None:
    names = [f"r{n}" for n in range(50)]
    forgotten = NOTHING.with_pending(names, [])
    groups = Groups("", {f"{name}-twin": name for name in names} | {"r1": "r0"})
    without = groups.without(forgotten, 0.3)
    assert without.twins.keys() == {f"{name}-twin" for name in names} and not set(without.twins.values()) & set(names)
    for name, first in without.twins.items():
        assert split_of(first, 0.3) == split_of(groups.twins[name], 0.3)


def test_verify_names_rows_that_are_to_be_forgotten(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(6, ["image", "text"], 6)).forgetting(["r001"])
    assert list(dataset.stages) == ["extract"] and dataset == Dataset.open(tmp_path)
    problems = "\n".join(verify(dataset))
    assert "are not removed yet" in problems and "records/part-00000.parquet: to be forgotten: row 1" in problems
