from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from dataset_builder import STAGES, build, index, input_space, random_rows, rewrite

from mmembed import kinds
from mmembed.config import IndexConfig
from mmembed.dataset import Dataset, Stage, describe
from mmembed.index import ENTRIES, entry_of, index_path, rows_path
from mmembed.linear import LinearMap
from mmembed.shards import read_table, write_bytes, write_json
from mmembed.tables import vectors_from_arrow, vectors_to_arrow
from mmembed.types import Space
from mmembed.verify import verify

FEATURES, EMBEDDINGS = "features/image/part-00001.parquet", "embeddings/image/part-00001.parquet"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build(tmp_path, random_rows(11, ["image", "text"], 6))


def with_file(dataset: Dataset, path: str, rows: int | None = None) -> Dataset:
    """A manifest that fits a file as it is now."""
    return replace(dataset, files={**dataset.files, path: describe(dataset.folder, path, rows)})


def with_summary(dataset: Dataset, stage: str, **changes: Any) -> Dataset:
    old = dataset.stages[stage]
    return replace(dataset, stages={**dataset.stages, stage: Stage(old.fingerprint, {**old.summary, **changes})})


def with_vectors(dataset: Dataset, path: str, change: Callable[[Any], None]) -> Dataset:
    table = read_table(dataset.read(path))
    name = table.column_names[-1]
    vectors = vectors_from_arrow(table[name]).copy()
    change(vectors)
    column = vectors_to_arrow(vectors, table.schema.field(name).type)
    return rewrite(dataset, path, table.set_column(table.num_columns - 1, table.schema.field(name), column))


def set_row(row: int | slice, value: Any) -> Callable[[Any], None]:
    def change(vectors: Any) -> None:
        vectors[row] = value

    return change


@pytest.mark.parametrize("until", STAGES)
def test_a_sound_data_set_has_no_problem_after_any_stage(tmp_path: Path, until: str) -> None:
    assert verify(build(tmp_path, random_rows(11, ["image", "text"], 6), until=until)) == []


def test_half_precision_modalities_without_rows_and_the_written_manifest_are_sound(tmp_path: Path) -> None:
    rows = [replace(row, metadata={"a": 1, "b": [2]}) for row in random_rows(40, ["image"], 6)]
    build(tmp_path, rows, dtype="float16")
    assert verify(Dataset.open(tmp_path)) == []


@pytest.mark.parametrize(
    "path", [FEATURES, EMBEDDINGS, "records/part-00000.parquet", "maps/text.safetensors", index_path("text"), ENTRIES]
)
@pytest.mark.parametrize("fault", ["truncated", "emptied", "flipped", "removed", "a folder"])
def test_a_damaged_file_is_the_one_problem(dataset: Dataset, path: str, fault: str) -> None:
    file = dataset.folder / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    match fault:
        case "truncated":
            file.write_bytes(data[:-7])
        case "emptied":
            file.write_bytes(b"")
        case "flipped":
            file.write_bytes(data)
        case "a folder":
            file.mkdir()
    what = "missing" if fault == "removed" else "changed|can't be read"
    (problem,) = verify(dataset)
    assert problem.startswith(f"{path}: ")
    assert any(word in problem for word in what.split("|"))


def test_files_that_the_manifest_does_not_name_are_leftovers(dataset: Dataset) -> None:
    (dataset.folder / "embeddings/image/part-00099.parquet").write_bytes(b"old")
    (dataset.folder / "features/image/.part-00001.parquet.x.mmembed-tmp").write_bytes(b"half")
    (dataset.folder / "notes.txt").write_text("the user's own")
    problems = verify(dataset)
    assert len(problems) == 2
    assert problems[0].startswith("features/image/.part-00001.parquet.x.mmembed-tmp: a file of a stopped writer")
    assert problems[1].startswith("embeddings/image/part-00099.parquet: a file that is not in dataset.json")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (2 * np.eye(6)[0], "not of length 1: row 2"),
        (0, "all zeros: row 2"),
        (np.nan, "not finite: row 2"),
        (np.inf, "not finite: row 2"),
    ],
)
def test_a_bad_embedding_is_named_with_its_row(dataset: Dataset, value: Any, what: str) -> None:
    problems = verify(with_vectors(dataset, EMBEDDINGS, set_row(2, value)))
    assert f"{EMBEDDINGS}: {what}" in problems
    (other,) = (problem for problem in problems if not problem.startswith(EMBEDDINGS))
    assert other.startswith("index/image.faiss: ") and "other embeddings" in other


