"""Services of this machine that tests start: a process each, killed at the end."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from command import kill_group, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


@contextmanager
def serving(command: Sequence[str], port: int, environment: Mapping[str, str], folder: Path) -> Iterator[None]:
    """A process that serves on a port, in a process group and a working directory of its own; `folder` gets its log."""
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: listens(port), 60, f"{command}, see {log.name}")
            yield
        finally:
            kill_group(process.pid)
            process.wait()
