from __future__ import annotations

import copy
import json
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count as counting
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataset_builder import Row, build, rewrite
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, MmembedError, SpaceError, UsageError
from mmembed.reader import Reader, open_dataset
from mmembed.reader.source import Source
from mmembed.shards import shard_path

DIM = 6
HELD_OUT = {f"r{number:03d}" for number in range(0, 40, 7)}


def rows(count: int = 40) -> list[Row]:
    """Records with up to three segments a modality, of which some lack one, and with metadata of all kinds. In units of
    four, one has no text, and one no sound."""
    random = np.random.default_rng(1)
    found = []
    for number in range(count):
        vectors = {
            name: random.normal(size=(random.integers(1, 4), DIM)).astype(np.float32)
            for name in ("image", "text", "audio")
            if (number + len(name)) % 5 and (name, number // 4) not in (("text", 3), ("audio", 5))
        }
        metadata = {
            "year": 1900 + number,
            "size": None if number % 4 == 0 else number,
            "weight": number / 4,
            "colour": f"colour {number % 3}",
            "tags": [number, {"a": None}] if number % 2 else None,
            "good": number % 2 == 0,
        }
        found.append(Row(f"r{number:03d}", vectors, metadata))
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        tmp_path_factory.mktemp("data") / "out",
        rows(),
        ("image", "text", "audio"),
        DIM,
        held_out=HELD_OUT,
        until="project",
    ).folder


def table_of(out: Path, modality: str, split: str = "train", folder: str = "embeddings") -> list[dict[str, Any]]:
    """The slow way: rows of the files one by one."""
    paths = sorted((out / "embeddings" / modality).iterdir())
    found = []
    for path in paths:
        kept = [row["split"] == split or split == "all" for row in pq.read_table(path).to_pylist()]
        some = pq.read_table(out / folder / modality / path.name).to_pylist()
        found += [row for row, keep in zip(some, kept) if keep]
    return found


def together(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: np.concatenate([batch[name] for batch in batches])
        if isinstance(value, np.ndarray)
        else [item for batch in batches for item in batch[name]]
        for name, value in batches[0].items()
    }


def read(ds: Reader) -> dict[str, Any]:
    return together(list(ds))


def ids(batches: Sequence[dict[str, Any]]) -> list[str]:
    return [id for batch in batches for id in batch["id"]]


def assert_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_the_segments_of_a_modality_in_the_order_of_the_files(out: Path, split: str, is_loaded: bool) -> None:
    ds = open_dataset(out, "image", ["embedding", "feature", "media", "segment", "span", "id"], split, batch_size=4)
    if is_loaded:
        ds.load()
    expected = table_of(out, "image", split)
    features = table_of(out, "image", split, "features")
    assert len(ds) == len(expected) > 4
    found = read(ds)
    assert list(found) == [*(f"image.{name}" for name in ("embedding", "feature", "media", "segment", "span")), "id"]
    assert np.array_equal(found["image.embedding"], np.array([row["embedding"] for row in expected], np.float32))
    assert np.array_equal(found["image.feature"], np.array([row["feature"] for row in features], np.float32))
    assert found["image.segment"].tolist() == [row["segment"] for row in expected]
    for name in ("media", "span"):
        assert found[f"image.{name}"] == [row[name] for row in expected]
    assert found["id"] == [row["id"] for row in expected]


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_units_without_a_modality_change_no_types(out: Path, modality: str, shuffle: bool) -> None:
    assert 0 in [pq.read_metadata(path).num_rows for path in (out / "embeddings/audio").iterdir()]
    ds = open_dataset(out, modality, ["segment", "metadata.year", "metadata.good"], shuffle=shuffle)
    assert [value.dtype for value in read(ds).values()] == [np.int32, np.int64, np.bool_]


