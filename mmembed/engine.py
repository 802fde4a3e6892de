"""Where pipelines run, as a value that needs no Beam."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mmembed.errors import UsageError

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a process that computes with one thread, for libraries that are loaded later."""


def use_one_thread() -> None:
    """For a worker process, whoever started it, and for what measures what one does."""
    from threadpoolctl import threadpool_limits

    os.environ.update(ONE_THREAD)  # libraries that are loaded later
    threadpool_limits(1)  # those that are there


@dataclass(frozen=True)
class Engine:
    """Where pipelines run.

    Attributes:
        workers: processes on this machine, at most.
        beam_flags: Beam's own flags; with any of them, they alone decide.
        isolated: whether even one worker is a process of its own, because what it does may crash.
    """

    workers: int
    beam_flags: tuple[str, ...] = ()
    isolated: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"workers = {self.workers}: must be at least 1")

    @property
    def is_here(self) -> bool:
        """Whether its workers are processes of this machine that are watched (`transforms.processes`)."""
        return not self.beam_flags
