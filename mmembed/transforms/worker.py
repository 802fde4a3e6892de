"""Worker processes of the local runner: Beam's own, without its chatter, forked from one that has loaded the libraries.

Loading them takes longer than all that a small run does. So one process does it, before it has any threads, and becomes
a worker at each request: a line of JSON, the variables of its environment. Answers are lines too: "PID", of the worker
that was started, and "PID CODE" when it has ended. It ends, and its workers with it, where nobody can ask any more,
however the launcher ended: a worker that outlived it would race the next.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

NAME = "mmembed.worker"
"""What `ps` and `top` show."""

_LOOK_SECONDS = 0.05  # from one look at workers that may have ended to the next
_MALLOC = {-1: 10**9, -3: 10**9}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)


def load() -> None:
    """What every worker needs beside this package."""
    importlib.import_module("apache_beam.runners.worker.sdk_worker_main")


def serve(requests: int, answers: int) -> NoReturn:
    """Start workers as they are asked for.

    Args:
        requests: a descriptor to read from.
        answers: one to write to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the launcher ends us
    try:
        _serve(requests, answers)
    finally:  # whatever happens: in a fork, what called us must not go on here
        os._exit(0)


def _serve(requests: int, answers: int) -> None:
    gc.freeze()  # what is there now is shared with the workers as long as no collector touches it
    workers: set[int] = set()
    waiting = b""
    while True:
        if select.select([requests], [], [], _LOOK_SECONDS)[0]:
            data = os.read(requests, 1 << 16)
            if not data:
                break
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    os.close(requests)
                    os.close(answers)
                    _work(json.loads(line))
                workers.add(pid)
                with suppress(BrokenPipeError):
                    os.write(answers, f"{pid}\n".encode())
        while workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            workers.discard(pid)
            with suppress(BrokenPipeError):
                os.write(answers, f"{pid} {os.waitstatus_to_exitcode(status)}\n".encode())
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


def _work(environment: dict[str, str]) -> NoReturn:
    """Be a worker, to its end."""
    code = 1
    try:
        os.environ.update(environment)
        _name_and_limit()
        # With a handler in place Beam adds none. A worker's errors reach the launcher as exceptions.
        handler = logging.StreamHandler()
        handler.setLevel(logging.CRITICAL + 1)
        logging.getLogger().handlers[:] = [handler]

        from apache_beam.runners.worker import sdk_worker, sdk_worker_main
        from grpc import RpcError

        from mmembed.transforms.processes import hide_lost_connections

        threading.excepthook = hide_lost_connections
        # Beam prints each failure's traceback here besides sending it to the launcher, which says what matters of it.
        vars(sdk_worker)["print"] = lambda *_, **__: None
        with suppress(RpcError):  # the launcher is gone
            sdk_worker_main.main([])
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _name_and_limit() -> None:
    """Name this process, and keep glibc from giving the heap back after each picture: 700,000 page faults."""
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(NAME)
    with suppress(AttributeError, OSError):
        for parameter, value in _MALLOC.items():
            ctypes.CDLL(None).mallopt(parameter, value)


def main() -> None:
    """In a process of its own, which is asked on standard input."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what workers print is no answer
    load()
    serve(requests, answers)
