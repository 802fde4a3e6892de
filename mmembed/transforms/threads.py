"""How a worker works: one thread a process for the libraries of linear algebra, whose number decides the last bits of
sums; and encrypted, where the launcher says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from mmembed import encryption
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
    state: encryption.State = field(default_factory=encryption.state)

    def setup(self) -> None:
        use_one_thread()
        self.state.enter()

    def process(self, element: Any) -> Iterator[Any]:
        with timed(self.step):
            found = self.function(element)
        yield found