def test_many_bad_rows_are_one_problem(dataset: Dataset) -> None:
    changed = with_vectors(dataset, FEATURES, set_row(slice(None), np.inf))
    rows = changed.files[FEATURES].rows or 0
    assert verify(changed) == [f"{FEATURES}: not finite: row 0, 1, 2 and {rows - 3} more"]


def test_length_is_judged_by_precision(tmp_path: Path) -> None:
    def longer(vectors: Any) -> None:
        vectors *= 1.002

    rows = random_rows(11, ["image", "text"], 6)
    single = build(tmp_path / "single", rows, until="project")
    half = build(tmp_path / "half", rows, until="project", dtype="float16")
    assert "not of length 1" in verify(with_vectors(single, EMBEDDINGS, longer))[0]
    assert verify(with_vectors(half, EMBEDDINGS, longer)) == []


def test_rows_of_another_order_than_the_features_are_found(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(11, ["image", "text"], 6), until="project")
    table = read_table(dataset.read(EMBEDDINGS))
    changed = rewrite(dataset, EMBEDDINGS, table.take(list(reversed(range(table.num_rows)))))
    assert verify(changed) == [f"{EMBEDDINGS}: its rows are not those of {FEATURES}: run `mmembed project`"]


def test_a_record_in_two_places_is_found(dataset: Dataset) -> None:
    dataset = build(dataset.folder, random_rows(11, ["image", "text"], 6), until="extract")
    table = read_table(dataset.read(FEATURES))
    order = [*range(1, table.num_rows), 0]
    assert f"{FEATURES}: out of order: row {table.num_rows - 1}" in verify(
        rewrite(dataset, FEATURES, table.take(order))
    )


def test_a_number_of_rows_other_than_the_manifests_is_found(dataset: Dataset) -> None:
    rows = dataset.files[EMBEDDINGS].rows or 0
    problems = verify(with_file(dataset, EMBEDDINGS, rows + 1))
    assert f"{EMBEDDINGS}: {rows} rows, but {rows + 1} in dataset.json" in problems


def test_counts_of_the_stages_are_compared(dataset: Dataset) -> None:
    changed = with_summary(dataset, "extract", records=12, errors=3, segments={"image": 1, "text": 1})
    problems = verify(changed)
    assert "records: 11 rows, but the stage extract wrote 12" in problems
    assert "errors: 0 rows, but the stage extract wrote 3" in problems
    assert len(problems) == 4


def test_a_file_of_embeddings_that_is_not_even_named_is_missed(dataset: Dataset) -> None:
    (dataset.folder / EMBEDDINGS).unlink()
    files = {path: file for path, file in dataset.files.items() if path != EMBEDDINGS}
    problems = verify(replace(dataset, files=files))
    assert "embeddings/image: not the files and rows of the features: run `mmembed project`" in problems


def test_other_columns_are_described(dataset: Dataset) -> None:
    table = read_table(dataset.read(EMBEDDINGS)).rename_columns(["id", "segment", "span", "media", "fold", "embedding"])
    problem = verify(rewrite(dataset, EMBEDDINGS, table))[0]
    assert "its columns are not those" in problem and "fold: string" in problem and "split: string" in problem


def test_nulls_and_what_is_no_parquet_are_found(dataset: Dataset) -> None:
    table = read_table(dataset.read(FEATURES))
    ids = pa.array([None, *table["id"].to_pylist()[1:]], pa.string())
    assert f"{FEATURES}: nulls in id" in verify(rewrite(dataset, FEATURES, table.set_column(0, "id", ids)))
    write_bytes(dataset.folder / FEATURES, b"PAR1 and nothing else PAR1")
    assert "no Parquet that can be read" in verify(with_file(dataset, FEATURES, 1))[0]