def test_metadata_keep_their_types(out: Path) -> None:
    keys = ["year", "size", "weight", "colour", "tags", "good"]
    found = read(open_dataset(out, "text", [f"metadata.{key}" for key in keys], batch_size=5))
    expected = [row["metadata"] for row in table_of(out, "text")]
    assert len({row["size"] is None for row in expected}) == 2
    for key, dtype in [("year", np.int64), ("weight", np.float64), ("good", np.bool_)]:
        assert found[f"metadata.{key}"].dtype == dtype
        assert found[f"metadata.{key}"].tolist() == [row[key] for row in expected]
    sizes = [float("nan") if row["size"] is None else row["size"] for row in expected]
    np.testing.assert_array_equal(found["metadata.size"], np.array(sizes, np.float64))  # an integer can't be missing
    assert found["metadata.colour"] == [row["colour"] for row in expected]
    assert found["metadata.tags"] == [row["tags"] and json.loads(row["tags"]) for row in expected]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("segments", ["first", "random", "all", "stack", {"image": "stack", "text": "all"}])
@pytest.mark.parametrize("missing", ["skip", "mask"])
def test_the_segments_of_a_record_stay_together(out: Path, shuffle: bool, segments: Any, missing: str) -> None:
    ds = open_dataset(
        out, ("image", "text"), ["embedding", "media", "id", "metadata.year"],
        segments=segments, missing=missing, shuffle=shuffle, batch_size=4,
    )  # fmt: skip
    records: dict[str, dict[str, list[Any]]] = {}
    for name in ("image", "text"):
        for row in table_of(out, name):
            records.setdefault(row["id"], {"image": [], "text": []})[name].append(row)
    if missing == "skip":
        records = {id: of for id, of in records.items() if all(of.values())}
    how = segments if isinstance(segments, dict) else dict.fromkeys(("image", "text"), segments)
    sizes = {id: [max(len(of[name]), 1) for name in how if how[name] == "all"] for id, of in records.items()}
    found = read(ds)
    assert Counter(found["id"]) == {id: int(np.prod(sizes[id])) for id in records}
    assert len(ds) == len(found["id"])
    seen = set()
    for place, id in enumerate(found["id"]):
        seen.add((id, *(str(found[f"{name}.media"][place]) for name in how if how[name] == "all")))
        assert found["metadata.year"][place] == 1900 + int(id[1:])
        for name in how:
            there, vector = records[id][name], found[f"{name}.embedding"][place]
            mask = found.get(f"{name}.mask", np.ones((len(ds), 1), bool))[place]
            if how[name] == "stack":
                assert mask.tolist() == [True] * len(there) + [False] * (len(mask) - len(there))
                assert vector.tolist() == [row["embedding"] for row in there] + [[0.0] * DIM] * (len(mask) - len(there))
                assert found[f"{name}.media"][place] == [row["media"] for row in there]
            elif there:
                assert bool(mask)
                assert vector.tolist() in [row["embedding"] for row in there[: 1 if how[name] == "first" else None]]
            else:
                assert not mask
                assert not vector.any()
                assert found[f"{name}.media"][place] is None
    assert "all" not in how.values() or len(seen) > len(records) / 2


def test_a_sample_by_its_number_is_that_of_the_batches(out: Path) -> None:
    ds = open_dataset(out, ("image", "text"), ["embedding", "id", "metadata.year"], batch_size=4)
    whole = read(ds)
    ds.epoch = 0
    assert_equal(ds[:], whole)
    assert_equal(ds[[3, -1]], {name: _pick(value, [3, len(ds) - 1]) for name, value in whole.items()})
    assert_equal(ds[np.array([], np.int64)], {name: value[:0] for name, value in whole.items()})
    one = ds[np.int64(5)]
    assert one["id"] == whole["id"][5]
    assert one["image.embedding"].shape == (DIM,)
    assert one["metadata.year"] == whole["metadata.year"][5]
    assert [sample["id"] for sample in (ds[number] for number in range(len(ds)))] == whole["id"]
    mask = np.arange(len(ds)) % 3 == 0
    assert_equal(ds[mask], ds[np.flatnonzero(mask)])
    assert_equal(ds[mask.tolist()], ds[::3])
    for wrong in (len(ds), -len(ds) - 1, [0, len(ds)]):
        with pytest.raises(IndexError, match=f"there are {len(ds)}"):
            ds[wrong]
    assert_equal(ds[torch.tensor([3, 5])], ds[[3, 5]])
    for no_number in ([True, False], [1.0], ["1"], [[1, 2]], "1", 1.0, None):
        with pytest.raises(TypeError):
            ds[no_number]


