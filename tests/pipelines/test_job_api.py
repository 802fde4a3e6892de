"""The pipelines through Beam's real job API: what pickles there, pickles on a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command import ENVIRONMENT, arguments, content, kill_group, wait_for
from conftest import UNIT

from mmembed.dataset import Dataset
from mmembed.engine import ONE_THREAD

# The tests themselves use one thread, see conftest.py.
UNLIMITED = {name: value for name, value in ENVIRONMENT.items() if name not in ONE_THREAD}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


@contextmanager
def service(module: str, flag: str, folder: Path) -> Iterator[int]:
    """A process that serves on a port, with the modules of the package but away from its folder."""
    port = free_port()
    command = [sys.executable, "-m", f"apache_beam.runners.{module}", f"{flag}={port}"]
    with (folder / f"{module}.log").open("w") as log:
        path = os.pathsep.join(
            [str(Path(sys.executable).parent), ENVIRONMENT["PATH"]]
        )  # the pool starts a bare `python`
        process = subprocess.Popen(
            command, cwd=folder, env=UNLIMITED | {"PATH": path}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: listens(port), 60, module)
            yield port
        finally:
            kill_group(process.pid)
            process.wait()


def test_workers_outside_the_launcher_give_the_same_bytes(built: Path, faulty: Path, tmp_path: Path) -> None:
    """With as many threads as cores where nobody says otherwise, and in another working directory than the launcher."""
    out = tmp_path / "out"
    with (
        service("portability.local_job_service_main", "--port", tmp_path) as job_port,
        service("worker.worker_pool_main", "--service_port", tmp_path) as pool_port,
    ):
        beam = (
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool_port}",
        )
        here = os.path.relpath(faulty), os.path.relpath(out)
        command = arguments(*here, "--unit-records", UNIT, "--", *beam, python=("-m", "pipelines.build"))
        done = subprocess.run(command, env=UNLIMITED, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(built) != {}
    theirs, ours = (dict(Dataset.open(root).stages) for root in (out, built))
    assert theirs.pop("evaluate").summary == ours.pop("evaluate").summary  # it reads the index's times, which differ
    assert theirs == ours
