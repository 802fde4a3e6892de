from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from reading import contents, read_all, texts, write

import mmembed.inputs.parquet
from mmembed import files
from mmembed.errors import ReadError, UsageError
from mmembed.inputs import Choice, arrow, open_source

CHOICE = Choice(media_columns={"text": ("caption",)})


@pytest.fixture
def dataset(tmp_path: Path) -> datasets.Dataset:
    """Seven pictures with captions and classes."""
    rows = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        pillow.new("RGB", (8, 8), (30 * number, 0, 0)).save(path)
        rows.append(
            {
                "id": f"r{number}",
                "image": {"bytes": path.read_bytes(), "path": None},
                "caption": f"c{number}",
                "kind": number % 2,
            }
        )
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["dark", "light"]),
        }
    )
    return datasets.Dataset.from_list(rows, features)


def check(location: Path, tmp_path: Path, ids: list[str], records: int = 3) -> None:
    found, failures = read_all(location, records, CHOICE)
    assert [record.id for record in found] == ids
    for record in found:
        number = int(record.id[1:])
        assert contents(record, "image") == [(tmp_path / f"{number}.png").read_bytes()]
        assert texts(record) == [f"c{number}"]
        assert record.metadata == {"kind": number % 2}
    assert not failures


def test_a_saved_data_set_is_read(dataset: Any, tmp_path: Path) -> None:
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    check(tmp_path / "saved", tmp_path, [f"r{number}" for number in range(7)])
    found, _ = read_all(tmp_path / "saved", 3, CHOICE)
    assert found[0].source == "data-00000-of-00003.arrow:row 0"


