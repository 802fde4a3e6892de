from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from dataset_builder import Row, build, clustered_rows

from mmembed import stages
from mmembed.config import Config, IndexConfig
from mmembed.dataset import Dataset
from mmembed.engine import Engine
from mmembed.errors import UsageError
from mmembed.index import entry_of, open_modality, tuned_path
from mmembed.indexing import PARTS, Indexing, Tuned
from mmembed.transforms import BuildIndex, run
from mmembed.verify import verify

DIM, COUNT = 16, 1200
CONFIG = IndexConfig(recall=0.9, memory="90KB")
"""Too little for exact indexes of two modalities of COUNT rows."""


def projected(root: Path, rows: list[Row]) -> Dataset:
    return build(root, rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]], until="project")


def faiss_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "index").glob("*.*")) if path.suffix != ".json"}


@pytest.fixture(scope="module")
def by_functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that the plain functions made, without Beam."""
    dataset = projected(tmp_path_factory.mktemp("plain"), clustered_rows(COUNT, DIM))
    work = Indexing(dataset, CONFIG, block_rows=250)
    for name in ("image", "text"):
        work.finish(name, [work.encode(block)[1] for block in work.prepare(name)])
        work.publish(name)
    return dataset.folder


@pytest.mark.parametrize("workers", [1, 3])
def test_a_pipeline_makes_what_the_functions_make_with_any_number_of_workers(
    by_functions: Path, tmp_path: Path, workers: int
) -> None:
    dataset = projected(tmp_path, clustered_rows(COUNT, DIM))
    work = Indexing(dataset, CONFIG, block_rows=250)
    run("BuildIndex", ["image", "text"], BuildIndex(work), Engine(workers, isolated=True), pieces=10)
    assert work.entry("image")["kind"] != "Flat"
    blocks = set((tmp_path / PARTS).rglob("block-*.npy"))
    assert len(blocks) == 2 * 5
    for name in ("image", "text"):
        work.publish(name)
    assert faiss_files(tmp_path) == faiss_files(by_functions)


def test_the_stage_leaves_an_index_that_verifies_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(Config(), index=CONFIG)
    dataset = stages.index(projected(tmp_path, clustered_rows(COUNT, DIM)), config, Engine(1))
    assert verify(dataset) == []
    names = {path.name for path in (tmp_path / "index").iterdir()}
    assert names == {"index.json"} | {
        f"{name}.{ending}" for name in ("image", "text") for ending in ("faiss", "arrow", "npy", "tuned.safetensors")
    }
    said = capfd.readouterr().err
    assert "index: image " in said and "by text (heldout queries)" in said and "ms a query" in said
    before = faiss_files(tmp_path)
    (tmp_path / PARTS).mkdir()  # of a run with another budget, which was killed
    assert stages.index(dataset, config, Engine(1)).files == dataset.files
    assert verify(dataset) == [] and not (tmp_path / PARTS).exists()
    assert "index: up to date" in capfd.readouterr().err
    exact = stages.index(dataset, replace(config, index=IndexConfig()), Engine(1))
    assert entry_of(exact, "image")["kind"] == "Flat"
    assert {path.name for path in (tmp_path / "index").iterdir()} == {
        "index.json",
        *(f"{name}.{ending}" for name in ("image", "text") for ending in ("faiss", "arrow")),
    }
    again = stages.index(exact, config, Engine(1))
    assert faiss_files(tmp_path) == before and verify(again) == []


def test_a_refused_budget_leaves_the_index_and_the_evaluation_that_were_there(tmp_path: Path) -> None:
    dataset = stages.index(projected(tmp_path, clustered_rows(COUNT, DIM)), replace(Config(), index=CONFIG), Engine(1))
    dataset = stages.evaluate(dataset, Config())
    for budget, message in (
        (IndexConfig(memory="1KB"), "at least"),
        (IndexConfig(recall=1.0, memory="90KB"), "at least"),
        (IndexConfig(latency="65us"), "0.95 in --latency 0.065ms; the nearest is"),  # as trials show
        (IndexConfig("csls", latency="65us"), "0.95 in --latency 0.065ms; the nearest is"),
    ):
        with pytest.raises(UsageError, match=message):
            stages.index(dataset, replace(Config(), index=budget), Engine(1))
        assert verify(Dataset.open(tmp_path)) == [] and "evaluate" in Dataset.open(tmp_path).stages
        assert len(open_modality(Dataset.open(tmp_path), "image")) == 1200
        assert not (tmp_path / PARTS).exists()


@pytest.mark.parametrize("can_be_trained", [True, False])
def test_a_drift_is_said_and_mended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, can_be_trained: bool
) -> None:
    config = replace(Config(), index=CONFIG)
    dataset = projected(tmp_path, clustered_rows(COUNT, DIM))
    stages.index(dataset, config, Engine(1))
    tuned = Tuned.read(tmp_path / tuned_path("image"))
    assert tuned is not None
    random = np.random.default_rng(0)
    scrambled = {
        name: (random.permutation(array.ravel()).reshape(array.shape) / 9).astype(np.float32)
        for name, array in tuned.state.items()
    }
    (tmp_path / tuned_path("image")).write_bytes(replace(tuned, state=scrambled).to_bytes())
    capfd.readouterr()
    if not can_be_trained:
        monkeypatch.setattr("mmembed.tune.choose", refuse)
    after = stages.index(projected(tmp_path, clustered_rows(COUNT, DIM)), config, Engine(1))
    said = capfd.readouterr().err
    assert "index: DRIFT: recall@10 of image has fallen from" in said and "training it again" in said
    assert ("index: image was not trained again: out of reach" in said) == (not can_be_trained)
    entry = entry_of(after, "image")
    assert entry["drift"]["text"][1] < entry["drift"]["text"][0] - 0.01
    assert entry["recall"]["text"] >= 0.9  # at another point, if not by another training
    assert len(open_modality(after, "image")) == COUNT and verify(after) == []
    assert not (tmp_path / PARTS).exists()


def refuse(*arguments: object) -> NoReturn:
    raise UsageError("out of reach")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, which is always full, on this system")
def test_a_full_disk_ends_the_stage_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    config = replace(Config(), index=CONFIG)
    dataset = projected(tmp_path, clustered_rows(COUNT, DIM))
    with monkeypatch.context() as patch:
        real = faiss.write_index
        patch.setattr(faiss, "write_index", lambda index, path: real(index, "/dev/full"))
        with pytest.raises(Exception, match="write"):
            stages.index(dataset, config, Engine(1))
    assert "index" not in Dataset.open(tmp_path).stages
    assert not list((tmp_path / "index").glob("*.faiss"))
    after = stages.index(Dataset.open(tmp_path), config, Engine(1))
    assert verify(after) == []
