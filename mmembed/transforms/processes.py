"""Worker processes of the local runner that are watched: where one dies, the run ends.

Beam's own handler waits for ever for what a dead process (killed where memory ran out, say) was to answer.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf import json_format, text_format
from grpc import RpcError


def process_environment() -> SubprocessSDKEnvironment:
    """The environment whose workers are processes of `mmembed.worker`."""
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(WatchedProcess)
    return SubprocessSDKEnvironment.from_command_string(f"{shlex.quote(sys.executable)} -m mmembed.worker")


def kill_processes() -> None:
    """Kill all worker processes: after an interruption, which a second one may have kept from ending them."""
    for process in list(_running):
        process.kill()


LAUNCHER = "MMEMBED_LAUNCHER"
"""The variable that tells a worker process its launcher's number: that may be dead before the worker looks."""

_running: set[subprocess.Popen[bytes]] = set()

deaths: list[tuple[int, int]] = []
"""Processes that died while a run needed them: (pid, exit code as of `subprocess`), first things first."""


class WatchedProcess(GrpcWorkerHandler):
    """One worker process."""

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._command = shlex.split(command.decode())
        self._closed = threading.Event()
        self._run: list[WatchedProcess] = vars(grpc_server).setdefault("mmembed_processes", [])
        self._run.append(self)

    def start_worker(self) -> None:
        options = json_format.MessageToDict(self.provision_info.provision_info.pipeline_options)
        self._process = subprocess.Popen(
            self._command,
            env={
                **os.environ,
                "WORKER_ID": self.worker_id,
                LAUNCHER: str(os.getpid()),
                "PIPELINE_OPTIONS": json.dumps(options),
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
            },
        )
        _running.add(self._process)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        code = self._process.wait()
        _running.discard(self._process)
        if not self._closed.is_set():
            deaths.append((self._process.pid, code))
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
        if self.control_conn._futures_by_id:  # the run failed: nobody waits for what this one still does
            self._process.kill()
            self.fail("WorkerError: the run has ended")
        super().close()

    def stop_worker(self) -> None:
        self._process.wait()


def hide_lost_connections(arguments: threading.ExceptHookArgs) -> None:
    """For `threading.excepthook`: a thread of Beam's that read from a dead process says nothing that helps."""
    if not issubclass(arguments.exc_type or BaseException, RpcError):
        threading.__excepthook__(arguments)