def test_all_splits_of_a_saved_dictionary_are_read_in_its_order(dataset: Any, tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": dataset.select(range(4)), "test": dataset.select(range(4, 7))})
    splits.save_to_disk(tmp_path / "saved")
    check(tmp_path / "saved", tmp_path, [f"r{number}" for number in range(7)], 2)


def test_a_selection_is_saved_with_its_rows_in_order(dataset: Any, tmp_path: Path) -> None:
    dataset.select([5, 0, 3]).save_to_disk(tmp_path / "saved")
    check(tmp_path / "saved", tmp_path, ["r5", "r0", "r3"])


def test_parquet_files_of_the_hub_are_read(dataset: Any, tmp_path: Path) -> None:
    for shard in range(2):
        path = tmp_path / f"hub/data/train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.shard(2, shard, contiguous=True).to_parquet(path)
    check(tmp_path / "hub", tmp_path, [f"r{number}" for number in range(7)])


@pytest.mark.parametrize(
    "state, message",
    [
        ('{"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}', "save it again after flatten_indices"),
        ("{}", "names no data files"),
        ('{"_data_files": [{"filename": "../other.arrow"}]}', "other.arrow is missing: copy the data set as a whole"),
        ("{", "can't be read"),
        ("[]", "is no JSON object"),
    ],
)
def test_a_description_that_does_not_serve_is_one_line(tmp_path: Path, state: str, message: str) -> None:
    write(tmp_path / "state.json", state), write(tmp_path / "data.arrow")
    with pytest.raises(UsageError, match=message):
        open_source(str(tmp_path))


def table(path: Path, rows: int, batch: int = 4, stream: bool = True) -> Path:
    made = pa.table({"id": [f"r{row}" for row in range(rows)], "text": ["t" * 50] * rows})
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opened(path, made.schema) as writer:
        writer.write_table(made, max_chunksize=batch)
    return path


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("records", [1, 3, 4, 5, 100])
def test_both_arrow_formats_are_read_row_by_row_in_any_units(tmp_path: Path, stream: bool, records: int) -> None:
    found, failures = read_all(table(tmp_path / "a.arrow", 10, stream=stream), records)
    assert [(record.id, record.source) for record in found] == [(f"r{n}", f"a.arrow:row {n}") for n in range(10)]
    assert not failures


def test_a_file_that_is_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    path = table(tmp_path / "a.arrow", 12)
    write(path, path.read_bytes()[: -path.stat().st_size // 3])
    found, failures = read_all(path, 100)
    assert [record.id for record in found][:4] == [f"r{n}" for n in range(4)] and len(found) < 12
    assert "as Arrow" in failures[-1].message


@pytest.mark.parametrize("stream", [True, False])
def test_small_batches_are_read_together_and_large_ones_cut(tmp_path: Path, stream: bool) -> None:
    path = table(tmp_path / "a.arrow", 30, batch=2, stream=stream)
    assert [rows for rows, _, _ in arrow.plan(str(path), 8)] == [8, 8, 8, 6]
    path = table(path, 30, batch=20, stream=stream)
    assert [rows for rows, _, _ in arrow.plan(str(path), 8)] == [8, 8, 4, 8, 2]


def test_a_unit_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.arrow", 30, batch=10)
    monkeypatch.setattr(mmembed.inputs.parquet, "UNIT_BYTES", 300)  # of some 60 bytes a row
    counts = [rows for rows, _, _ in arrow.plan(str(path), 100)]
    assert sum(counts) == 30 and max(counts) in (4, 5)
    assert [record.id for record in read_all(path, 100)[0]] == [f"r{n}" for n in range(30)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("records", [1, 3, 100])
def test_dictionaries_are_read_in_any_units(tmp_path: Path, stream: bool, records: int) -> None:
    kinds = pa.chunked_array(
        [pa.array(["a", "b"] * 2).dictionary_encode(), pa.array(["c", "a"] * 2).dictionary_encode()]
    )
    made = pa.table({"id": [f"r{n}" for n in range(8)], "text": ["t"] * 8, "kind": kinds})
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=not stream)
    with opened(tmp_path / "a.arrow", made.schema, options=options) as writer:
        writer.write_table(made)
    found, failures = read_all(tmp_path / "a.arrow", records)
    assert [record.metadata["kind"] for record in found] == ["a", "b"] * 2 + ["c", "a"] * 2
    assert not failures


@pytest.mark.parametrize("stream", [True, False])
def test_remote_files_are_read_as_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    path = table(tmp_path / "a.arrow", 10, stream=stream)
    plans = list(arrow.plan(str(path), 3))
    local = [list(arrow.rows(str(path), "a", place)) for _, _, place in plans]
    monkeypatch.setattr(files, "is_url", lambda _: True)  # so that Beam opens it
    assert list(arrow.plan(str(path), 3)) == plans
    assert [list(arrow.rows(str(path), "a", place)) for _, _, place in plans] == local


@pytest.mark.parametrize("stream", [True, False])
def test_a_unit_is_read_without_those_before_it(tmp_path: Path, stream: bool) -> None:
    path = table(tmp_path / "a.arrow", 12, stream=stream)
    *_, (_, _, place) = list(arrow.plan(str(path), 4))
    data = path.read_bytes()
    assert data.count(b"r0r1r2r3") == 1
    write(path, data.replace(b"r0r1r2r3", b"\xff" * 8))  # no UTF-8: the first batch can't be read
    assert [source for source, value in arrow.rows(str(path), "a", place) if isinstance(value, dict)] == [
        f"a:row {row}" for row in range(8, 12)
    ]


def test_a_file_cut_between_two_batches_is_told(tmp_path: Path) -> None:
    whole = table(tmp_path / "b.arrow", 4).read_bytes()  # one batch, and 8 bytes that mark the end
    found, [failure] = read_all(write(tmp_path / "a.arrow", whole[:-8]), 100)
    assert len(found) == 4 and "cut off" in failure.message
    found, [failure] = read_all(write(tmp_path / "a.arrow", whole[:-8] + bytes(8) + whole[-500:]), 100)
    assert len(found) == 4 and "the mark of its end is not where it ends" in failure.message


@pytest.mark.parametrize("stream", [True, False])
def test_a_batch_that_claims_more_rows_than_there_can_be_is_refused(tmp_path: Path, stream: bool) -> None:
    batch = pa.record_batch({"x": pa.nulls(2**31 - 1)})
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opened(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(UsageError, match="claims 2,147,483,647 rows"):
        open_source(str(tmp_path / "a.arrow")).units(100)


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"\xff" * 7 + b"\x7f" + bytes(40)])
def test_what_is_hardly_begun_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="as Arrow"):
        open_source(str(write(tmp_path / "a.arrow", content))).units(2)


@pytest.mark.parametrize("content", ["{}", '{"splits": 5}', '{"splits": null}', "[" * 100_000])
def test_a_dictionary_that_does_not_serve_is_one_line(tmp_path: Path, content: str) -> None:
    write(tmp_path / "dataset_dict.json", content)
    with pytest.raises(UsageError, match="dataset_dict.json"):
        open_source(str(tmp_path))


def test_what_is_no_arrow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="as Arrow"):
        open_source(str(write(tmp_path / "a.arrow", b"no arrow at all"))).units(2)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), records=st.integers(1, 9), stream=st.booleans())
def test_no_damage_does_more_than_cost_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, records: int, stream: bool
) -> None:
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "fuzz.arrow"
    data = bytearray(table(path, 10, stream=stream).read_bytes())
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(data))
        if rng.random() < 0.7:
            data[place] = rng.randrange(256)
        else:
            del data[place : place + rng.randrange(200)]
    write(path, bytes(data))
    plans = []
    try:
        for plan in arrow.plan(str(path), records):
            plans.append(plan)
    except ReadError:
        pass  # what came before stays
    for rows, _, where in plans:
        values = [value for _, value in arrow.rows(str(path), "fuzz.arrow", where)]
        assert len(values) == rows
        json.dumps([value for value in values if isinstance(value, dict)])