def _pick(value: Any, places: list[int]) -> Any:
    return value[places] if isinstance(value, np.ndarray) else [value[place] for place in places]


def test_half_precision_stays(tmp_path: Path) -> None:
    out = build(tmp_path / "out", rows(), ("image", "text"), DIM, dtype="float16", until="project").folder
    for shuffle in (False, True):
        assert next(iter(open_dataset(out, "image", shuffle=shuffle)))["image.embedding"].dtype == np.float16


def test_rows_that_follow_each_other_are_not_copied(out: Path) -> None:
    ds = open_dataset(out, "image", split="all")
    view = ds[3:8]["image.embedding"]
    assert np.shares_memory(view, ds[:]["image.embedding"])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0  # would change what the next epoch reads
    assert ds[[3, 5]]["image.embedding"].flags.writeable


def test_epochs_differ_and_are_the_same_for_a_seed(out: Path) -> None:
    ds = open_dataset(out, "image", ["id", "segment"], shuffle=True, batch_size=4, seed=3)
    first, second = ids(list(ds)), ids(list(ds))
    assert ds.epoch == 2
    assert first != second
    assert Counter(first) == Counter(second)
    again = open_dataset(out, "image", ["id"], shuffle=True, batch_size=9, seed=3)
    assert ids(list(again)) == first
    again.epoch = 1
    assert ids(list(again)) == second
    assert ids(list(open_dataset(out, "image", ["id"], shuffle=True, seed=4))) != first


def test_a_loop_that_counts_its_steps_goes_to_the_next_epoch(out: Path) -> None:
    ds, alone = (open_dataset(out, "image", ["id"], shuffle=True, batch_size=4) for _ in range(2))
    for epoch in range(3):
        found = []
        for step, batch in enumerate(ds, 1):
            found += batch["id"]
            if step == ds.batches_per_epoch:
                assert ds.state_dict()["epoch"] == ds.epoch == epoch + 1
                break
        assert found == ids(list(alone))


def test_a_copy_has_a_place_of_its_own(out: Path) -> None:
    ds = open_dataset(out, "image", ["id"], shuffle=True, batch_size=4)
    for other in (copy.deepcopy(ds), pickle.loads(pickle.dumps(ds))):
        assert len(list(other)) == ds.batches_per_epoch
        assert (ds.epoch, other.epoch) == (0, 1)
    next(iter(ds))  # loads, so that copies have the same memory
    assert ids(list(pickle.loads(pickle.dumps(ds)))) == ids(list(ds))


def test_a_look_at_the_first_batch_does_not_move_a_loop(out: Path) -> None:
    ds, states = open_dataset(out, "image", ["id"], shuffle=True, batch_size=4), []
    for _ in ds:
        states.append(ds.state_dict())
        next(iter(ds))
    for _, state in zip(ds := open_dataset(out, "image", ["id"], shuffle=True, batch_size=4), states, strict=True):
        assert ds.state_dict() == state


def test_an_epoch_that_was_left_is_begun_again(out: Path) -> None:
    ds = open_dataset(out, "image", ["id"], shuffle=True, batch_size=4)
    first = next(iter(ds))
    assert next(iter(ds)) == first


CONFIGURATIONS = st.tuples(st.integers(1, 5), st.integers(1, 4))
"""A batch size, and a number of ranks."""


