"""Worker processes of the local runner that are watched: where one dies, the run ends.

Beam's own handler waits for ever for what a dead process (killed where memory ran out, say) was to answer.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf import json_format, text_format
from grpc import RpcError

from mmembed.transforms import worker


def process_environment() -> SubprocessSDKEnvironment:
    """The environment whose workers are processes of `worker`."""
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(WatchedProcess)
    return SubprocessSDKEnvironment.from_command_string(worker.NAME)


class _Nursery:
    """The process that starts workers, and those that are alive."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        # A fork of this process has loaded all already. But one of a process with other threads may hold their locks.
        if sys.platform == "linux" and threading.active_count() == 1:
            worker.load()
            if not os.fork():
                os.close(self._requests)
                os.close(self._answers)
                worker.serve(requests, answers)
        else:
            command = [sys.executable, "-c", f"from {worker.__name__} import main; main()"]
            subprocess.Popen(command, stdin=requests, stdout=answers)
        os.close(requests)
        os.close(answers)
        self._started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._alive: set[int] = set()
        self._codes: dict[int, queue.SimpleQueue[int]] = {}
        self._asking = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, environment: dict[str, str]) -> int:
        """The pid of a new worker."""
        with self._asking:
            os.write(self._requests, json.dumps(environment).encode() + b"\n")
            if pid := self._started.get():
                return pid
        raise RuntimeError("the process that starts workers has ended: run the same command again to go on")

    def wait(self, pid: int) -> int:
        """The exit code of a worker, as of `subprocess`, when it has ended."""
        return self._codes[pid].get()

    def kill(self) -> None:
        """Kill all workers."""
        for pid in list(self._alive):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _listen(self) -> None:
        with os.fdopen(self._answers, "r") as answers:
            for line in answers:
                pid, *code = map(int, line.split())
                if code:
                    self._alive.discard(pid)
                    self._codes[pid].put(code[0])
                else:
                    self._codes[pid] = queue.SimpleQueue()
                    self._alive.add(pid)
                    self._started.put(pid)
        nursery.cache_clear()
        self._started.put(0)
        for pid in self._alive:
            self._codes[pid].put(-signal.SIGKILL)


@cache
def nursery() -> _Nursery:
    """The process that starts workers. Whoever asks for it before it has threads makes it quick to start."""
    return _Nursery()


def kill_processes() -> None:
    """Kill all worker processes: after an interruption, which a second one may have kept from ending them."""
    nursery().kill()


_NEWS_SECONDS = 0.5

deaths: list[tuple[int, int]] = []
"""Processes that died while a run needed them: (pid, exit code as of `subprocess`), first things first."""


def first_death() -> tuple[int, int] | None:
    """The first of `deaths`, None where none comes: that a connection is lost may be known before why it is."""
    end = time.monotonic() + _NEWS_SECONDS
    while not deaths and time.monotonic() < end:
        time.sleep(0.02)
    return deaths[0] if deaths else None


class WatchedProcess(GrpcWorkerHandler):
    """One worker process."""

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._closed, self._ended = threading.Event(), threading.Event()
        self._run: list[WatchedProcess] = vars(grpc_server).setdefault("mmembed_processes", [])
        self._run.append(self)

    def start_worker(self) -> None:
        options = json_format.MessageToDict(self.provision_info.provision_info.pipeline_options)
        self._nursery, self._pid = nursery(), 0
        self._ended.set()  # until it has begun, for whoever waits for its end
        self._pid = self._nursery.start(
            {
                "WORKER_ID": self.worker_id,
                "PIPELINE_OPTIONS": json.dumps(options),
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
            }
        )
        self._ended.clear()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        code = self._nursery.wait(self._pid)
        self._ended.set()
        if not self._closed.is_set():
            deaths.append((self._pid, code))
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        while not self._closed.wait(0.2):  # until then the runner may ask more of it
            for process in self._run:
                process.fail(f"WorkerError: a worker process {how}; if memory ran out, use fewer --workers")

    def fail(self, message: str) -> None:
        """Answer all that the runner waits for with an error."""
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=message))

    def close(self) -> None:
        self._closed.set()
        if self._pid and self.control_conn._futures_by_id:  # the run failed: nobody waits for what this one still does
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.fail("WorkerError: the run has ended")
        super().close()

    def stop_worker(self) -> None:
        self._ended.wait()


def hide_lost_connections(arguments: threading.ExceptHookArgs) -> None:
    """For `threading.excepthook`: a thread of Beam's that read from a dead process says nothing that helps."""
    if not issubclass(arguments.exc_type or BaseException, RpcError):
        threading.__excepthook__(arguments)
