"""Raw records to features: read, segment, normalize, encode, write.

What flows is `(unit, batch)`, see `mmembed.types.Batch`. Nothing here crosses a shuffle: the steps of a unit are
fused and run in one process, so neither media nor vectors are ever held by the runner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics

from mmembed.encoders import Encoder
from mmembed.features import write_unit
from mmembed.inputs import Source
from mmembed.modalities import Modality
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.transforms.threads import use_one_thread
from mmembed.types import Batch, Failure, Segment, Unit

Element = tuple[Unit, Batch]


@beam.typehints.with_input_types(Unit)
@beam.typehints.with_output_types(Element)
@dataclass
class ReadRecords(beam.PTransform):
    """Units to batches of records."""

    source: Source

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[Element]:
        return units | "Read" >> beam.Map(self._read)

    def _read(self, unit: Unit) -> Element:
        records, failures = self.source.read(unit)
        return unit, Batch(tuple(records), failures=tuple(failures))


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class SegmentRecords(beam.PTransform):
    """Batches of records to batches of segments, one modality after the other; the records follow them."""

    modalities: Mapping[str, Modality]

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Segment" >> beam.FlatMap(self._segment)

    def _segment(self, element: Element) -> Iterator[Element]:
        unit, records = element
        return ((unit, batch) for batch in segment_records(records, self.modalities))


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class NormalizeSegments(beam.PTransform):
    """Segments to the form that their encoders take."""

    modalities: Mapping[str, Modality]

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Normalize" >> beam.MapTuple(self._normalize)

    def _normalize(self, unit: Unit, batch: Batch) -> Element:
        return unit, normalize_segments(batch, self.modalities)


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class EncodeSegments(beam.PTransform):
    """Normalized segments to features."""

    encoders: Mapping[str, Encoder]

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Encode" >> beam.ParDo(_Encode(self.encoders))


@dataclass
class _Encode(beam.DoFn):
    encoders: Mapping[str, Encoder]

    def setup(self) -> None:
        use_one_thread()
        for encoder in self.encoders.values():
            encoder.setup()

    def process(self, element: Element) -> Iterator[Element]:
        unit, batch = element
        yield unit, encode_segments(batch, self.encoders)


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(int)
@dataclass
class WriteFeatures(beam.PTransform):
    """Encoded segments and their records to the files of their unit; gives the numbers of finished units.

    A unit's batches must reach one instance one after the other, as fused steps do. A runner that tears them
    apart makes this fail; it never writes a part of a unit.
    """

    root: Path
    dims: Mapping[str, int]
    fingerprint: str

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[int]:
        return batches | "Write" >> beam.ParDo(_Write(self.root, self.dims, self.fingerprint))


@dataclass
class _Write(beam.DoFn):
    root: Path
    dims: Mapping[str, int]
    fingerprint: str
    _segments: dict[int, dict[str, list[Segment]]] = field(default_factory=dict)
    _failures: dict[int, list[Failure]] = field(default_factory=dict)

    def start_bundle(self) -> None:
        self._segments, self._failures = {}, {}

    def process(self, element: Element) -> Iterator[int]:
        unit, batch = element
        segments = self._segments.setdefault(unit.number, {name: [] for name in self.dims})
        failures = self._failures.setdefault(unit.number, [])
        failures += batch.failures
        if batch.modality:
            segments[batch.modality] += batch.items
            Metrics.distribution("mmembed", f"{batch.modality}_batch_segments").update(len(batch.items))
            return
        write_unit(self.root, unit, batch.items, segments, failures, self.dims, self.fingerprint)
        self._count(len(batch.items), segments, failures)
        del self._segments[unit.number], self._failures[unit.number]
        yield unit.number

    def finish_bundle(self) -> None:
        if self._segments:
            raise RuntimeError(
                f"units {sorted(self._segments)} came without their records: this runner doesn't fuse the steps of a "
                "unit, which WriteFeatures needs"
            )

    def _count(self, records: int, segments: Mapping[str, list[Segment]], failures: list[Failure]) -> None:
        Metrics.counter("mmembed", "records").inc(records)
        for name, items in segments.items():
            Metrics.counter("mmembed", f"{name}_segments").inc(len(items))
        for failure in failures:
            Metrics.counter("mmembed", f"{failure.stage}_errors").inc()


@beam.typehints.with_input_types(Unit)
@beam.typehints.with_output_types(int)
@dataclass
class ExtractFeatures(beam.PTransform):
    """Units of raw records to the files of features/, records/ and errors/; gives the numbers of finished units."""

    source: Source
    modalities: Mapping[str, Modality]
    encoders: Mapping[str, Encoder]
    root: Path
    fingerprint: str

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[int]:
        dims = {name: encoder.space.dim for name, encoder in self.encoders.items()}
        return (
            units
            | ReadRecords(self.source)
            | SegmentRecords(self.modalities)
            | NormalizeSegments(self.modalities)
            | EncodeSegments(self.encoders)
            | WriteFeatures(self.root, dims, self.fingerprint)
        )
