"""The command line in a process of its own, as a user starts it, and what it leaves on disk."""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmembed.dataset import LOCK
from mmembed.index import ENTRIES

ROOT = Path(__file__).parents[1]
FOLDERS = ("features", "records", "errors", "maps", "embeddings", "index")

# Worker processes, wherever they are started, find the package and the encoders of the tests.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

IN_PROCESS = ("--", "--runner=FnApiRunner")
"""Last words of a command whose pipelines run in its own process: quick to start, and not safe from crashes."""

Result = subprocess.CompletedProcess[str]
TIMEOUT = 240
"""Seconds that a command may take."""


COLD = ("-m", "mmembed")
"""For `mmembed(python=…)`: a Python that is started for this command alone."""


def arguments(*words: object, python: tuple[str, ...] = COLD) -> list[str]:
    return [sys.executable, *python, *map(str, words)]


def mmembed(*words: object, expect: int = 0, python: tuple[str, ...] = ()) -> Result:
    """Run a command to its end and check its exit code.

    Args:
        python: words after `python` that run the command; without them, its process comes from `warm.py`.
    """
    if python:
        command = arguments(*words, python=python)
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)
    else:
        result = _run_warm(list(map(str, words)))
    assert result.returncode == expect, f"exit code {result.returncode} of {words}\n{result.stdout}\n{result.stderr}"
    return result


@cache
def _warm() -> subprocess.Popen[str]:
    """The process that forks those of commands; it ends with this one, whose end closes a pipe."""
    command = [sys.executable, str(ROOT / "tests" / "warm.py")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)
    atexit.register(process.communicate)
    return process


def _run_warm(words: list[str]) -> Result:
    process = _warm()
    assert process.stdin and process.stdout
    with TemporaryDirectory() as folder:
        outputs = {name: Path(folder, name) for name in ("stdout", "stderr")}
        for path in outputs.values():
            path.touch()
        places = {name: str(path) for name, path in outputs.items()}
        request = {"words": words, "environment": ENVIRONMENT, "folder": str(Path.cwd()), **places}
        print(json.dumps(request), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], TIMEOUT)[0]:
            kill_group(process.pid)
        code = process.stdout.readline()
        if not code:
            _warm.cache_clear()
            raise subprocess.TimeoutExpired(words, TIMEOUT)
        return subprocess.CompletedProcess(words, int(code), *(path.read_text() for path in outputs.values()))


def complaint(result: Result) -> str:
    """The one line that a failed command says of its failure; nothing of it is a traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("mmembed")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command that runs on, in a process group of its own; the group is killed at the end."""
    process = subprocess.Popen(
        arguments(*words),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process.pid)
        process.communicate()


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def members(group: int) -> dict[int, str]:
    """The living processes of a group, and their names and command lines (Linux)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            state, _, pgid = rest.split()[:3]
            if int(pgid) == group and state != "Z":
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = f"{name.partition('(')[2]}: {line}"
        except OSError:
            continue  # it ended meanwhile
    return found


def content(root: Path, folders: tuple[str, ...] = FOLDERS) -> dict[str, bytes]:
    """The bytes of all files below some folders of a data set; without measured times, which are never the same."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    if ENTRIES in found:
        found[ENTRIES] = re.sub(rb'"milliseconds": [\d.e-]+', b'"milliseconds": 0', found[ENTRIES])
    return found


def times(root: Path, *folders: str) -> dict[str, int]:
    """When the files below a data set, or some of its folders, were written."""
    tops = [root / folder for folder in folders] if folders else [root]
    paths = (
        path for top in tops for path in top.rglob("*") if path.name != LOCK
    )  # which is written by whoever takes it
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths}
