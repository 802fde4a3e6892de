from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import features
from mmembed.errors import DatasetError
from mmembed.features import pool, read_receipt, read_unit, unit_files, write_unit
from mmembed.shards import read_table
from mmembed.types import Failure, Media, Record, Segment, Unit

UNIT = Unit(3, 4, "lines", (0, 100, 1))
DIMS = {"image": 2, "text": 3}
RECORDS = [
    Record("a", {"image": Media("a.png"), "text": Media(content="A")}, {"legs": 4}),
    Record("b", {"image": Media("b.png")}, {"legs": 0.5}),
    Record("c", {"text": Media(content="C")}, {"name": None}),
]
FAILURE = Failure("b", "image", None, "segment", "DecodeError", "broken", "in:2")


def segment(id: str, number: int, dim: int) -> Segment:
    return Segment(id, number, (0.0, 1.0), "media", "hash", np.full(dim, number, np.float32))


def write(root: Path, failures: tuple[Failure, ...] = (FAILURE,), configuration: str = "c") -> None:
    segments = {"image": [segment("a", 0, 2)], "text": [segment("a", 0, 3), segment("c", 0, 3), segment("c", 1, 3)]}
    write_unit(root, UNIT, RECORDS, segments, failures, DIMS, configuration)


def test_a_unit_leaves_a_file_a_modality_its_errors_and_its_records(tmp_path: Path) -> None:
    write(tmp_path)
    receipt = read_receipt(tmp_path, UNIT, "c")
    assert receipt is not None
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert unit_files(3, receipt) == {
        "features/image/part-00003.parquet": 1,
        "features/text/part-00003.parquet": 3,
        "errors/part-00003.parquet": 1,
        "records/part-00003.parquet": 3,
    }
    assert files == set(unit_files(3, receipt))
    assert all(read_table((tmp_path / name).read_bytes()).num_rows == n for name, n in unit_files(3, receipt).items())


def test_a_receipt_counts_what_came_in_and_went_out(tmp_path: Path) -> None:
    write(tmp_path)
    receipt = read_receipt(tmp_path, UNIT, "c")
    assert receipt is not None
    del receipt["fingerprint"]
    assert receipt == {
        "records": 3,
        "lost": 1,
        "segments": {"image": 1, "text": 3},
        "media": {"image": 2, "text": 2},
        "used": {"image": 1, "text": 2},
        "errors": 1,
        "kinds": {"legs": "float", "name": None},
    }


def test_a_unit_without_failures_has_no_file_of_errors(tmp_path: Path) -> None:
    write(tmp_path, failures=())
    receipt = read_receipt(tmp_path, UNIT, "c")
    assert receipt is not None
    assert not (tmp_path / "errors").exists()
    assert "errors/part-00003.parquet" not in unit_files(3, receipt)


@pytest.mark.parametrize(
    "unit, configuration",
    [(UNIT, "other"), (replace(UNIT, fingerprint="other lines"), "c"), (replace(UNIT, number=4), "c")],
)
def test_a_unit_of_other_records_or_another_configuration_is_not_done(
    tmp_path: Path, unit: Unit, configuration: str
) -> None:
    write(tmp_path)
    assert read_receipt(tmp_path, unit, configuration) is None


def test_the_receipt_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(path: Path, *arguments: Any) -> None:
        order.append(path.relative_to(tmp_path).parts[0])

    monkeypatch.setattr(features, "write_table", note)
    write(tmp_path)
    assert order == ["features", "features", "errors", "records"]


def test_a_retry_writes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.parquet"):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 1000))
def test_pooled_rows_are_the_means_of_their_segments(rows: list[int], seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(rows), 3)).astype(np.float32)
    pooled, present = pool(vectors, np.array(rows, np.intp), 6)
    for row in range(6):
        mine = [vector.astype(float) for vector, owner in zip(vectors, rows) if owner == row]
        assert present[row] == bool(mine)
        np.testing.assert_allclose(pooled[row], np.mean(mine, axis=0) if mine else np.zeros(3), rtol=1e-12, atol=1e-15)


def test_a_unit_is_read_back_pooled_by_record(tmp_path: Path) -> None:
    rows = random_rows(6, ["image", "text"], 3)
    rows[1] = replace(rows[1], vectors={"text": rows[1].vectors["text"]})
    dataset = build(tmp_path, rows, dim=3, unit=6, until="extract")
    unit = read_unit(dataset, 0, ["image", "text"])
    assert unit.ids == [row.id for row in rows]
    assert unit.present["image"].tolist() == [True, False, True, True, True, True]
    assert not unit.pooled["image"][1].any()
    stored = read_table(dataset.read("features/text/part-00000.parquet")).to_pylist()
    mine = [row["feature"] for row in stored if row["id"] == "r003"]
    np.testing.assert_allclose(unit.pooled["text"][3], np.mean(mine, axis=0), rtol=1e-12)


def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(6, ["image"], 3), ["image"], dim=3, until="extract")
    path = tmp_path / "features/image/part-00001.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    assert read_unit(dataset, 0, ["image"]).ids
    with pytest.raises(DatasetError, match="its checksum differs"):
        read_unit(dataset, 1, ["image"])
