"""A stub of Dataflow's REST service: it takes jobs, runs none, and answers with the states that it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGION, PROJECT = "us-central1", "none"

_JOBS = re.compile(rf"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs(/[^/?]+)?(/messages)?(\?.*)?$")


@dataclass
class DataflowService:
    """What the stub was asked, and what it answers.

    Attributes:
        url: for `--dataflow_endpoint`.
        states: of the job, one an answer, from that to its creation on; the last one stays.
        error: what the job's messages tell, "" for none.
        jobs: the bodies of the calls that made jobs.
    """

    url: str
    states: Sequence[str]
    error: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    _answers: int = 0

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        self.jobs.append(job)
        return self.job()

    def job(self) -> dict[str, Any]:
        state = self.states[min(self._answers, len(self.states) - 1)]
        self._answers += 1
        request = self.jobs[-1]["clientRequestId"]
        return {"id": "job-1", "name": self.jobs[-1]["name"], "currentState": state, "clientRequestId": request}

    def messages(self) -> dict[str, Any]:
        message = {
            "id": "1",
            "time": "2026-01-01T00:00:00Z",
            "messageText": self.error,
            "messageImportance": "JOB_MESSAGE_ERROR",
        }
        return {"jobMessages": [message]} if self.error else {}


@contextmanager
def dataflow_service(states: Sequence[str], error: str = "") -> Iterator[DataflowService]:
    """Runs one in a thread of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(_JOBS.match(self.path) and service.create(json.loads(body)))

        def do_GET(self) -> None:
            found = _JOBS.match(self.path)
            self._answer(found and (service.messages() if found[2] else service.job()))

        def _answer(self, value: dict[str, Any] | None) -> None:
            data = json.dumps(value).encode()
            self.send_response(404 if value is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *values: Any) -> None:
            """Nothing: the default writes to standard error."""

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    service = DataflowService(f"http://localhost:{server.server_port}", states, error)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
