"""The shared space as a plane."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, random_rows
from sklearn.decomposition import PCA

from mmembed.pages import plane
from mmembed.tables import vectors_from_arrow


def test_principal_components_are_those_of_scikit_learn() -> None:
    vectors = (np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8)).astype(np.float32)
    found, peer = plane.pca(vectors), PCA(2).fit(vectors.astype(np.float64))
    theirs = peer.transform(vectors.astype(np.float64))
    np.testing.assert_allclose(np.abs(found.places), np.abs(theirs), atol=1e-6)
    np.testing.assert_allclose(found.shares, peer.explained_variance_ratio_, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 5), (2, 1), (3, 2), (4, 300)])
def test_few_vectors_or_dimensions_have_a_plane(shape: tuple[int, int]) -> None:
    found = plane.pca(np.ones(shape, np.float32))
    assert found.places.shape == (shape[0], 2) and np.isfinite(found.places).all()


def test_umap_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, **options: Any) -> None:
            assert options == {"random_state": 0, "n_jobs": 1, "n_epochs": 200}

        def fit_transform(self, vectors: Any) -> Any:
            return vectors[:, :2]

    module = ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    vectors = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    assert plane.plane(vectors).method == "UMAP"
    assert plane.plane(vectors[:40]).method == "PCA"


def test_a_sample_has_all_modalities_of_its_records_and_their_first_segments(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(30, ["image", "text"], 6), held_out=["r001"])
    all_of_them, some = plane.sample(dataset), plane.sample(dataset, 20)
    assert len(all_of_them.ids) == 60 and sorted(all_of_them.ids) == sorted([f"r{n:03d}" for n in range(30)] * 2)
    assert len(some.ids) == 20 and len(set(some.ids)) == 10
    for _, table in dataset.tables("embeddings/image"):
        first = table.filter(np.array(table["segment"]) == 0)
        for id, vector in zip(first["id"].to_pylist(), vectors_from_arrow(first["embedding"])):
            place = all_of_them.ids.index(id)
            assert all_of_them.modalities[place] == "image"
            np.testing.assert_array_equal(all_of_them.vectors[place], vector)
    held = {id for id, split in zip(all_of_them.ids, all_of_them.splits) if split == "heldout"}
    assert held == {"r001"}


def test_a_sample_does_not_depend_on_the_files(tmp_path: Path) -> None:
    rows = random_rows(30, ["image"], 6)
    one = plane.sample(build(tmp_path / "a", rows, ["image"], unit=4), 10)
    other = plane.sample(build(tmp_path / "b", rows[::-1], ["image"], unit=7), 10)
    assert set(one.ids) == set(other.ids)
