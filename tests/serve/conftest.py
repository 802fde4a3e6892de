"""A data set of 80 records, served."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from command import wait_for
from fastapi.testclient import TestClient

from mmembed.search import Searcher
from mmembed.serve.app import create_app
from mmembed.serve.settings import Settings

Connect = Callable[..., TestClient]


@contextmanager
def listening(searcher: Searcher, settings: Settings) -> Iterator[str]:
    """A server at a real socket; its address."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(searcher, settings), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive(), 30, "the server")
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def searcher(small: Path) -> Searcher:
    return Searcher.open(small)


@pytest.fixture(scope="session")
def records(small: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says, by id."""
    lines = (small.parent / "manifest.jsonl").read_text("utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="session")
def picture(small: Path, records: dict[str, dict[str, Any]]) -> Path:
    return small.parent / str(next(row["image"] for row in records.values() if "image" in row))


@pytest.fixture(scope="session")
def sound(small: Path, records: dict[str, dict[str, Any]]) -> Path:
    return small.parent / str(next(row["audio"] for row in records.values() if "audio" in row))


@pytest.fixture
def connect(searcher: Searcher) -> Iterator[Connect]:
    """Makes a client of a server with some settings."""
    with ExitStack() as stack:

        def made(**settings: Any) -> TestClient:
            app = create_app(searcher, Settings(**settings))
            return stack.enter_context(TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False))

        yield made


@pytest.fixture(scope="session")
def client(searcher: Searcher) -> Iterator[TestClient]:
    """Of a server with the usual settings, which all tests share."""
    with TestClient(
        create_app(searcher, Settings()), base_url="http://localhost:8000", raise_server_exceptions=False
    ) as c:
        yield c


@pytest.fixture(scope="session")
def address(searcher: Searcher) -> Iterator[str]:
    """Of a server at a real socket, which all tests share."""
    with listening(searcher, Settings()) as found:
        yield found


@pytest.fixture
def listen(searcher: Searcher) -> Callable[[Settings], AbstractContextManager[str]]:
    """Starts a server with other settings at a real socket, for its address."""
    return lambda settings: listening(searcher, settings)
