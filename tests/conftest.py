"""Sample sets and data sets that several tests look at; none may change them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmembed.engine import ONE_THREAD

os.environ.update(ONE_THREAD)  # as workers have it: tests run on every core already, and threads that wait spin there

import small_encoders
from command import IN_PROCESS, mmembed

from mmembed.sample import write_sample

RECORDS = 200
UNIT = 16
BROKEN_LINE = '{"id": "broken", "text": '

Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shared:
    """Makes a folder once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def manifest(shared: Shared) -> Path:
    """200 records of the sample."""
    return shared("sample", lambda folder: write_sample(folder, RECORDS, 0)) / "manifest.jsonl"


@pytest.fixture(scope="session")
def rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def faulty(manifest: Path, shared: Shared) -> Path:
    """The same records; one has a corrupt picture, one a sound that is missing, and one line is broken."""

    def fill(folder: Path) -> None:
        folder.mkdir()
        for name in ("images", "sounds"):
            (folder / name).symlink_to(manifest.parent / name)
        picture = min((manifest.parent / "images").glob("*.jpg")).read_bytes()
        (folder / "corrupt.jpg").write_bytes(picture[: len(picture) // 10])
        lines = manifest.read_text("utf-8").splitlines()
        lines[21] = json.dumps(json.loads(lines[21]) | {"image": "corrupt.jpg"})
        lines[41] = json.dumps(json.loads(lines[41]) | {"audio": "missing.flac"})
        lines.insert(60, BROKEN_LINE)
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", "utf-8")

    return shared("faulty", fill) / "manifest.jsonl"


@pytest.fixture(scope="session")
def built(faulty: Path, shared: Shared) -> Path:
    """The faulty records built with the built-in encoders by two processes."""
    return shared("built", lambda out: mmembed("build", faulty, out, "--unit-records", UNIT, "--workers", 2))


@pytest.fixture(scope="session")
def small(manifest: Path, shared: Shared) -> Path:
    """The first 80 records built with small encoders."""

    def fill(folder: Path) -> None:
        folder.mkdir()
        for name in ("images", "sounds"):
            (folder / name).symlink_to(manifest.parent / name)
        lines = manifest.read_text("utf-8").splitlines(keepends=True)[:80]
        (folder / "manifest.jsonl").write_text("".join(lines), "utf-8")
        build_small(folder / "manifest.jsonl", folder / "out")

    return shared("small", fill) / "out"


def build_small(manifest: Path, out: Path, *flags: object) -> None:
    mmembed("build", manifest, out, "--unit-records", UNIT, *small_encoders.FLAGS, *flags, *IN_PROCESS)
