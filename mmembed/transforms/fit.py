"""Features to maps: moments block by block, merged, and fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import apache_beam as beam

from mmembed import encryption
from mmembed.fit import FOLDS
from mmembed.moments import Moments, merge_all
from mmembed.transforms.monitoring import count
from mmembed.transforms.threads import OneThread

Folds = list[Moments]
Block = tuple[int, tuple[int, ...]]


@beam.typehints.with_input_types(Block)
@beam.typehints.with_output_types(str)
@dataclass
class AccumulateMoments(beam.PTransform):
    """Blocks of units to files of their moments, one set for each fold of the training records; gives their names.

    A block is a fixed run of units: how many there are, and so how sums round, depends on the data alone.
    """

    accumulate: Callable[[int, tuple[int, ...]], str]

    def expand(self, blocks: beam.PCollection[Block]) -> beam.PCollection[str]:
        return blocks | "Accumulate" >> beam.ParDo(OneThread("accumulate", self._accumulate))

    def _accumulate(self, block: Block) -> str:
        count("accumulated_units", len(block[1]))
        return self.accumulate(*block)


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(tuple[list[Moments], list[str]])
class MergeMoments(beam.CombineFn):
    """Files of moments to the moments of all records, fold by fold, by Chan's update; and the files' names, in order.

    Floating-point addition is not associative, and a runner merges as it likes. So what is combined are names, and the
    moments behind them are merged in the order of the names: the same bytes for any number of workers, and no matrix
    crosses a shuffle.
    """

    def __init__(self, read: Callable[[str, int], Moments]) -> None:
        self._read = read
        self._state = encryption.state()

    def setup(self) -> None:
        """On the worker that merges."""
        self._state.enter()

    def create_accumulator(self) -> list[str]:
        return []

    def add_input(self, accumulator: list[str], name: str) -> list[str]:
        return [*accumulator, name]

    def merge_accumulators(self, accumulators: Iterable[list[str]]) -> list[str]:
        return list(chain.from_iterable(accumulators))

    def extract_output(self, accumulator: list[str]) -> tuple[Folds, list[str]]:
        names = sorted(accumulator)
        return [merge_all(self._read(name, fold) for name in names) for fold in range(FOLDS)], names


@beam.typehints.with_input_types(Block)
@beam.typehints.with_output_types(str)
@dataclass
class FitMaps(beam.PTransform):
    """Blocks of units to the files of maps/; gives their names.

    Attributes:
        accumulate: writes the moments of a block by fold, and gives the file's name.
        read: the moments of one fold in such a file.
        write: moments of all training records by fold, and the names of all blocks, to maps; gives the files' names.
    """

    accumulate: Callable[[int, tuple[int, ...]], str]
    read: Callable[[str, int], Moments]
    write: Callable[[Folds, list[str]], list[str]]

    def expand(self, blocks: beam.PCollection[Block]) -> beam.PCollection[str]:
        return (
            blocks
            | AccumulateMoments(self.accumulate)
            | "Merge" >> beam.CombineGlobally(MergeMoments(self.read)).without_defaults()  # shuffles a few file names
            | "Write" >> beam.ParDo(OneThread("fit", self._write))
            | "Names" >> beam.FlatMap()
        )

    def _write(self, merged: tuple[Folds, list[str]]) -> list[str]:
        return self.write(*merged)
