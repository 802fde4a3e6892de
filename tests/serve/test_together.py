"""Searches that wait at the same time are done together, and none suffers from another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import HTTPException

from mmembed.errors import UsageError
from mmembed.search import Searcher
from mmembed.serve.backend import Backend
from mmembed.serve.lane import Lane
from mmembed.serve.questions import Options
from mmembed.serve.together import MOST, Together


def test_what_waits_is_done_together() -> None:
    seen: list[list[int]] = []
    go = threading.Event()

    def work(some: Sequence[int]) -> list[int | Exception]:
        seen.append(list(some))
        go.wait(10)
        return [ValueError(str(one)) if one == 7 else 10 * one for one in some]

    async def main() -> list[Any]:
        lane = Lane(1, 100, "test")
        together = Together(work, lane, 1, 100)
        tasks = [asyncio.create_task(together.ask(number)) for number in range(40)]
        await asyncio.sleep(0.1)
        go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert await together.ask(50) == 500  # and it goes on
        lane.close()
        return found

    found = asyncio.run(main())
    assert isinstance(found.pop(7), ValueError)
    assert found == [10 * number for number in range(40) if number != 7]
    assert max(map(len, seen)) == MOST and [one for some in seen for one in some] == [*range(40), 50]


def test_work_that_fails_leaves_nobody_waiting() -> None:
    async def main() -> None:
        lane = Lane(1, 100, "test")
        together: Together[int, int] = Together(lambda some: [1 // 0 for _ in some], lane, 1, 2)
        found = await asyncio.gather(*(together.ask(number) for number in range(4)), return_exceptions=True)
        assert [type(one) for one in found] == [ZeroDivisionError] * 2 + [HTTPException] * 2
        lane.close()

    asyncio.run(main())


def test_questions_together_are_answered_as_each_alone(searcher: Searcher) -> None:
    backend = Backend(searcher, 1)
    questions = [
        Options(text="three red stars", to="image"),
        Options(text="\x00", to="image"),
        Options(text="a blue circle", without="green", to="image"),
        Options(text="a blue circle", to="text", k=3),
        Options(id="nobody", to="text", k=3),
    ]
    found = backend.search(questions)
    assert [type(one) for one in found if isinstance(one, Exception)] == [UsageError] * 2
    assert isinstance(found[1], UsageError) and "'nobody'" in str(found[4])
    for question, together in zip(questions, found, strict=True):
        (alone,) = backend.search([question])
        if not isinstance(together, Exception) and not isinstance(alone, Exception):
            assert [(hit.id, hit.rank) for hit in together.hits] == [(hit.id, hit.rank) for hit in alone.hits]
            scores = [[hit.score for hit in answer.hits] for answer in (together, alone)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
