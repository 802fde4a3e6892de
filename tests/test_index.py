from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dataset_builder import Row, build, index, random_rows

from mmembed.config import IndexConfig
from mmembed.dataset import Dataset, describe
from mmembed.errors import DatasetError, SpaceError, UsageError
from mmembed.index import ENTRIES, entry_of, index_path, open_modality, rows_path, vectors_path
from mmembed.indexing import _in_batches
from mmembed.shards import write_json
from mmembed.tables import vectors_from_arrow
from mmembed.types import Space

COMPRESSED = IndexConfig(recall=0.5, memory="20KB")
"""Too little for an exact index of some hundred rows."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build(tmp_path, random_rows(10, ["image", "text"], 6))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = index(build(tmp_path_factory.mktemp("data"), random_rows(300, ["image", "text"], 6)), COMPRESSED)
    assert entry_of(dataset, "image")["kind"] != "Flat"
    return dataset


def embeddings(dataset: Dataset, modality: str) -> np.ndarray:
    tables = [table for _, table in dataset.tables(f"embeddings/{modality}")]
    assert len(tables) > 1
    return np.concatenate([vectors_from_arrow(table["embedding"]) for table in tables])


def with_file(dataset: Dataset, path: str) -> Dataset:
    return replace(dataset, files={**dataset.files, path: describe(dataset.folder, path)})


@pytest.mark.parametrize("kind", ["dataset", "compressed"])
def test_ids_are_row_numbers_in_file_order(kind: str, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    opened, rows = open_modality(dataset, "image"), embeddings(dataset, "image")
    assert (opened.vectors_of(np.arange(len(opened))) == rows).all()
    columns = ["id", "segment", "span", "media"]
    said = [row for _, table in dataset.tables("embeddings/image") for row in table.select(columns).to_pylist()]
    assert opened.answers_at(range(len(opened))) == [[*row.values(), {}] for row in said]
    assert opened.ids([3, 0]) == [said[3]["id"], said[0]["id"]]
    assert opened.rows_of("r003").tolist() == [row for row, values in enumerate(said) if values["id"] == "r003"]
    assert opened.rows_of("nobody").tolist() == opened.rows_of("\udcff").tolist() == []


def test_answers_say_what_records_have(tmp_path: Path) -> None:
    several: list[dict[str, Any]] = [
        {"year": 1999, "mixed": "a", "licence": 'a "quoted" word, \\ and \u2028 Ω'},
        {"year": None, "mixed": {"left": [1, None]}, "share": 0.1 + 0.2, "old": True},
        {"share": float("inf"), "year": -(2**63)},
        {},
    ]
    rows = [replace(row, metadata=values) for row, values in zip(random_rows(4, ["image"], 6), several)]
    opened = open_modality(build(tmp_path, rows, ["image"]), "image")
    found = {id: metadata for id, *_, metadata in opened.answers_at(range(len(opened)))}
    told = [{key: value for key, value in values.items() if value is not None} for values in several]
    assert found == {row.id: values for row, values in zip(rows, told)}
    assert [type(found["r001"][key]) for key in ("share", "old")] == [float, bool]


def test_rows_are_found_in_batches_of_any_size(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmembed.indexing.BATCH_ROWS", 4)
    opened = open_modality(index(dataset, IndexConfig()), "image")
    assert len({len(chunk) for chunk in opened.rows["id"].chunks}) > 1  # a batch a file, of records of 1 to 3 rows
    said = [row for _, table in dataset.tables("embeddings/image") for row in table["id"].to_pylist()]
    assert opened.ids(range(len(opened))) == said
    assert [id for id, *_ in opened.answers_at(range(len(opened)))] == said
    assert opened.rows_of("r007").tolist() == [row for row, id in enumerate(said) if id == "r007"]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("sizes", "several"), [([1, 1, 1, 1, 1], False), ([1, 1, 2, 1], True), ([3], True), ([1], False)]
)
def test_an_index_knows_whether_records_have_several_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], several: bool, size: int
) -> None:
    monkeypatch.setattr("mmembed.indexing.BATCH_ROWS", size)
    rows = [Row(f"r{place}", {"image": np.eye(6, dtype=np.float32)[:count]}) for place, count in enumerate(sizes)]
    assert open_modality(build(tmp_path, rows, ["image"]), "image").has_several_a_record == several


def test_a_modality_without_rows_has_an_empty_index(tmp_path: Path) -> None:
    opened = open_modality(build(tmp_path, random_rows(3, ["image"], 6)), "text")
    assert len(opened) == 0
    scores, rows = opened.search(np.ones((1, 6), np.float32), 3)
    assert np.isneginf(scores).all() and (rows == -1).all()


def test_an_index_of_other_embeddings_is_refused(dataset: Dataset) -> None:
    path = next(iter(dataset.below("embeddings/image")))
    changed = replace(dataset, files={**dataset.files, path: replace(dataset.files[path], sha256="0" * 64)})
    assert len(open_modality(changed, "text")) > 0
    with pytest.raises(DatasetError, match="other embeddings than those of now: run `mmembed index`"):
        open_modality(changed, "image")


def test_an_index_of_another_version_is_refused(dataset: Dataset) -> None:
    entries = {"image": entry_of(dataset, "image") | {"version": "3"}}
    write_json(dataset.folder / ENTRIES, entries)
    with pytest.raises(DatasetError, match="built by another version of mmembed: run `mmembed index`"):
        open_modality(with_file(dataset, ENTRIES), "image")


def test_texts_of_more_than_an_array_holds_make_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        replace(row, metadata={"name": f"number {place}"}) for place, row in enumerate(random_rows(9, ["image"], 6))
    ]
    monkeypatch.setattr("mmembed.indexing.BATCH_BYTES", 1)
    opened = open_modality(build(tmp_path, rows, ["image"]), "image")
    assert len(opened.rows["id"].chunks) == 3
    split = pa.concat_tables([opened.rows.slice(0, 2), opened.rows.slice(2)])  # as a reader of Parquet splits a file
    assert [table.num_rows for table in _in_batches([split, opened.rows])] == [len(opened)] * 2
    assert [id for id, *_ in opened.answers_at(range(len(opened)))] == opened.ids(range(len(opened)))
    assert all(metadata["name"] == f"number {int(id[1:])}" for id, *_, metadata in opened.answers_at([0, 5, 9]))


def test_an_index_of_another_space_is_refused(dataset: Dataset) -> None:
    entries = {name: entry_of(dataset, name) for name in ("image", "text")}
    entries["image"]["space"] = asdict(Space("test-shared", "2", 6))
    write_json(dataset.folder / ENTRIES, entries)
    with pytest.raises(SpaceError, match=r"test-shared@2\[6\]"):
        open_modality(with_file(dataset, ENTRIES), "image")


@pytest.mark.parametrize("path", [index_path("image"), rows_path("image"), vectors_path("image")])
def test_a_damaged_file_never_reaches_what_reads_it(compressed: Dataset, path: str) -> None:
    whole = (compressed.folder / path).read_bytes()
    data = bytearray(whole)
    data[-20] ^= 0xFF
    (compressed.folder / path).write_bytes(data)
    try:
        with pytest.raises(DatasetError, match=f"{path} is not the file that dataset.json names"):
            open_modality(compressed, "image")
        unknown = replace(compressed, files={name: file for name, file in compressed.files.items() if name != path})
        with pytest.raises(DatasetError, match=f"{path} is not the file that dataset.json names"):
            open_modality(unknown, "image")
    finally:
        (compressed.folder / path).write_bytes(whole)


@pytest.mark.parametrize("path", [index_path("image"), vectors_path("image")])
@pytest.mark.parametrize("content", [b"not an index at all", b"IxFI", b""])
def test_what_is_no_index_is_refused_though_the_manifest_names_it(
    compressed: Dataset, path: str, content: bytes
) -> None:
    whole = (compressed.folder / path).read_bytes()
    (compressed.folder / path).write_bytes(content)
    try:
        with pytest.raises(DatasetError, match="mmembed index"):
            open_modality(with_file(compressed, path), "image")
    finally:
        (compressed.folder / path).write_bytes(whole)


@pytest.mark.parametrize("of", [index_path, rows_path])
def test_files_of_another_number_of_rows_are_refused(dataset: Dataset, tmp_path: Path, of: object) -> None:
    assert callable(of)
    fewer = build(tmp_path / "fewer", random_rows(3, ["image", "text"], 6))
    path = of("image")
    (dataset.folder / path).write_bytes((fewer.folder / path).read_bytes())
    with pytest.raises(DatasetError, match=r"values, but the embeddings"):
        open_modality(with_file(dataset, path), "image")


def test_without_the_stage_the_message_says_how_to_run_it(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(3, ["image", "text"], 6), until="project")
    with pytest.raises(UsageError, match="mmembed index"):
        open_modality(dataset, "image")


def test_a_modality_without_index_names_those_that_have_one(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"no index of audio .* but of image, text"):
        open_modality(dataset, "audio")


def test_an_index_is_mapped_and_not_read(tmp_path: Path) -> None:
    rows = random_rows(2000, ["image"], 1024)
    dataset = index(build(tmp_path, rows, ["image"], 1024, unit=2000), IndexConfig(latency="1s"))
    size = (tmp_path / index_path("image")).stat().st_size
    assert size > 12e6
    code = (
        "import sys, faiss, pathlib, pyarrow, numpy\n"
        "from mmembed.dataset import Dataset\n"
        "from mmembed.index import open_modality\n"
        "def anonymous():\n"
        "    return int([line for line in open('/proc/self/status') if line.startswith('RssAnon')][0].split()[1])\n"
        "dataset = Dataset.open(pathlib.Path(sys.argv[1]))\n"
        "before = anonymous()\n"
        "opened = open_modality(dataset, 'image')\n"
        "print(1024 * (anonymous() - before), len(opened))"
    )
    words = [sys.executable, "-c", code, str(dataset.folder)]
    used, count = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert count > 2000
    assert used < size / 3