def of_ranks(out: Path, batch_size: int, ranks: int, state: dict[str, Any] | None, **options: Any) -> list[Reader]:
    found = []
    for rank in range(ranks):
        ds = open_dataset(
            out, ("image", "text"), ["id", "text.media"],
            batch_size=batch_size, rank=rank, ranks=ranks, seed=5, **options,
        )  # fmt: skip
        if state is not None:
            ds.load_state_dict(json.loads(json.dumps(state)))
        found.append(ds)
    return found


def in_step(readers: Sequence[Reader], limit: int | None = None) -> list[tuple[str, str]]:
    """What all ranks read, step by step, each rank after the other."""
    found = []
    for step, iterators in (
        (step, readers) for step, readers in zip(counting(), [[iter(ds) for ds in readers]] * 10**6)
    ):
        if step == limit:
            break
        some = [next(iterator, None) for iterator in iterators]
        if not any(some):
            break
        found += [pair for batch in some if batch for pair in zip(batch["id"], batch["text.media"])]
    return found


@settings(max_examples=40, deadline=None)
@example((1, 3), (1, 1), 6, False, 0)  # at the end of the epoch, some ranks have nothing to read
@given(CONFIGURATIONS, CONFIGURATIONS, st.integers(0, 30), st.booleans(), st.integers(0, 2))
def test_a_run_goes_on_exactly_with_any_number_of_ranks(
    out: Path, before: tuple[int, int], after: tuple[int, int], stop: int, shuffle: bool, epoch: int
) -> None:
    [alone] = of_ranks(out, 64, 1, None, shuffle=shuffle)
    alone.epoch = epoch
    whole = in_step([alone])
    assert len(whole) == len(alone)
    first = of_ranks(out, *before, None, shuffle=shuffle)
    for ds in first:
        ds.epoch = epoch
    read = in_step(first, stop)
    states = [ds.state_dict() for ds in first]
    assert all(state == states[0] for state in states) or len(read) == len(whole)
    state = states[0]
    assert len(json.dumps(state)) < 200
    rest = in_step(of_ranks(out, *after, state, shuffle=shuffle))
    if state["epoch"] == epoch:
        assert read + rest == whole  # samples, and the caption that was picked for each
    else:
        assert read == whole
        assert len(rest) == len(whole)
        assert state["position"] == 0


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_read_the_batches_in_turn(out: Path, workers: int, shuffle: bool) -> None:
    def opened() -> Reader:
        ds = open_dataset(out, "image", ["id", "embedding"], shuffle=shuffle, batch_size=4)
        ds.load_state_dict({**ds.state_dict(), "position": 8})
        return ds

    whole = list(opened())
    shares = [list(opened().batches(0, 8, worker, workers)) for worker in range(workers)]
    for number, batch in enumerate(whole):
        assert_equal(shares[number % workers][number // workers], batch)
    assert sum(map(len, shares)) == len(whole) == opened().batches_per_epoch - 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batches_of_an_epoch_are_counted(out: Path, ranks: int, batch_size: int, drop_last: bool) -> None:
    if drop_last and batch_size == 100:
        return
    for rank in range(ranks):
        ds = open_dataset(
            out, "image", ["id"], batch_size=batch_size, rank=rank, ranks=ranks, drop_last=drop_last
        )  # fmt: skip
        assert ds.batches_per_epoch == len(list(ds))


def test_drop_last_gives_whole_batches_alone(out: Path) -> None:
    ds = open_dataset(out, "image", ["id"], batch_size=7, drop_last=True, shuffle=True)
    sizes = [len(batch["id"]) for batch in ds]
    assert sizes == [7] * (len(ds) // 7)
    assert len(ds) % 7
    assert ds.batches_per_epoch == len(sizes)


def test_a_state_after_the_last_batch_is_that_of_the_next_epoch(out: Path) -> None:
    ds = open_dataset(out, "image", ["id"], batch_size=7)
    for _ in ds:
        state = ds.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert state == ds.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"shuffle": False},
        {"seed": 1},
        {"split": "heldout"},
        {"modalities": "text"},
        {"segments": "first"},
        {"missing": "mask", "modalities": ("image", "text")},
    ],
    ids=str,
)
def test_a_state_of_other_samples_is_refused(out: Path, change: dict[str, Any]) -> None:
    state = open_dataset(out, "image", shuffle=True).state_dict()
    options: dict[str, Any] = {"modalities": "image", "shuffle": True} | change
    with pytest.raises(UsageError, match="does not fit"):
        open_dataset(out, **options).load_state_dict(state)


