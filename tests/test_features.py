from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, random_rows

from mmembed import features, signatures
from mmembed.dataset import describe
from mmembed.errors import DatasetError, MmembedError
from mmembed.features import (
    Contents,
    Marks,
    leave_out,
    read_receipt,
    read_unit,
    unchanged,
    unit_files,
    write_unit,
)
from mmembed.files import Stamp, stamp
from mmembed.inputs import Source
from mmembed.scratch import Scratch
from mmembed.shards import read_table, shard_path
from mmembed.types import Dropped, Failure, Media, Record, Segment, Unit

UNIT = Unit(3, 4, "lines", "jsonl", "in.jsonl", (0, 100, 1))
SOURCE = Source("", ())
MARKS = Marks("c", {"image": "i", "text": "t"}, {"image": 2, "text": 3})
RECORDS = [
    Record("a", {"image": (Media("a.png"),), "text": (Media(content="A", column="text"),)}, {"legs": 4}, "in:1"),
    Record("b", {"image": (Media("b.png"),)}, {"legs": 0.5}, "in:2"),
    Record(
        "c", {"text": (Media(content="C", column="text"), Media(content="D", column="text"))}, {"name": None}, "in:3"
    ),
]
FAILURE = Failure("b", "image", None, "segment", "DecodeError", "broken", "in:2")
LOST = Failure("", "", None, "read", "ReadError", "no JSON", "in:4")


def segment(id: str, number: int, dim: int, medium: int = 0) -> Segment:
    content_hash = f"{id}{number}".encode().hex().ljust(32, "0")
    return Segment(
        id, number, (0.0, 1.0), "media", content_hash, np.full(dim, number, np.float32), medium, encoded=True
    )


def contents(failures: tuple[Failure, ...] = (FAILURE, LOST)) -> Contents:
    return Contents(
        RECORDS,
        {"image": [segment("a", 0, 2)], "text": [segment("a", 0, 3), segment("c", 0, 3), segment("c", 1, 3)]},
        list(failures),
        [Dropped("c", "text", "filter", "too short", "", "in:3", medium=1)],
        {"/data/a.png": Stamp(10, 20), "/data/b.png": Stamp(-1, 0)},
    )


def write(root: Path, failures: tuple[Failure, ...] = (FAILURE, LOST), marks: Marks = MARKS) -> None:
    write_unit(Scratch(root, "/data"), UNIT, contents(failures), marks)


def receipt_of(root: Path, unit: Unit = UNIT, marks: Marks = MARKS) -> dict[str, Any]:
    receipt = read_receipt(root, unit, marks)
    assert receipt is not None
    return receipt


def test_a_unit_leaves_a_file_a_modality_its_errors_what_was_dropped_and_its_records(tmp_path: Path) -> None:
    write(tmp_path)
    files = unit_files(3, receipt_of(tmp_path))
    assert files == {
        "features/image/part-00003.parquet": 1,
        "features/text/part-00003.parquet": 3,
        "errors/part-00003.parquet": 2,
        "dropped/part-00003.parquet": 1,
        "records/part-00003.parquet": 3,
    }
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert found == {*files, "stamps/part-00003.parquet"}
    assert all(read_table((tmp_path / name).read_bytes()).num_rows == rows for name, rows in files.items())


def as_it_is(root: Path) -> dict[str, list[Any]]:
    """The bytes and checksums of files of features."""
    found = [describe(root, shard_path(f"features/{name}", 3)) for name in ("image", "text")]
    return {
        shard_path(f"features/{name}", 3): [file.bytes, file.sha256] for name, file in zip(("image", "text"), found)
    }


def test_a_receipt_counts_what_came_in_and_went_out(tmp_path: Path) -> None:
    write(tmp_path)
    receipt = receipt_of(tmp_path)
    assert receipt.pop("fingerprint") == MARKS.of(UNIT)
    assert receipt.pop("written") == as_it_is(tmp_path)
    assert receipt == {
        "without": {},
        "records": 3,
        "lost": 1,
        "kept_out": 0,
        "redacted": {},
        "skipped": 0,
        "segments": {"image": 1, "text": 3},
        "media": {"image": 2, "text": 3},
        "used": {"image": 1, "text": 2},
        "filtered": {"image": 0, "text": 1},
        "duplicates": {"image": 0, "text": 0},
        "failed": {"image": 1, "text": 0},
        "unused": {"b": {"failed": {"image": 1}}, "c": {"filtered": {"text": 1}}},
        "errors": 2,
        "dropped": 1,
        "failed_records": 2,
        "kinds": {"legs": "float", "name": None},
        "signatures": signatures.VERSION,
        "columns": ["", "text"],
    }


@pytest.mark.parametrize("failures", [(), (LOST,), (replace(FAILURE, modality="text"),)])
def test_a_medium_that_vanishes_is_a_fault_of_ours(tmp_path: Path, failures: tuple[Failure, ...]) -> None:
    with pytest.raises(MmembedError, match="media went in, .* this is a fault of mmembed"):
        write(tmp_path, failures)
    assert not (tmp_path / "records").exists()


def test_records_say_which_of_their_media_gave_segments(tmp_path: Path) -> None:
    write(tmp_path)
    rows = read_table((tmp_path / shard_path("records", 3)).read_bytes()).to_pylist()
    assert [[medium["modality"] for medium in row["media"]] for row in rows] == [["image", "text"], [], ["text"]]


def test_stamps_name_files_relative_to_the_input(tmp_path: Path) -> None:
    write(tmp_path)
    rows = read_table((tmp_path / shard_path("stamps", 3)).read_bytes()).to_pylist()
    assert [(row["name"], row["bytes"], row["modified"]) for row in rows] == [("a.png", 10, 20), ("b.png", -1, 0)]


