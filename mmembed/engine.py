"""Where pipelines run, as a value that needs no Beam."""

from __future__ import annotations

from dataclasses import dataclass

from mmembed.errors import UsageError

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a process that computes with one thread, for libraries that are loaded later."""


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
