"""Threads for work that takes long beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException

T = TypeVar("T")


class Lane:
    """Some threads; who comes when too many wait is told to come again, for an answer that nobody waits for any more
    holds up those that somebody does."""

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._most, self._held = threads + waiting, 0

    async def run(self, work: Callable[[], T]) -> T:
        """What the work gives.

        Raises:
            HTTPException: 503, too many wait.
        """
        if self._held >= self._most:
            raise HTTPException(503, "too many requests wait: come again in a second", {"Retry-After": "1"})
        self._held += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._held -= 1

    def close(self) -> None:
        """Wait for what has begun; leave what has not."""
        self._threads.shutdown(cancel_futures=True)
