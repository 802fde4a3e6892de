from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmembed.errors import UsageError
from mmembed.reader.memory import Shared


def fill(shared: Shared) -> None:
    np.frombuffer(shared.map, np.uint8)[:] = 7


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_see_what_others_write(on_disk: bool, start: str) -> None:
    shared = Shared(100, on_disk)
    assert not np.frombuffer(shared.map, np.uint8).any()
    context: Any = multiprocessing.get_context(start)
    process = context.Process(target=fill, args=(shared,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (np.frombuffer(shared.map, np.uint8) == 7).all()


def test_what_another_process_had_is_gone_with_it() -> None:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, pickle.dumps(Shared(100, on_disk=False)))
        os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads(os.read(reading, 10_000)) is None


def test_another_file_under_the_same_number_is_not_taken_for_it() -> None:
    shared = Shared(100, on_disk=False)
    make, (process, file, inode, size) = shared.__reduce__()
    assert make(process, file, inode, size) is not None
    assert make(process, file, [inode[0], inode[1] + 1], size) is None


def test_arrays_outlive_it_and_files_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        values = np.frombuffer(Shared(4096, on_disk=True).map, np.uint8)
    assert not values.any()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match=f"{tmp_path} can't take them.*set TMPDIR"):
        Shared(1 << 60, on_disk=True)
    assert not list(tmp_path.iterdir())
