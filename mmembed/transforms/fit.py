"""Features to maps: moments block by block, merged, and fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import apache_beam as beam

from mmembed.moments import Moments

Folds = list[Moments]
Block = tuple[int, Folds]


@beam.typehints.with_input_types(tuple[int, tuple[int, ...]])
@beam.typehints.with_output_types(Block)
@dataclass
class AccumulateMoments(beam.PTransform):
    """Blocks of units to their moments, one for each fold of the training records.

    A block is a fixed run of units: how many there are, and so how sums round, depends on the data alone.
    """

    moments: Callable[[tuple[int, ...]], Folds]

    def expand(self, blocks: beam.PCollection[tuple[int, tuple[int, ...]]]) -> beam.PCollection[Block]:
        return blocks | beam.MapTuple(lambda number, units: (number, self.moments(units)))


class MergeMoments(beam.CombineFn):
    """Blocks' moments to those of all records, fold by fold.

    Floating-point addition is not associative, and the runner merges as it likes. So blocks are collected (they
    are few) and merged in their own order: the same bytes for any number of workers.
    """

    def create_accumulator(self) -> dict[int, Folds]:
        return {}

    def add_input(self, accumulator: dict[int, Folds], block: Block) -> dict[int, Folds]:
        return accumulator | dict([block])

    def merge_accumulators(self, accumulators: Iterable[dict[int, Folds]]) -> dict[int, Folds]:
        return reduce(lambda left, right: left | right, accumulators, {})

    def extract_output(self, accumulator: dict[int, Folds]) -> Folds:
        blocks = [accumulator[number] for number in sorted(accumulator)]
        return reduce(lambda left, right: [a.merge(b) for a, b in zip(left, right, strict=True)], blocks)


@beam.typehints.with_input_types(tuple[int, tuple[int, ...]])
@beam.typehints.with_output_types(str)
@dataclass
class FitMaps(beam.PTransform):
    """Blocks of units to the files of maps/; gives the names of the files.

    Attributes:
        moments: a block's units to its moments by fold.
        write: the moments of all training records by fold to files, whose names it gives.
    """

    moments: Callable[[tuple[int, ...]], Folds]
    write: Callable[[Folds], list[str]]

    def expand(self, blocks: beam.PCollection[tuple[int, tuple[int, ...]]]) -> beam.PCollection[str]:
        return (
            blocks
            | AccumulateMoments(self.moments)
            | beam.CombineGlobally(MergeMoments()).without_defaults()  # shuffles a few matrices, O(d^2) each
            | beam.FlatMap(self.write)
        )
