"""What a runner's monitoring shows of each step: counters of what went through, distributions of how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from apache_beam.metrics import Metrics

NAMESPACE = "mmembed"

T = TypeVar("T")


def count(name: str, by: int = 1) -> None:
    """Add to a counter."""
    Metrics.counter(NAMESPACE, name).inc(by)


def observe(name: str, value: float) -> None:
    """A value of a distribution, which holds whole numbers."""
    Metrics.distribution(NAMESPACE, name).update(round(value))


@contextmanager
def timed(step: str) -> Iterator[None]:
    """What is done within takes microseconds of the distribution <step>_us."""
    start = time.perf_counter()
    yield
    observe(f"{step}_us", 1e6 * (time.perf_counter() - start))


def timed_each(step: str, items: Iterable[T]) -> Iterator[T]:
    """Each item of what is made as it is taken, its making timed: not what is done with it between."""
    making = iter(items)
    while True:
        with timed(step):
            item = next(making, None)
        if item is None:
            return
        yield item
