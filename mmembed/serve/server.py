"""The server: a socket, a token if need be, uvicorn."""

from __future__ import annotations

import secrets
import socket
from dataclasses import replace
from urllib.parse import quote

import uvicorn

from mmembed.engine import use_one_thread
from mmembed.errors import UsageError
from mmembed.search import Searcher
from mmembed.serve.app import create_app
from mmembed.serve.settings import Settings


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def listen(settings: Settings) -> tuple[socket.socket, Settings]:
    """A socket that listens, and the settings with the port that it got.

    Raises:
        UsageError: the host is none of this machine, or the port is taken or not allowed.
    """
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(512)
    except OSError as error:
        raise UsageError(
            f"can't listen at {host}, port {settings.port}: {error.strerror}; try another --port, or 0 for any"
        ) from error
    return made, replace(settings, port=made.getsockname()[1])


def address(settings: Settings) -> str:
    """What to open in a browser."""
    host = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host.strip("[]")
    token = f"?token={quote(settings.token)}" if settings.token else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/{token}"


def serve(searcher: Searcher, settings: Settings) -> None:
    """Serve until somebody stops it. The address is printed once questions are answered.

    Raises:
        UsageError: as of `listen`, or the data set can't be searched.
    """
    use_one_thread()  # each query has a thread of its own
    opened, settings = listen(settings)
    config = uvicorn.Config(
        create_app(searcher, settings),
        log_level="warning",
        access_log=False,  # addresses hold what people look for
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    with opened:
        _Server(config, address(settings)).run([opened])


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if not self.should_exit:
            print(f"{self._address}  (stop with Ctrl-C)", flush=True)
