"""A command on a worker: for launchers that may not wait for what they launch, so that something else must."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from dataclasses import dataclass

import apache_beam as beam

from mmembed.dataset import LOCK_SECONDS
from mmembed.errors import MmembedError

_LOCKED = "is writing into"  # what `dataset.locked` says

Words = tuple[str, ...]


@beam.typehints.with_input_types(Words)
@beam.typehints.with_output_types(str)
@dataclass
class RunCommand(beam.PTransform):
    """Words of commands of `mmembed` to what they print, each run on a worker by a process of its own.

    What a command says on standard error goes to the worker's log as it comes. A command that fails is tried again by
    the runner, as any element: it goes on where it was.
    """

    def expand(self, commands: beam.PCollection[Words]) -> beam.PCollection[str]:
        return commands | "Run" >> beam.Map(run_command)


def run_command(words: Words) -> str:
    """Run a command to its end; one that meets the lock of a try whose worker was lost waits until it is forgotten.

    Raises:
        MmembedError: it failed; the message is the last line of its own.
    """
    try:
        return _run(words)
    except MmembedError as error:
        if _LOCKED not in str(error):
            raise
        time.sleep(LOCK_SECONDS)
        return _run(words)


def _run(words: Words) -> str:
    command = [sys.executable, "-m", "mmembed", *words]
    # Its few lines on standard output fit into the pipe; of those on standard error there may be any number.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    line = ""
    for line in map(str.strip, process.stderr):
        logging.getLogger("mmembed").info(line)
    if code := process.wait():
        raise MmembedError(f"{words[0]} ended with exit code {code}: {line.removeprefix('mmembed: ')}")
    return process.stdout.read()
