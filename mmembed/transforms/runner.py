"""Run a pipeline: on all cores of this machine, or wherever Beam's own flags say."""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from threadpoolctl import threadpool_limits

from mmembed import errors
from mmembed.engine import ONE_THREAD, Engine
from mmembed.errors import CrashError, MmembedError, UsageError
from mmembed.files import Place
from mmembed.transforms.processes import (
    deaths,
    first_death,
    hide_lost_connections,
    kill_processes,
    nursery,
    process_environment,
)
from mmembed.watch import STUCK

_GO_ON = ". What was finished is kept: run the same command again to go on"
_CONNECT_SECONDS = 10.0
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", re.MULTILINE)


def pipeline(engine: Engine, pieces: int) -> beam.Pipeline:
    """An empty pipeline for so many pieces of work. On this machine, one worker needs no process of its own, unless
    what it does may crash."""
    if engine.beam_flags:
        check_beam_flags(engine.beam_flags)
        options = PipelineOptions(list(engine.beam_flags))
        named = options.view_as(StandardOptions).runner
        return beam.Pipeline(None if named else FnApiRunner(), options)
    workers = min(engine.workers, pieces)
    # The class, not the name: Beam's default, DirectRunner, first tries to download another runner.
    if workers == 1 and not engine.isolated:
        return beam.Pipeline(FnApiRunner(), PipelineOptions([]))
    return beam.Pipeline(FnApiRunner(process_environment()), PipelineOptions([f"--direct_num_workers={workers}"]))


def prepare(engine: Engine) -> None:
    """Before there are other threads: what makes the worker processes of this machine quick to start."""
    if engine.is_here:
        nursery()


def check_beam_flags(flags: tuple[str, ...], places: Sequence[Place] = ()) -> None:
    """Refuse what can't work, before anything is done.

    Args:
        places: what workers read and write.

    Raises:
        UsageError: a flag is none of Beam's (which would drop it with a warning), or the runner can't be used.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for options in [PipelineOptions, *PipelineOptions.__subclasses__()]:
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UsageError(f"in the flags for Beam after `--`: {error}") from error
    if unknown:
        raise UsageError(f"Beam knows no flag {unknown[0]!r}; flags of mmembed stand before `--`")
    runner = (PipelineOptions(list(flags)).view_as(StandardOptions).runner or "").rsplit(".", 1)[-1].lower()
    if runner.startswith("dask"):
        raise UsageError(
            "Beam's DaskRunner loses data and reports success (of several outputs it computes the last one alone): use "
            "--workers on one machine, or another runner"
        )
    if runner.startswith("dataflow") and (here := [path for path in places if isinstance(path, Path)]):
        raise UsageError(
            f"{here[0]} is a place of this machine, which Dataflow's workers don't see: give a URL of gs://"
        )


def check_job_server(flags: tuple[str, ...]) -> None:
    """Raise UsageError where a job would be given to a server that isn't there: Beam waits for it for five minutes."""
    options = PipelineOptions(list(flags))
    endpoint = options.view_as(PortableOptions).job_endpoint
    if (options.view_as(StandardOptions).runner or "").endswith("PortableRunner") and not endpoint:
        raise UsageError("PortableRunner needs the job server's address, --job_endpoint=HOST:PORT")
    if endpoint and endpoint != "embed":
        host, _, port = endpoint.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"nothing answers at --job_endpoint={endpoint} ({error}): start the job server") from error


def run(stage: str, elements: list[Any], transform: beam.PTransform, engine: Engine, pieces: int | None = None) -> None:
    """Run `Create(elements) | transform` to its end.

    `Create` spreads the elements over the workers.

    Args:
        pieces: how many pieces of work the transform makes of the elements, where it spreads those.

    Raises:
        CrashError: a worker process of this machine died.
        MmembedError: the pipeline failed otherwise; the message is the last line of the worker's own.
    """
    os.environ.update(ONE_THREAD)  # a process a core, each with one thread: more threads than cores are slower
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    threading.excepthook = hide_lost_connections
    deaths.clear()
    try:
        job = pipeline(engine, len(elements) if pieces is None else pieces)
        (taken,), _ = transform.get_type_hints().input_types
        _ = job | "Units" >> beam.Create(elements).with_output_types(taken) | stage >> transform
    # An unknown runner, a flag that it lacks, a package that it needs, checks that Beam's own transforms don't pass.
    except (ValueError, ImportError, beam.typehints.TypeCheckError) as error:
        raise UsageError(f"Beam can't run with the flags after `--`: {' '.join(str(error).split())}") from error
    result = None
    try:
        with threadpool_limits(1):
            result = job.run()
            state = result.wait_until_finish()
    except MmembedError as error:
        raise type(error)(_without_place(str(error))) from error
    except KeyboardInterrupt:
        if engine.is_here:
            kill_processes()
        elif result:
            result.cancel()  # what still runs would write where another command may be at work by then
        raise
    except Exception as error:
        # An exception of a worker process arrives as the text of its traceback, and an interruption as its name.
        there = isinstance(error, RuntimeError) and _EXCEPTION.search(str(error))
        text = str(error) if there else "".join(traceback.format_exception(error))
        if engine.is_here and (death := first_death()):
            raise _crash(*death) from error
        raise _from_traceback(stage, text) from error
    if state != PipelineState.DONE:  # cancelled or drained, which Dataflow's runner takes for an end like any other
        raise MmembedError(f"{stage} stopped: the job is {state}{_GO_ON}")


def _crash(pid: int, code: int) -> CrashError:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    how = "was stuck for longer than --timeout" if code == STUCK else how
    return CrashError(f"a worker process {how}", pid, max(0, -code))


def _without_place(message: str) -> str:
    """A message without the name of the transform, which Beam appends and which tells the user nothing."""
    return message.partition(" [while running ")[0]


def _from_traceback(stage: str, text: str) -> BaseException:
    lines = [line for line in text.splitlines() if _EXCEPTION.match(line)]
    last = _without_place(lines[-1] if lines else text.strip().splitlines()[-1])
    if last.endswith("Error:"):  # Dataflow's runner says the reason in the lines that follow, or None
        reason = " ".join(text.strip().rpartition(last)[2].split())
        last = "the job failed, and Dataflow gives no reason: see the job's page" if reason in ("", "None") else reason
    name, _, message = last.partition(": ")
    if name == "KeyboardInterrupt":  # it met a step that ran in this process
        return KeyboardInterrupt()
    kind = getattr(errors, name.removeprefix("mmembed.errors."), None)
    if isinstance(kind, type) and issubclass(kind, MmembedError):
        return kind(message)
    places = re.findall(r'File "([^"]+)", line (\d+)', text.partition("\nDuring handling of")[0])
    place = f" (at {':'.join(places[-1])})" if places else ""
    return MmembedError(f"{stage} stopped: {last}{place}{_GO_ON}")
