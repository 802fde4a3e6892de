"""Features to embeddings, unit by unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import apache_beam as beam

from mmembed.transforms.monitoring import count
from mmembed.transforms.threads import OneThread


@beam.typehints.with_input_types(int)
@beam.typehints.with_output_types(int)
@dataclass
class ProjectFeatures(beam.PTransform):
    """Numbers of units to the files of embeddings/; gives the numbers back when they are written.

    Attributes:
        project: reads a unit's features and writes its embeddings; gives how many there are.
    """

    project: Callable[[int], int]

    def expand(self, units: beam.PCollection[int]) -> beam.PCollection[int]:
        return units | "Project" >> beam.ParDo(OneThread("project", self._project))

    def _project(self, unit: int) -> int:
        count("embedded_segments", self.project(unit))
        return unit
