"""Embeddings to indexes, one a modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import apache_beam as beam


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
@dataclass
class BuildIndex(beam.PTransform):
    """Modalities to the files of index/; gives the modalities back when theirs is written.

    Attributes:
        build: reads a modality's embeddings and writes its index.
    """

    build: Callable[[str], None]

    def expand(self, modalities: beam.PCollection[str]) -> beam.PCollection[str]:
        return modalities | "Build" >> beam.Map(self._build)

    def _build(self, modality: str) -> str:
        self.build(modality)
        return modality