@pytest.mark.parametrize(
    "change", [{"position": -1}, {"position": 10**6}, {"position": "3"}, {"epoch": None}, {"epoch": -1}], ids=str
)
def test_a_damaged_state_is_refused(out: Path, change: dict[str, Any]) -> None:
    ds = open_dataset(out, "image")
    with pytest.raises(UsageError, match="damaged"):
        ds.load_state_dict(ds.state_dict() | change)
    with pytest.raises(UsageError, match="damaged"):
        ds.load_state_dict({name: value for name, value in ds.state_dict().items() if name not in change})
    for state in (None, {}, {"weight": 1}):
        with pytest.raises(UsageError, match="this is no state of a reader"):
            ds.load_state_dict(state)  # type: ignore[arg-type]


def test_a_state_does_not_ask_for_the_same_columns(out: Path) -> None:
    state = open_dataset(out, "image", ["embedding"]).state_dict()
    open_dataset(out, "image", ["feature", "id"]).load_state_dict(state)


def test_a_state_serves_where_maps_are_learned_anew(out: Path, tmp_path: Path) -> None:
    """The samples are the same: it is `spaces` that tells that their vectors are not."""
    turned = [replace(row, vectors={name: -v for name, v in row.vectors.items()}) for row in rows()]
    other = build(
        tmp_path / "other", turned, ("image", "text", "audio"), DIM, held_out=HELD_OUT, until="project"
    ).folder
    state = open_dataset(out, "image", shuffle=True).state_dict()
    open_dataset(other, "image", shuffle=True).load_state_dict(state | {"position": 4})


def test_a_reader_is_shown_in_one_line(out: Path) -> None:
    ds = open_dataset(out, ("image", "text"), batch_size=4)
    assert repr(ds) == f"Reader({out}: image + text, {len(ds)} samples in batches of 4, epoch 0)"


def test_a_state_of_another_data_set_is_refused(out: Path, tmp_path: Path) -> None:
    other = build(
        tmp_path / "other", rows(39), ("image", "text", "audio"), DIM, held_out=HELD_OUT, until="project"
    ).folder
    with pytest.raises(UsageError, match="samples"):
        open_dataset(other, "image").load_state_dict(open_dataset(out, "image").state_dict())


