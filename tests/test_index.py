from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import build, random_rows

from mmembed.dataset import Dataset, describe
from mmembed.errors import DatasetError, SpaceError, UsageError
from mmembed.index import (
    ENTRIES,
    WriteIndex,
    build_index,
    build_modality,
    index_entry,
    index_path,
    open_index,
    open_modality,
)
from mmembed.shards import write_json
from mmembed.tables import vectors_from_arrow
from mmembed.types import Space

SPACE = Space("test-shared", "1", 6)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build(tmp_path, random_rows(10, ["image", "text"], 6))


def test_the_index_finds_what_a_comparison_with_every_row_finds() -> None:
    random = np.random.default_rng(1)
    vectors, query = random.normal(size=(500, 6)).astype(np.float32), random.normal(size=(3, 6)).astype(np.float32)
    scores, rows = open_index(build_index([vectors], vectors.shape[1]), SPACE.dim, 500).search(query, 7)
    expected = np.argsort(-(query @ vectors.T), axis=1)[:, :7]
    assert (rows == expected).all()
    np.testing.assert_allclose(scores, np.take_along_axis(query @ vectors.T, expected, 1), rtol=1e-5)


def test_same_vectors_same_bytes_in_any_memory_layout() -> None:
    vectors = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    assert build_index([vectors], vectors.shape[1]) == build_index([np.asfortranarray(vectors)], vectors.shape[1])


def test_ids_are_row_numbers_in_file_order(dataset: Dataset) -> None:
    index = open_modality(dataset, "image")
    rows = np.concatenate([vectors_from_arrow(table["embedding"]) for _, table in dataset.tables("embeddings/image")])
    assert len(dataset.below("embeddings/image")) == 3
    assert (index.reconstruct_n(0, index.ntotal) == rows).all()


def test_write_index_writes_what_build_modality_gives_after_a_trip_to_a_worker(dataset: Dataset) -> None:
    path = dataset.root / index_path("text")
    path.unlink()
    pickle.loads(pickle.dumps(WriteIndex(dataset, "none")))("text")
    assert path.read_bytes() == build_modality(dataset, "text", "none")[0]


def test_a_modality_without_rows_has_an_empty_index(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(3, ["image"], 6))
    assert index_entry(dataset, "text", "none")["rows"] == 0
    assert open_modality(dataset, "text").ntotal == 0


@pytest.mark.parametrize(
    "data", [b"", b"IxFI", b"not an index at all", build_index([np.eye(6, dtype=np.float32)], 6)[:-9]]
)
def test_bytes_that_are_no_index_are_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="mmembed index"):
        open_index(data, SPACE.dim, 6)


def test_an_index_of_another_kind_is_refused() -> None:
    import faiss

    other = faiss.serialize_index(faiss.IndexFlatL2(6)).tobytes()
    with pytest.raises(DatasetError, match="IndexFlatL2, not an IndexFlatIP"):
        open_index(other, SPACE.dim, 0)


@pytest.mark.parametrize(("dim", "rows"), [(6, 5), (5, 6)])
def test_an_index_of_another_size_is_refused(dim: int, rows: int) -> None:
    with pytest.raises(DatasetError, match="6 vectors of dimension 6"):
        open_index(build_index([np.eye(6, dtype=np.float32)], 6), dim, rows)


def test_an_index_of_other_embeddings_is_refused(dataset: Dataset) -> None:
    path = next(iter(dataset.below("embeddings/image")))
    changed = replace(dataset, files={**dataset.files, path: replace(dataset.files[path], sha256="0" * 64)})
    assert open_modality(changed, "text").ntotal > 0
    with pytest.raises(DatasetError, match="other embeddings than those of now: run `mmembed index`"):
        open_modality(changed, "image")


def test_an_index_of_another_space_is_refused(dataset: Dataset) -> None:
    entries = {name: index_entry(dataset, name, "none") for name in ("image", "text")}
    entries["image"]["space"] = asdict(Space("test-shared", "2", 6))
    write_json(dataset.root / ENTRIES, entries)
    changed = replace(dataset, files={**dataset.files, ENTRIES: describe(dataset.root, ENTRIES)})
    with pytest.raises(SpaceError, match=r"test-shared@2\[6\]"):
        open_modality(changed, "image")


def test_a_damaged_index_never_reaches_faiss(dataset: Dataset) -> None:
    path = dataset.root / index_path("image")
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="checksum"):
        open_modality(dataset, "image")


def test_without_the_stage_the_message_says_how_to_run_it(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(3, ["image", "text"], 6), until="project")
    with pytest.raises(UsageError, match="mmembed index"):
        open_modality(dataset, "image")


def test_a_modality_without_index_names_those_that_have_one(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"no index of audio .* but of image, text"):
        open_modality(dataset, "audio")