def test_a_unit_is_unchanged_as_long_as_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    stamps = {str(tmp_path / name): stamp(str(tmp_path / name)) for name in ("a.png", "b.png")}
    scratch = Scratch(tmp_path / "out", str(tmp_path))
    write_unit(scratch, UNIT, replace(contents(), stamps=stamps), MARKS)
    assert unchanged(tmp_path / "out", UNIT, scratch, SOURCE)
    (tmp_path / "b.png").write_bytes(b"b")  # which was missing
    assert not unchanged(tmp_path / "out", UNIT, scratch, SOURCE)
    (tmp_path / "b.png").unlink()
    os.utime(tmp_path / "a.png", ns=(0, 0))
    assert not unchanged(tmp_path / "out", UNIT, scratch, SOURCE)
    assert not unchanged(tmp_path / "out", replace(UNIT, number=7), scratch, SOURCE)


def test_records_that_are_left_out_leave_the_features_and_no_other_record_does(tmp_path: Path) -> None:
    write(tmp_path)
    without = {"a": ["duplicate", "the same image", "z"], "c": ["repeated", "its id was used before", "in:0"]}
    leave_out(tmp_path, UNIT, without, MARKS)
    receipt = receipt_of(tmp_path)
    assert receipt["without"] == without and receipt["written"] == as_it_is(tmp_path)
    assert {name: receipt[name] for name in ("media", "used", "filtered", "duplicates", "failed", "segments")} == {
        "media": {"image": 2, "text": 2},
        "used": {"image": 0, "text": 0},
        "filtered": {"image": 0, "text": 1},
        "duplicates": {"image": 1, "text": 1},
        "failed": {"image": 1, "text": 0},
        "segments": {"image": 0, "text": 0},
    }
    errors = read_table((tmp_path / shard_path("errors", 3)).read_bytes()).to_pylist()
    assert (
        errors[-1]["error"] == "RepeatedIdError" and "in:0" in errors[-1]["message"] and errors[-1]["source"] == "in:3"
    )
    dropped = read_table((tmp_path / shard_path("dropped", 3)).read_bytes()).to_pylist()
    assert [(row["id"], row["kind"], row["twin"]) for row in dropped] == [("c", "filter", ""), ("a", "duplicate", "z")]
    assert (receipt["errors"], receipt["dropped"]) == (3, 2)


def test_leaving_out_again_says_it_once(tmp_path: Path) -> None:
    write(tmp_path)
    first = {"a": ["duplicate", "the same image", "z"]}
    second = {"a": ["duplicate", "the same image", "y"], "c": ["repeated", "", "in:0"]}
    leave_out(tmp_path, UNIT, first, MARKS)
    leave_out(tmp_path, UNIT, second, MARKS)
    twice = {path.name: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    write(tmp_path)
    leave_out(tmp_path, UNIT, second, MARKS)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == twice


def test_a_unit_without_failures_has_no_file_of_errors(tmp_path: Path) -> None:
    whole = Contents(RECORDS[:1], {"image": [segment("a", 0, 2)], "text": [segment("a", 0, 3)]})
    write_unit(Scratch(tmp_path), UNIT, whole, MARKS)
    assert not (tmp_path / "errors").exists() and not (tmp_path / "dropped").exists()
    assert "errors/part-00003.parquet" not in unit_files(3, receipt_of(tmp_path))


@pytest.mark.parametrize(
    "unit, marks",
    [
        (UNIT, replace(MARKS, unit="other")),
        (replace(UNIT, fingerprint="other lines"), MARKS),
        (replace(UNIT, number=4), MARKS),
    ],
)
def test_a_unit_of_other_records_or_another_configuration_is_not_done(tmp_path: Path, unit: Unit, marks: Marks) -> None:
    write(tmp_path)
    assert read_receipt(tmp_path, unit, marks) is None


@pytest.mark.parametrize("folder", ["features/image", "features/text", "errors", "dropped", "stamps"])
def test_a_unit_of_which_a_file_is_missing_is_not_done(tmp_path: Path, folder: str) -> None:
    write(tmp_path)
    (tmp_path / shard_path(folder, 3)).unlink()
    assert read_receipt(tmp_path, UNIT, MARKS) is None


def test_the_receipt_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(path: Path, *arguments: Any) -> None:
        order.append(path.relative_to(tmp_path).parts[0])

    monkeypatch.setattr(features, "write_table", note)
    write(tmp_path)
    assert order == ["features", "features", "errors", "dropped", "stamps", "records"]


def test_a_retry_writes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.parquet"):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


def test_a_unit_is_read_back_pooled_by_record(tmp_path: Path) -> None:
    rows = random_rows(6, ["image", "text"], 3)
    rows[1] = replace(rows[1], vectors={"text": rows[1].vectors["text"]})
    dataset = build(tmp_path, rows, dim=3, unit=6, until="extract")
    unit = read_unit(dataset, 0, ["image", "text"])
    assert unit.ids == [row.id for row in rows]
    assert unit.views["image"].present.tolist() == [True, False, True, True, True, True]
    assert not unit.views["image"].means[1].any()
    stored = read_table(dataset.read("features/text/part-00000.parquet")).to_pylist()
    mine = [row["feature"] for row in stored if row["id"] == "r003"]
    np.testing.assert_allclose(unit.views["text"].means[3], np.mean(mine, axis=0), rtol=1e-12)
    assert unit.media["image"][1] == 0 and len(set(unit.media["image"].tolist())) == 6


def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(6, ["image"], 3), ["image"], dim=3, until="extract")
    path = tmp_path / "features/image/part-00001.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    assert read_unit(dataset, 0, ["image"]).ids
    with pytest.raises(DatasetError, match="its checksum differs"):
        read_unit(dataset, 1, ["image"])
