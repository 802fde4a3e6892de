from __future__ import annotations

from pathlib import Path

import pytest

from mmembed.engine import Engine
from mmembed.errors import MmembedError
from mmembed.transforms import run
from mmembed.transforms.command import RunCommand, run_command


def test_a_command_runs_on_a_worker(tmp_path: Path) -> None:
    words = ("sample", str(tmp_path / "data"), "--records", "3")
    run("RunCommand", [words], RunCommand(), Engine(1))
    assert len((tmp_path / "data" / "manifest.jsonl").read_text("utf-8").splitlines()) == 3


def test_what_it_prints_comes_back(tmp_path: Path) -> None:
    assert run_command(("--version",)).startswith("mmembed ")


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(MmembedError, match=f"info ended with exit code 2: {tmp_path}"):
        run_command(("info", str(tmp_path)))
