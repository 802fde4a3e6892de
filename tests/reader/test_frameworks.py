"""Tensors of PyTorch, JAX and TensorFlow: the same samples as of the reader itself, also read by worker processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_builder import build, random_rows
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from mmembed.errors import UsageError
from mmembed.reader import Reader, open_dataset
from mmembed.reader.torch import Batches, Loader, Samples

COLUMNS = ["embedding", "id", "text.media", "image.segment"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [replace(row, metadata={"milliseconds": 1_700_000_000_000}) for row in random_rows(60, ["image", "text"], 6)]
    return build(tmp_path_factory.mktemp("data") / "out", rows).folder


def opened(out: Path, **options: Any) -> Reader:
    return open_dataset(out, ("image", "text"), COLUMNS, **({"shuffle": True, "batch_size": 8} | options))


def assert_same(found: Any, expected: Any) -> None:
    """Batches of tensors, against those of arrays."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(np.asarray(found[name]), value)
        else:
            assert found[name] == value


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"shuffle": False, "memory": "1KB"}], ids=str)
def test_a_loaders_workers_read_what_the_reader_does(out: Path, workers: int, options: dict[str, Any]) -> None:
    loader, alone = Loader(opened(out, **options), num_workers=workers), opened(out, **options)
    for _ in range(2):
        found, expected = list(loader), list(alone)
        assert len(found) == len(expected) == len(loader) == 8
        for batch, other in zip(found, expected):
            assert isinstance(batch["image.embedding"], torch.Tensor)
            assert_same(batch, other)
    assert loader.state_dict() == alone.state_dict()


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_started_in_any_way_share_what_was_read(out: Path, start: str) -> None:
    loader = Loader(opened(out), num_workers=2, multiprocessing_context=start, persistent_workers=True)
    alone = opened(out)
    for _ in range(2):  # the workers live on, and go to the next epoch with the loop
        for batch, other in zip(loader, alone, strict=True):
            assert_same(batch, other)


def test_a_loop_goes_on_where_it_was_whatever_workers_had_read_ahead(out: Path) -> None:
    options: dict[str, Any] = {"num_workers": 2, "prefetch_factor": 4, "persistent_workers": True}
    reader = opened(out)
    whole = [batch["id"] for _ in range(2) for batch in reader]
    loader, read = Loader(opened(out), **options), []
    for batch in loader:
        read.append(batch["id"])
        if len(read) == 3:
            state = json.loads(json.dumps(loader.state_dict()))
            break
    again = Loader(opened(out), **options)
    again.load_state_dict(state)
    rest = [batch["id"] for _ in range(2) for batch in again]
    assert read + rest == whole


def test_a_loop_that_counts_its_steps_goes_to_the_next_epoch(out: Path) -> None:
    reader, alone = opened(out), opened(out)
    loader = Loader(reader, num_workers=2, persistent_workers=True)
    for _ in range(3):
        found = [batch["id"] for _, batch in zip(range(len(loader)), loader)]
        assert found == [batch["id"] for batch in alone]


def test_batches_in_any_order_can_not_be_counted(out: Path) -> None:
    with pytest.raises(UsageError, match="in_order = False"):
        Loader(opened(out), num_workers=2, in_order=False)
    with pytest.raises(UsageError, match="batch_size is the reader's: give it to open_dataset"):
        Loader(opened(out), batch_size=32)


def test_a_plain_data_loader_with_workers(out: Path) -> None:
    batches, alone = Batches(opened(out)), opened(out)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        assert len(loader) == 8
        for batch, other in zip(loader, alone, strict=True):
            assert_same(batch, other)


