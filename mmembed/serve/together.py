"""Searches that wait for a thread at the same time are done together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from fastapi import HTTPException

from mmembed.serve.lane import Lane

T = TypeVar("T")
A = TypeVar("A")

MOST = 16
"""Searches that are done together, at most: more save little, and the first of them waits for the last."""


class Together(Generic[T, A]):
    """Nobody waits for others to come: a thread that gets free takes all that are there. So a lone search begins at
    once, and the more there are, the less each of them costs."""

    def __init__(self, work: Callable[[Sequence[T]], Sequence[A | Exception]], lane: Lane, threads: int, waiting: int):
        """
        Args:
            work: gives for each of some searches its answer or its error.
            lane: has the threads.
            threads: how many of them work on searches.
            waiting: how many searches may wait.
        """
        self._work, self._lane, self._free, self._most = work, lane, threads, waiting
        self._waiting: deque[tuple[T, asyncio.Future[A]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds a task only weakly

    async def ask(self, search: T) -> A:
        """The answer to a search.

        Raises:
            HTTPException: 503, too many wait.
            Exception: what the work says of this search.
        """
        if len(self._waiting) >= self._most:
            raise HTTPException(503, "too many requests wait: come again in a second", {"Retry-After": "1"})
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((search, answer))
        if self._free:
            self._free -= 1
            task = asyncio.create_task(self._empty())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _empty(self) -> None:
        """One thread's work, until nothing waits."""
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                self._give(taken, await self._results([search for search, _ in taken]))
        finally:
            self._free += 1

    async def _results(self, searches: Sequence[T]) -> Sequence[A | Exception]:
        try:
            return await self._lane.run(partial(self._work, searches))
        except Exception as error:  # whatever it is, each of those who wait must hear of it
            return [error] * len(searches)

    @staticmethod
    def _give(taken: Sequence[tuple[T, asyncio.Future[A]]], results: Sequence[A | Exception]) -> None:
        for (_, answer), result in zip(taken, results, strict=True):
            if answer.done():  # nobody waits for it any more
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
