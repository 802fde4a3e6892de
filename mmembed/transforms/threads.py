"""One thread a process for the libraries of linear algebra: their number decides the last bits of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from mmembed.engine import use_one_thread
from mmembed.transforms.monitoring import timed


@dataclass
class OneThread(beam.DoFn):
    """Calls a function with each element, in a process of one thread; gives what it gives.

    Attributes:
        step: what the time that it takes is counted under.
    """

    step: str
    function: Callable[[Any], Any]

    def setup(self) -> None:
        use_one_thread()

    def process(self, element: Any) -> Iterator[Any]:
        with timed(self.step):
            found = self.function(element)
        yield found
