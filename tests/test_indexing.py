from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import Row, build, clustered_rows, index

from mmembed import kinds
from mmembed.config import IndexConfig
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.index import entry_of, open_modality, tuned_path
from mmembed.indexing import PARTS, Indexing, Tuned
from mmembed.kinds import RECALL_K

DIM, COUNT = 16, 1200
SMALL = IndexConfig(recall=0.9, memory="90KB")
"""Too little for an exact index of two modalities of COUNT rows, of 77 kB each."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = clustered_rows(COUNT, DIM)
    return build(tmp_path_factory.mktemp("data"), rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows, root = clustered_rows(COUNT, DIM), tmp_path_factory.mktemp("small")
    return index(build(root, rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]]), SMALL)


def exact_recall(dataset: Dataset, queries: np.ndarray, modality: str) -> float:
    """Measured anew, by ids."""
    opened = open_modality(dataset, modality)
    rows = opened.vectors_of(np.arange(len(opened)))
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :RECALL_K]
    _, found = opened.search(queries, RECALL_K)
    return float(np.mean([len(set(a) & set(b)) / RECALL_K for a, b in zip(truth.tolist(), found.tolist())]))


def test_small_data_have_an_exact_index(plain: Dataset) -> None:
    entry = entry_of(plain, "image")
    assert (entry["kind"], entry["search"], entry["rows"], entry["drift"]) == ("Flat", {}, COUNT, {})
    assert not (plain.folder / tuned_path("image")).exists()
    (point,) = entry["curve"]
    assert point["chosen"] and point["milliseconds"] > 0


def test_an_index_is_tuned_with_held_out_queries_of_the_other_modality(small: Dataset) -> None:
    entry = entry_of(small, "image")
    assert entry["kind"] != "Flat"
    assert entry["bytes"] <= entry["asked"]["memory"]
    assert (entry["probes"], entry["split"]) == ({"text": COUNT // 4}, "heldout")
    assert entry["asked"] == {"recall": 0.9, "memory": pytest.approx(45_000, abs=2), "milliseconds": 0.0}
    held_out = [row.vectors["text"][0] for row in clustered_rows(COUNT, DIM)[::4]]
    queries = np.stack([vector / np.linalg.norm(vector) for vector in held_out])
    assert entry["recall"]["text"] >= 0.9
    assert exact_recall(small, queries, "image") == pytest.approx(entry["recall"]["text"], abs=0.01)


def test_the_whole_curve_is_kept(small: Dataset) -> None:
    curve = entry_of(small, "image")["curve"]
    assert [point["chosen"] for point in curve].count(True) == 1
    chosen = next(point for point in curve if point["chosen"])
    assert chosen["search"] == entry_of(small, "image")["search"]
    assert chosen["milliseconds"] > 0 and chosen["bytes"] > 0
    assert len({point["kind"] for point in curve}) > 1
    assert all(0 <= value <= 1 for point in curve for value in point["recall"].values())


def test_without_held_out_records_others_are_asked_and_it_says_so(tmp_path: Path) -> None:
    fitted = index(build(tmp_path / "a", clustered_rows(COUNT, DIM), dim=DIM, unit=400), SMALL)
    assert entry_of(fitted, "image")["split"] == "train"
    alone = [Row(row.id, {"image": row.vectors["image"]}) for row in clustered_rows(COUNT, DIM)]
    only = index(build(tmp_path / "b", alone, ["image"], DIM, unit=400), replace(SMALL, memory="40KB"))
    assert (entry_of(only, "image")["split"], entry_of(only, "image")["probes"]) == ("own rows", {"image": 1000})


@pytest.mark.parametrize("size", [100, 333])
def test_the_same_index_in_any_order_of_blocks_after_a_trip_to_a_worker(
    small: Dataset, tmp_path: Path, size: int
) -> None:
    rows = clustered_rows(COUNT, DIM)
    dataset = build(tmp_path, rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]])
    work = pickle.loads(pickle.dumps(Indexing(dataset, SMALL, block_rows=size)))
    blocks = work.prepare("image")
    assert len(blocks) == -(-COUNT // size)
    done = [pickle.loads(pickle.dumps(work)).encode(block) for block in reversed(blocks)]
    work.finish("image", [number for _, number in done])
    work.publish("image")
    assert (tmp_path / "index/image.faiss").read_bytes() == (small.folder / "index/image.faiss").read_bytes()


def test_a_run_that_was_killed_goes_on_with_the_blocks_that_are_missing(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, trained = clustered_rows(COUNT, DIM), []
    dataset = build(tmp_path, rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]])
    real = kinds.train

    def watched(*given: Any) -> Any:
        trained.append(given)
        return real(*given)

    monkeypatch.setattr(kinds, "train", watched)
    work = Indexing(dataset, SMALL, block_rows=300)
    for block in work.prepare("image")[:2]:
        work.encode(block)
    count = len(trained)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / PARTS).rglob("block-*.npy")}
    assert len(done) == 2
    again = Indexing(dataset, SMALL, block_rows=300)
    blocks = [again.encode(block) for block in again.prepare("image")]
    assert len(trained) == count
    assert {path: path.stat().st_mtime_ns for path in done} == done
    again.finish("image", [number for _, number in blocks])
    again.publish("image")
    assert (tmp_path / "index/image.faiss").read_bytes() == (small.folder / "index/image.faiss").read_bytes()


def extended(root: Path, more: list[Row]) -> Dataset:
    """A data set of more rows, beside what an index had learned from fewer."""
    rows = [*clustered_rows(COUNT, DIM), *more]
    held_out = [row.id for row in rows[:COUNT:4]]
    return build(root, rows, dim=DIM, unit=400, held_out=held_out, until="project")


def test_rows_that_are_added_and_deleted_need_no_training(small: Dataset, tmp_path: Path) -> None:
    dataset = extended(tmp_path, [replace(row, id=f"new{row.id}") for row in clustered_rows(100, DIM)])
    before = Tuned.read(small.folder / tuned_path("image"))
    assert before is not None
    (tmp_path / "index").mkdir()
    (tmp_path / tuned_path("image")).write_bytes((small.folder / tuned_path("image")).read_bytes())
    work = Indexing(dataset, SMALL)
    work.finish("image", [work.encode(block)[1] for block in work.prepare("image")])
    work.publish("image")
    entry = work.entry("image")
    assert (entry["rows"], entry["trained_rows"], entry["drift"]) == (COUNT + 100, COUNT, {})
    after = Tuned.read(tmp_path / tuned_path("image"))
    assert after is not None and after.probes.fingerprint == before.probes.fingerprint
    assert all((after.state[name] == array).all() for name, array in before.state.items())


def test_an_index_that_no_longer_fits_its_rows_is_an_alarm(small: Dataset, tmp_path: Path) -> None:
    path = small.folder / tuned_path("image")
    tuned = Tuned.read(path)
    assert tuned is not None
    dataset = extended(tmp_path, [])
    (tmp_path / "index").mkdir()
    random = np.random.default_rng(0)
    scrambled = {
        name: (random.permutation(array.ravel()).reshape(array.shape) / 9).astype(np.float32)
        for name, array in tuned.state.items()
    }
    (tmp_path / tuned_path("image")).write_bytes(replace(tuned, state=scrambled).to_bytes())
    work = Indexing(dataset, SMALL)
    work.finish("image", [work.encode(block)[1] for block in work.prepare("image")])
    work.publish("image")
    before, now = work.entry("image")["drift"]["text"]
    assert before == tuned.about["recall"]["text"] and now < before - 0.01
    again = Indexing(dataset, SMALL, retrain=("image",))
    again.finish("image", [again.encode(block)[1] for block in again.prepare("image")])
    again.publish("image")
    assert again.entry("image")["drift"] == {}
    assert again.entry("image")["recall"]["text"] >= 0.9


@pytest.mark.parametrize("change", ["recall", "memory", "hubness"])
def test_another_wish_is_another_index(small: Dataset, change: str) -> None:
    other: Any = {"recall": 0.8, "memory": "80KB", "hubness": "csls"}[change]
    changed = replace(SMALL, **{change: other})
    for config, is_kept in ((SMALL, True), (changed, False)):
        work = Indexing(small, config)
        assert (work._kept("image", work.made["image"], 0.0) is not None) == is_kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        lambda data: b"",
        bytes.lower,
    ],
)
def test_what_was_learned_is_checked_before_it_is_used(small: Dataset, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((small.folder / tuned_path("image")).read_bytes())
    assert Tuned.read(path) is not None
    path.write_bytes(damage(path.read_bytes()))
    assert Tuned.read(path) is None
    assert Tuned.read(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            IndexConfig(memory="1KB"),
            r"--memory 0.001MB: indexes with --recall 0.95 take \S+MB at least \(.* for 1,200 of image",
        ),
        (IndexConfig(memory="90KB", recall=1.0), "indexes with --recall 1 take 0.162MB at least"),
        (IndexConfig(latency="1us"), "no query is expected to take less than 0.06ms"),
    ],
)
def test_a_budget_that_can_not_be_met_is_refused_before_anything_is_done(
    plain: Dataset, config: IndexConfig, message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")}
    with pytest.raises(UsageError, match=message):
        _ = Indexing(plain, config).budgets
    assert {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")} == before


def test_an_exact_index_after_all_is_finished_as_often_as_a_runner_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = build(tmp_path, clustered_rows(COUNT, DIM), dim=DIM, unit=400, until="project")
    monkeypatch.setattr("mmembed.tune.is_exact_enough", lambda *given: False)
    monkeypatch.setattr("mmembed.tune.cheapest", lambda *given: None)  # whatever is tried finds too little
    monkeypatch.setattr("mmembed.tune.measure", lambda *given: [])
    work = Indexing(dataset, IndexConfig())
    for _ in range(2):
        work.finish("image", [number for _, number in work.prepare("image")])
        entry = work.entry("image")
        assert (entry["kind"], entry["recall"], entry["probes"], entry["drift"]) == ("Flat", {}, {}, {})


def test_a_small_modality_does_not_starve_on_its_share(tmp_path: Path) -> None:
    rows = [replace(row, vectors={"image": row.vectors["image"]}) for row in clustered_rows(COUNT, DIM)]
    rows[0] = replace(rows[0], vectors=clustered_rows(COUNT, DIM)[0].vectors)
    dataset = build(tmp_path, rows, dim=DIM, unit=400)
    flat = kinds.Kind("Flat")
    exact = flat.bytes(COUNT, DIM) + flat.bytes(1, DIM)
    budgets = Indexing(dataset, IndexConfig(memory=f"{exact / 1e6 + 0.001:.3f}MB")).budgets
    assert budgets["image"].memory >= flat.bytes(COUNT, DIM) and budgets["text"].memory >= flat.bytes(1, DIM)
    tight = Indexing(dataset, IndexConfig(memory="40KB")).budgets
    assert tight["image"].memory + tight["text"].memory <= 40_000


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_rows_can_be_indexed_within_any_budget(tmp_path: Path, count: int) -> None:
    dataset = build(tmp_path, clustered_rows(count, DIM), dim=DIM)
    for config in (IndexConfig(latency="62us"), IndexConfig(memory="20KB")):
        assert len(open_modality(index(dataset, config), "image")) == count


def test_rows_that_are_longer_than_before_are_learned_anew(small: Dataset) -> None:
    work = Indexing(small, SMALL)
    tuned = Tuned.read(small.folder / tuned_path("image"))
    assert tuned is not None
    assert work._kept("image", work.made["image"], tuned.radius) is not None
    assert work._kept("image", work.made["image"], tuned.radius + 1) is None


def test_finishing_again_gives_the_same(small: Dataset, tmp_path: Path) -> None:
    """As a runner does that tries a step again."""
    rows = clustered_rows(COUNT, DIM)
    dataset = build(tmp_path, rows, dim=DIM, unit=400, held_out=[row.id for row in rows[::4]])
    work = Indexing(dataset, SMALL)
    numbers = [work.encode(block)[1] for block in work.prepare("image")]
    for _ in range(2):
        work.finish("image", numbers)
    work.publish("image")
    assert (tmp_path / "index/image.faiss").read_bytes() == (small.folder / "index/image.faiss").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "2 bananas"}, "memory = '2 bananas': must be a size such as 500MB, 2GB or 2GiB"),
        ({"memory": "2"}, "must be a size"),
        ({"memory": "0GB"}, "must be a size"),
        ({"latency": "5"}, "latency = '5': must be a time such as"),
        ({"recall": 0.0}, "recall = 0.0: must be above 0"),
        ({"recall": 1.1}, "recall = 1.1: must be above 0, and at most 1"),
    ],
)
def test_budgets_are_amounts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IndexConfig(**given)


def test_amounts_have_units() -> None:
    assert IndexConfig(memory="2GB").memory_bytes == 2_000_000_000
    assert IndexConfig(memory="1.5 GiB").memory_bytes == 3 * 2**29
    assert IndexConfig(latency="500us").milliseconds == 0.5
    assert IndexConfig(latency="0.1s").milliseconds == 100
    assert (IndexConfig().memory_bytes, IndexConfig().milliseconds) == (0, 0)
