"""How a data set is served, as a value that needs no FastAPI."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field

from mmembed.errors import UsageError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""What a browser on this machine calls it."""

MAX_K = 1000
"""Answers to one query, at most."""

MAX_TEXT = 20_000
"""Characters of a text, a filter or an id that comes with a query, at most: some twenty pages."""

MAX_NAME = 4096
"""Characters of a medium's name, at most: of a path. Thumbnails are kept by it."""

MAX_SECONDS = 600
"""Of a sound that comes with a query, at most: it is encoded whole while somebody waits."""


def is_loopback(host: str) -> bool:
    """Whether a host to listen at can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """How a data set is served.

    Attributes:
        host: to listen at.
        port: likewise; 0: any that is free.
        token: without it nobody gets an answer; "": everybody does.
        max_upload: bytes of the body of a request, at most.
        threads: queries that are worked on at the same time.
        uploads: bodies of max_upload bytes that may be held, on disk or in memory, until their answers are there; of
            smaller ones more.
        waiting: requests that may wait for a thread; the next one is told to come again.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    max_upload: int = 32 * 10**6
    threads: int = field(default_factory=cores)
    waiting: int = 256
    uploads: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"port is {self.port}: it must be 0 (any that is free) to 65535")
        if self.max_upload < 1:
            raise UsageError(f"max_upload is {self.max_upload} bytes: it must be at least 1")
        if self.threads < 1:
            raise UsageError(f"threads = {self.threads}: must be at least 1")
        if self.uploads < 1:
            raise UsageError(f"uploads = {self.uploads}: must be at least 1")
        if not self.token.isascii() or any(sign.isspace() for sign in self.token):
            raise UsageError("the token travels in a header: write it in ASCII, without blanks")
        if not is_loopback(self.host) and not self.token:
            raise UsageError(f"{self.host} can be reached from other machines: whoever listens there needs a token")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names that a request may call this server by; empty: any.

        A web site whose name leads to 127.0.0.1 makes the browser of a visitor its messenger ("DNS rebinding"). It
        can't change the name in the request, and it has no token.
        """
        return () if self.token else (*LOOPBACK_NAMES, self.host)
