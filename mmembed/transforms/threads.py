"""One thread a process for the libraries of linear algebra: their number decides the last bits of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from mmembed.engine import use_one_thread


@dataclass
class OneThread(beam.DoFn):
    """Calls a function with each element, in a process of one thread; gives what it gives."""

    function: Callable[[Any], Any]

    def setup(self) -> None:
        use_one_thread()

    def process(self, element: Any) -> Iterator[Any]:
        yield self.function(element)
