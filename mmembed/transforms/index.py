"""Embeddings to indexes, one a modality."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import apache_beam as beam

from mmembed import encryption
from mmembed.indexing import Indexing
from mmembed.transforms.monitoring import count, timed


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
@dataclass
class BuildIndex(beam.PTransform):
    """Modalities to the files of index/; gives the modalities back when theirs are written.

    Rows are encoded block by block, on all workers; only the numbers of blocks cross a shuffle.

    Attributes:
        work: what is done at each step.
    """

    work: Indexing
    state: encryption.State = field(default_factory=encryption.state)

    def expand(self, modalities: beam.PCollection[str]) -> beam.PCollection[str]:
        return (
            modalities
            | "Prepare" >> beam.FlatMap(self._prepare).with_output_types(tuple[str, int])
            | "Spread" >> beam.Reshuffle()  # numbers of blocks, so that all workers encode
            | "Encode" >> beam.Map(self._encode).with_output_types(tuple[str, int])
            | "Together" >> beam.GroupByKey()  # a modality's blocks, when all of them are there
            | "Finish" >> beam.MapTuple(self._finish).with_output_types(str)
        )

    def _prepare(self, modality: str) -> list[tuple[str, int]]:
        self.state.enter()
        with timed("index_prepare"):
            return self.work.prepare(modality)

    def _encode(self, block: tuple[str, int]) -> tuple[str, int]:
        self.state.enter()
        count("indexed_blocks")
        with timed("index_encode"):
            return self.work.encode(block)

    def _finish(self, modality: str, numbers: Iterable[int]) -> str:
        self.state.enter()
        with timed("index_finish"):
            self.work.finish(modality, list(numbers))
        return modality