def test_samples_by_number(out: Path) -> None:
    reader = opened(out)
    whole = Samples(reader)
    assert len(whole) == len(reader)
    assert whole[3]["id"] == reader[3]["id"]
    one = DataLoader(whole, batch_size=4, num_workers=2)
    for start, batch in zip(range(0, len(reader), 4), one, strict=True):
        assert_same(batch, reader[start : start + 4])
    chosen = BatchSampler(RandomSampler(whole, generator=torch.Generator().manual_seed(0)), 8, drop_last=False)
    seen = [id for batch in DataLoader(whole, sampler=chosen, batch_size=None) for id in batch["id"]]
    assert sorted(seen) == sorted(reader[:]["id"])
    assert seen != reader[:]["id"]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_by_number_have_other_segments_in_other_epochs(out: Path, workers: int) -> None:
    whole, alone = Samples(opened(out)), opened(out)
    loader = DataLoader(whole, batch_size=100, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for epoch in (0, 1):
        whole.set_epoch(epoch)
        alone.epoch = epoch
        [batch] = loader
        assert batch["image.segment"].tolist() == alone[:]["image.segment"].tolist()
        found.append(batch["image.segment"].tolist())
    assert found[0] != found[1]


def test_a_step_of_training_may_change_its_batch(out: Path) -> None:
    reader = opened(out, shuffle=False)
    for batch in Loader(reader):
        batch["image.embedding"].mul_(0)
    assert all(batch["image.embedding"].any() for batch in reader)


def test_workers_read_no_file_again(out: Path) -> None:
    """What was read lies in memory once: also for workers that are started anew, and not forked."""
    loader = Loader(opened(out), num_workers=1, multiprocessing_context="spawn")
    paths = list((out / "embeddings/image").iterdir())
    for path in paths:
        path.rename(path.with_suffix(".gone"))
    try:
        assert len(list(loader)) == 8
    finally:
        for path in paths:
            path.with_suffix(".gone").rename(path)


def run_alone(out: Path, program: str) -> None:
    """Run a program in a process of its own: frameworks start threads, which tests that fork could not bear."""
    head = f"""
import numpy as np
from mmembed.reader import open_dataset

def opened():
    return open_dataset({str(out)!r}, ("image", "text"), {COLUMNS!r}, shuffle=True, batch_size=8)

reader, alone = opened(), opened()
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


def test_batches_of_jax(out: Path) -> None:
    program = """
import jax.numpy as jnp
from mmembed.reader.jax import batches

for epoch in range(2):
    for batch, other in zip(batches(reader), alone, strict=True):
        assert isinstance(batch["image.embedding"], jnp.ndarray) and batch.keys() == other.keys()
        for name, value in other.items():
            same = batch[name] == value
            assert np.asarray(same).all()
assert reader.state_dict() == alone.state_dict() and reader.epoch == 2

import jax
from mmembed.errors import UsageError

times = open_dataset(alone.unit_reader.source.location, "image", ["metadata.milliseconds"])
try:
    list(batches(times))
except UsageError as error:
    assert "metadata.milliseconds has numbers of more than 32 bits" in str(error)
else:
    raise AssertionError("numbers were cut")
jax.config.update("jax_enable_x64", True)
assert [int(batch["metadata.milliseconds"][0]) for batch in batches(times)] == [1_700_000_000_000]
"""
    run_alone(out, program)


def test_batches_of_tensorflow(out: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow has no wheel for this Python")
    program = """
from mmembed.reader.tensorflow import dataset

batches = dataset(reader)
for epoch in range(2):
    for batch, other in zip(batches, alone, strict=True):
        assert batch.keys() == other.keys()
        for name, value in other.items():
            found = batch[name].numpy()
            if isinstance(value, list):
                assert [text.decode() for text in found.tolist()] == value
            else:
                assert found.dtype == value.dtype and (found == value).all()
assert batches.element_spec["image.embedding"].shape.as_list() == [None, 6]
assert reader.state_dict() == alone.state_dict() and reader.epoch == 2

from mmembed.errors import UsageError
try:
    dataset(open_dataset(alone.unit_reader.source.location, "image", ["embedding", "span"]))
except UsageError as error:
    assert "image.span can't be a tensor" in str(error)
else:
    raise AssertionError("lists of numbers of any length were taken for tensors")

asking = open_dataset(alone.unit_reader.source.location, "image", neighbors="text", k=2)
[names, *_] = [batch["neighbors.id"].numpy() for batch in dataset(asking)]
assert names.shape == (len(asking), 2) and isinstance(names[0, 0], bytes)
"""
    run_alone(out, program)