def test_an_unknown_split_is_found(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(11, ["image", "text"], 6), until="project")
    table = read_table(dataset.read(EMBEDDINGS))
    splits = pa.array(["test", *["train"] * (table.num_rows - 1)], pa.string())
    changed = rewrite(dataset, EMBEDDINGS, table.set_column(4, "split", splits))
    assert verify(changed) == [f"{EMBEDDINGS}: of no known split: row 0"]


def test_swapped_indexes_are_found_vector_by_vector(dataset: Dataset) -> None:
    image, text = (dataset.folder / index_path(name) for name in ("image", "text"))
    rows = entry_of(dataset, "image")["rows"]
    noise = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    write_bytes(image, faiss.serialize_index(kinds.build(kinds.Kind("Flat"), noise, 0)).tobytes())
    problems = verify(with_file(dataset, index_path("image"), rows))
    assert [problem.split(": row")[0] for problem in problems] == [
        f"index/image.faiss: other vectors than embeddings/image/part-0000{part}.parquet" for part in range(3)
    ]
    write_bytes(image, text.read_bytes())
    (problem,) = verify(with_file(dataset, index_path("image"), rows))
    assert problem.startswith("index/image.faiss: ") and "values, but the embeddings" in problem


def test_rows_that_say_something_else_are_found(dataset: Dataset) -> None:
    path = dataset.folder / rows_path("image")
    said = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, said.schema) as writer:
        writer.write(said.take(list(range(said.num_rows))[::-1]).combine_chunks())
    problems = verify(with_file(dataset, rows_path("image")))
    assert problems[0] == "index/image.arrow: other rows than embeddings/image/part-00000.parquet: run `mmembed index`"


def test_a_compressed_index_of_other_vectors_is_found(tmp_path: Path) -> None:
    dataset = index(build(tmp_path, random_rows(300, ["image", "text"], 6)), IndexConfig(memory="20KB", recall=0.5))
    assert entry_of(dataset, "image")["kind"] != "Flat"
    assert verify(dataset) == []
    noise = np.random.default_rng(0).normal(size=(entry_of(dataset, "image")["rows"], 6)).astype(np.float32)
    other = kinds.build(kinds.Kind(entry_of(dataset, "image")["kind"]), noise, 0)
    write_bytes(tmp_path / index_path("image"), faiss.serialize_index(other).tobytes())
    (problem,) = verify(with_file(dataset, index_path("image"), len(noise)))
    assert problem.startswith("index/image.faiss: only ") and "find themselves" in problem


def test_an_index_of_another_space_is_found(dataset: Dataset) -> None:
    entries = {name: entry_of(dataset, name) for name in ("image", "text")}
    entries["text"]["space"] = asdict(Space("test-shared", "0", 6))
    write_json(dataset.folder / ENTRIES, entries)
    (problem,) = verify(with_file(dataset, ENTRIES))
    assert problem.startswith("index/text.faiss: ") and "test-shared@0[6]" in problem


def test_maps_of_other_spaces_are_found(dataset: Dataset) -> None:
    eye, zero, shared = np.eye(6, dtype=np.float32), np.zeros(6, np.float32), Space("test-shared", "1", 6)
    path = "maps/text.safetensors"
    write_bytes(dataset.folder / path, LinearMap(eye, zero, input_space("image", 6), shared).to_bytes())
    (problem,) = verify(with_file(dataset, path))
    assert problem.startswith(f"{path}: takes test-image@1[6], but the features are test-text@1[6]")
    write_bytes(
        dataset.folder / path, LinearMap(eye, zero, input_space("text", 6), replace(shared, version="2")).to_bytes()
    )
    (problem,) = verify(with_file(dataset, path))
    assert problem.startswith(f"{path}: gives test-shared@2[6], but dataset.json says test-shared@1[6]")
    write_bytes(dataset.folder / path, b"no map")
    (problem,) = verify(with_file(dataset, path))
    assert problem.startswith(f"{path}: this is no map")
