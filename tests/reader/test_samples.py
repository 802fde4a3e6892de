from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.reader.samples import Samples, aligned, digest

Unit = dict[str, list[tuple[str, int, str]]]
"""By modality (id, segment, split) of each row."""


@st.composite
def units(draw: st.DrawFn) -> list[Unit]:
    """Some units of records that have up to three segments of two modalities."""
    found: list[Unit] = []
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        unit: Unit = {"image": [], "text": []}
        for _ in range(draw(st.integers(0, 5))):
            split = draw(st.sampled_from(["train", "heldout"]))
            for rows in unit.values():
                rows += [(f"r{number}", segment, split) for segment in range(draw(st.integers(0, 3)))]
            number += 1
        found.append(unit)
    return found


def tables(unit: Unit) -> dict[str, pa.Table]:
    schema = pa.schema([("id", pa.string()), ("segment", pa.int32()), ("split", pa.string())])
    return {
        name: pa.table([list(column) for column in zip(*rows)] if rows else [[], [], []], schema=schema)
        for name, rows in unit.items()
    }


def samples_of(several: list[Unit], split: str, missing: str, how: dict[str, str]) -> Samples:
    return Samples.of(how, [aligned(tables(unit), split, missing) for unit in several])


def expected(several: list[Unit], split: str, missing: str) -> dict[str, dict[str, list[int]]]:
    """The slow way: the rows of each record by modality, numbered over all units that have a sample, among those of the
    split."""
    found: dict[str, dict[str, list[int]]] = {}
    counts = {"image": 0, "text": 0}
    for unit in several:
        of_unit: dict[str, dict[str, list[int]]] = {}
        numbers = dict(counts)
        for name, rows in unit.items():
            for id, _, of in rows:
                if of == split:
                    of_unit.setdefault(id, {"image": [], "text": []})[name].append(numbers[name])
                    numbers[name] += 1
        used = {id: rows for id, rows in of_unit.items() if missing == "mask" or all(rows.values())}
        if used:
            counts = numbers
            found |= used
    return found


@settings(deadline=None)
@given(units(), st.sampled_from(["train", "heldout"]), st.sampled_from(["skip", "mask"]))
def test_all_combinations_of_a_records_segments(several: list[Unit], split: str, missing: str) -> None:
    samples = samples_of(several, split, missing, {"image": "all", "text": "all"})
    wanted = [
        pair
        for rows in expected(several, split, missing).values()
        for pair in product(rows["image"] or [-1], rows["text"] or [-1])
    ]
    found = samples.rows_of(np.arange(len(samples)), 0, 0)
    assert sorted(zip(found["image"].tolist(), found["text"].tolist())) == sorted(wanted)
    if missing == "skip":
        assert list(zip(found["image"].tolist(), found["text"].tolist())) == wanted


@settings(deadline=None)
@given(units(), st.sampled_from(["skip", "mask"]), st.integers(0, 5))
def test_one_at_random_beside_all_at_once(several: list[Unit], missing: str, epoch: int) -> None:
    samples = samples_of(several, "train", missing, {"image": "random", "text": "stack"})
    wanted = list(expected(several, "train", missing).values())
    assert len(samples) == len(wanted)
    found = samples.rows_of(np.arange(len(samples)), 7, epoch)
    assert sorted([row for row in rows if row >= 0] for rows in found["text"].tolist()) == sorted(
        rows["text"] for rows in wanted
    )
    for image, text in zip(found["image"].tolist(), found["text"].tolist()):
        [record] = [rows for rows in wanted if image in rows["image"] or (image < 0 and text[0] in rows["text"])]
        assert image in (record["image"] or [-1])


@settings(deadline=None)
@given(units(), st.data())
def test_pieces_are_the_samples_of_units(several: list[Unit], data: st.DataObject) -> None:
    samples = samples_of(several, "train", "skip", {"image": "all", "text": "all"})
    start = data.draw(st.integers(0, len(samples)))
    stop = data.draw(st.integers(start, len(samples)))
    found = samples.pieces(start, stop)
    assert [number for _, first, last in found for number in range(first, last)] == list(range(start, stop))
    rows = samples.rows_of(np.arange(len(samples)), 0, 0)["image"]
    for unit, first, last in found:
        low, high = samples.rows["image"][unit : unit + 2]
        assert all(low <= row < high for row in rows[first:last])


def test_which_segment_is_taken_changes_with_the_epoch() -> None:
    unit = {
        "image": [(f"r{n}", 0, "train") for n in range(50)],
        "text": [(f"r{n // 4}", n % 4, "train") for n in range(200)],
    }
    samples = samples_of([unit], "train", "skip", {"image": "random", "text": "random"})
    epochs = [samples.rows_of(np.arange(50), 0, epoch)["text"] % 4 for epoch in range(20)]
    assert all(set(taken) == {0, 1, 2, 3} for taken in np.stack(epochs).T.tolist()[:5])


@pytest.mark.parametrize("change", [("id", "other"), ("segment", 9), ("split", "heldout")])
def test_a_digest_tells_what_rows_are(change: tuple[str, Any]) -> None:
    table = tables({"image": [("a", 0, "train"), ("b", 0, "train")]})["image"]
    name, value = change
    changed = table.set_column(
        table.schema.get_field_index(name),
        name,
        pa.array([table[name][0].as_py(), value], table.schema.field(name).type),
    )
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert digest(table) == digest(parts) != digest(changed)