def test_vectors_of_another_space_are_refused(out: Path) -> None:
    spaces = open_dataset(out, ("image", "text"), ["embedding", "image.feature"]).spaces
    assert spaces == {
        "image.embedding": "test-shared@1[6]",
        "text.embedding": "test-shared@1[6]",
        "image.feature": "test-image@1[6]",
    }
    open_dataset(out, ("image", "text"), ["embedding", "image.feature"], spaces=spaces)
    with pytest.raises(SpaceError, match=r"image.embedding of .* is of space test-shared@1\[6\], but test-shared@2"):
        open_dataset(out, "image", spaces={"image.embedding": "test-shared@2[6]"})
    with pytest.raises(UsageError, match="'text.embedding' is none of the vectors that are read: image.embedding"):
        open_dataset(out, "image", spaces={"text.embedding": "test-shared@1[6]"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "video"}, "has no embeddings of 'video', but of image, text, audio"),
        ({"columns": ["colour"]}, r"no column 'colour'; there are embedding, .*metadata.colour"),
        ({"columns": ["metadata.color"]}, "no column 'metadata.color'; did you mean metadata.colour"),
        ({"modalities": "image", "columns": ["text.media"]}, "no column 'text.media'"),
        ({"split": "test"}, "split = 'test': must be one of train, heldout, all"),
        ({"segments": "last"}, "segments = 'last': must be one of first, random, all, stack"),
        ({"segments": {"video": "all"}}, "segments of the modality = 'video'"),
        ({"missing": "zero"}, "missing = 'zero'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"rank": 2, "ranks": 2}, "rank = 2: of 2 ranks, it must be 0 to 1"),
        ({"ranks": 1000}, "ranks = 1000: there are only"),
        ({"shuffle": "no"}, "shuffle = 'no': must be True or False"),
        ({"batch_size": 2.5}, "batch_size = 2.5: must be a whole number"),
        ({"rank": "0"}, "rank = '0': must be a whole number"),
        ({"drop_last": True, "batch_size": 1000}, "with drop_last nothing is left: .* a batch of 1000"),
        ({"columns": []}, "columns: name at least one of embedding"),
        ({"memory": "much"}, "memory = 'much': must be a size such as"),
        ({"memory": ""}, "memory = '': must be a size such as"),
        ({"memory": 4000}, "memory = '4000': must be a size such as"),
    ],
    ids=str,
)
def test_what_can_not_be_is_said_at_once(out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(out, **options)


def test_names_may_stand_alone_and_twice(out: Path) -> None:
    ds = open_dataset(out, ["image", "image"], "embedding", seed=np.int64(3))  # type: ignore[arg-type]
    assert ds.modalities == ["image"]
    assert list(ds[:2]) == ["image.embedding"]
    assert json.loads(json.dumps(ds.state_dict()))["seed"] == 3
    assert open_dataset(out).modalities == ["image", "text", "audio"]


def test_a_place_without_embeddings_says_what_to_do(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no data set"):
        open_dataset(tmp_path)
    only_fitted = build(tmp_path / "fitted", rows(), ("image", "text"), DIM, until="fit").folder
    with pytest.raises(UsageError, match="no embeddings yet: run `mmembed project`"):
        open_dataset(only_fitted)
    apart = [Row(f"{name}", {name: np.ones((1, DIM), np.float32)}) for name in ("image", "text")]
    nothing = build(tmp_path / "apart", apart, ("image", "text"), DIM, until="project").folder
    with pytest.raises(UsageError, match="no record of the split 'train' has image and text"):
        open_dataset(nothing)
    assert len(open_dataset(nothing, missing="mask")) == 2
    with pytest.raises(UsageError, match="no data set that can be read"):
        open_dataset("ftp://somewhere/out")


FAULTS = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "changed": lambda path: path.write_bytes(_flipped(path.read_bytes())),
}


def _flipped(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("folder", ["embeddings", "features"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_damaged_file_is_named(tmp_path: Path, fault: str, folder: str, shuffle: bool) -> None:
    out = build(tmp_path / "out", rows(), ("image", "text"), DIM, until="project").folder
    path = out / shard_path(f"{folder}/image", 3)
    FAULTS[fault](path)
    with pytest.raises(MmembedError, match=str(path)):
        list(open_dataset(out, "image", ["embedding", "feature"], shuffle=shuffle))


def test_a_file_that_changes_under_an_open_reader_is_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path / "out", rows(), ("image", "text"), DIM, until="project")
    ds = open_dataset(dataset.folder, "image", batch_size=4)
    batches = iter(ds)
    next(batches)
    path = dataset.folder / shard_path("embeddings/image", 9)
    path.write_bytes((dataset.folder / shard_path("embeddings/image", 8)).read_bytes())
    with pytest.raises(DatasetError, match="part-00009.parquet is not the file that dataset.json names"):
        list(batches)


def test_a_file_that_changes_between_epochs_is_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path / "out", rows(), ("image", "text"), DIM, until="project")
    path = dataset.folder / shard_path("embeddings/image", 3)
    ds = open_dataset(dataset.folder, "image", batch_size=4)
    list(ds)
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(_flipped(data))
    with pytest.raises(DatasetError, match="part-00003.parquet is not the file"):
        list(ds)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(list(ds)) == ds.batches_per_epoch  # the very file that was compared before
    path.write_bytes(_flipped(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DatasetError, match="part-00003.parquet"):  # a disk that rots: its page says so
        list(ds)


def test_features_with_other_rows_than_the_embeddings_are_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path / "out", rows(), ("image", "text"), DIM, until="project")
    path = shard_path("features/image", 2)
    rewrite(dataset, path, pq.read_table(dataset.folder / path).slice(1))
    with pytest.raises(DatasetError, match="other rows than its embeddings"):
        list(open_dataset(dataset.folder, "image", ["feature"]))


def test_little_memory_gives_the_same(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"columns": ["embedding", "id"], "shuffle": True, "batch_size": 5}
    expected = list(open_dataset(out, "image", **options))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ds = open_dataset(out, "image", memory="1KB", **options)
    assert ds.bytes > 1000
    for found, batch in zip(ds, expected, strict=True):
        assert_equal(found, batch)
    assert not list(tmp_path.iterdir())  # the file has no name
    in_order = [open_dataset(out, "image", ["embedding"], memory=memory, batch_size=5) for memory in ("1KB", "4GB")]
    for found, batch in zip(*in_order, strict=True):
        assert_equal(found, batch)


def test_a_file_is_read_once_and_only_as_far_ahead_as_memory_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build(tmp_path / "out", rows(), ("image", "text"), DIM, until="project").folder
    size = max(path.stat().st_size for path in (out / "embeddings/image").iterdir())
    ds = open_dataset(out, "image", batch_size=4, memory=f"{3 * 3 * size / 1e6:.6f}MB")
    read: list[str] = []
    real = Source.read

    def counted(self: Source, path: str, columns: Sequence[str]) -> pa.Table:
        read.append(path)
        return real(self, path, columns)

    monkeypatch.setattr(Source, "read", counted)
    ahead = []
    for _ in ds:
        unit = ds.samples.pieces(ds.progress.position - 1, ds.progress.position)[0][0] if ds.epoch == 0 else 9
        ahead.append(len(read) - unit)
    assert len(read) == len(set(read)) == 10
    assert max(ahead) <= 1 + 2


def test_a_loop_that_is_left_early_ends_what_reads_ahead(out: Path) -> None:
    import threading

    before = threading.active_count()
    for _ in open_dataset(out, "image", batch_size=4):
        break
    assert threading.active_count() == before


def test_any_file_system_of_pyarrow(out: Path) -> None:
    expected = read(open_dataset(out, ("image", "text"), batch_size=8))
    system = fs.SubTreeFileSystem(str(out.parent), fs.LocalFileSystem())
    assert_equal(read(open_dataset("out", ("image", "text"), batch_size=8, file_system=system)), expected)
    assert_equal(read(open_dataset(f"file://{out}", ("image", "text"), batch_size=8)), expected)
    where = os.getcwd()
    try:
        os.chdir(out.parent)
        ds = open_dataset("out", ("image", "text"), batch_size=8)
    finally:
        os.chdir(where)
    assert_equal(read(ds), expected)


def test_a_reader_reads_what_a_build_wrote(small: Path) -> None:
    ds = open_dataset(
        small, ("image", "text", "audio"), ["embedding", "id", "metadata.color", "text.media"], shuffle=True
    )
    [batch] = ds
    dataset = Dataset.open(small)
    known = {
        id
        for name in ds.samples.modalities
        for _, table in dataset.tables(f"embeddings/{name}")
        for id in table["id"].to_pylist()
    }
    assert 10 < len(set(batch["id"])) == len(ds) < len(known)
    np.testing.assert_allclose(np.linalg.norm(batch["text.embedding"], axis=1), 1, atol=1e-5)
