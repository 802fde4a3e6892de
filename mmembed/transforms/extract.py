"""Raw records to features: read, segment, normalize, encode, write.

What flows is `(unit, batch)`, see `mmembed.types.Batch`. Nothing here crosses a shuffle: the steps of a unit are
fused and run in one process, so neither media nor vectors are ever held by the runner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import apache_beam as beam

from mmembed.encoders import Encoder
from mmembed.engine import use_one_thread
from mmembed.features import Contents, Marks, write_unit
from mmembed.fetch import Fetcher
from mmembed.inputs import Source
from mmembed.modalities import Modality
from mmembed.scratch import Scratch
from mmembed.steps import Known, encode_segments, normalize_segments, segment_records
from mmembed.transforms.monitoring import count, observe, timed, timed_each
from mmembed.types import Batch, Unit

Element = tuple[Unit, Batch]


@beam.typehints.with_input_types(Unit)
@beam.typehints.with_output_types(Element)
@dataclass
class ReadRecords(beam.PTransform):
    """Units to batches of records.

    Attributes:
        scratch: where a note is left of what is read, for the case that it crashes the process.
    """

    source: Source
    scratch: Scratch | None = None

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[Element]:
        return units | "Read" >> beam.Map(self._read)

    def _read(self, unit: Unit) -> Element:
        if self.scratch:
            self.scratch.begin(unit)
        with timed("read"):
            records, failures, stamps = self.source.read_stamped(unit)
        observe("unit_records", len(records))
        return unit, Batch(tuple(records), failures=tuple(failures), stamps=stamps)


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class SegmentRecords(beam.PTransform):
    """Batches of records to batches of segments, one modality after the other; the records follow them.

    Attributes: as of `mmembed.steps.segment_records`.
    """

    modalities: Mapping[str, Modality]
    fetcher: Fetcher = Fetcher()
    scratch: Scratch | None = None
    sign: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Segment" >> beam.FlatMap(self._segment)

    def _segment(self, element: Element) -> Iterator[Element]:
        unit, records = element
        batches = segment_records(
            records, self.modalities, self.fetcher, self.scratch, unit.number, self.sign, self.sizes
        )
        return ((unit, batch) for batch in timed_each("segment", batches))


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class NormalizeSegments(beam.PTransform):
    """Segments to the form that their encoders take."""

    modalities: Mapping[str, Modality]
    scratch: Scratch | None = None

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Normalize" >> beam.MapTuple(self._normalize)

    def _normalize(self, unit: Unit, batch: Batch) -> Element:
        with timed("normalize"):
            return unit, normalize_segments(batch, self.modalities, self.scratch, unit.number)


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element)
@dataclass
class EncodeSegments(beam.PTransform):
    """Normalized segments to features."""

    encoders: Mapping[str, Encoder]
    scratch: Scratch | None = None

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Encode" >> beam.ParDo(_Encode(self.encoders, self.scratch))


@dataclass
class _Encode(beam.DoFn):
    encoders: Mapping[str, Encoder]
    scratch: Scratch | None
    _unit: int = -1
    _known: Known = field(default_factory=dict)  # of that unit: its batches come one after the other

    def setup(self) -> None:
        use_one_thread()
        for encoder in self.encoders.values():
            encoder.setup()

    def process(self, element: Element) -> Iterator[Element]:
        unit, batch = element
        if unit.number != self._unit:
            self._unit, self._known = unit.number, {}
        with timed("encode"):
            encoded = encode_segments(batch, self.encoders, self.scratch, unit.number, self._known)
        yield unit, encoded


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(int)
@dataclass
class WriteFeatures(beam.PTransform):
    """Encoded segments and their records to the files of their unit; gives the numbers of finished units.

    A unit's batches must reach one instance one after the other, as fused steps do. A runner that tears them
    apart makes this fail; it never writes a part of a unit.
    """

    scratch: Scratch
    marks: Marks

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[int]:
        return batches | "Write" >> beam.ParDo(_Write(self.scratch, self.marks))


@dataclass
class _Write(beam.DoFn):
    scratch: Scratch
    marks: Marks
    _open: dict[int, Contents] = field(default_factory=dict)

    def start_bundle(self) -> None:
        self._open = {}

    def process(self, element: Element) -> Iterator[int]:
        unit, batch = element
        contents = self._open.setdefault(unit.number, Contents())
        contents.failures += batch.failures
        contents.dropped += batch.dropped
        if batch.modality:
            contents.segments.setdefault(batch.modality, []).extend(batch.items)
            observe(f"{batch.modality}_batch_segments", len(batch.items))
            return
        del self._open[unit.number]
        contents.records, contents.stamps = batch.items, batch.stamps
        self.scratch.note(unit.number, "write", unit.file, "")
        with timed("write"):
            write_unit(self.scratch, unit, contents, self.marks)
        self._count(contents)
        self.scratch.rest()
        yield unit.number

    def finish_bundle(self) -> None:
        if self._open:
            raise RuntimeError(
                f"units {sorted(self._open)} came without their records: this runner doesn't fuse the steps of a "
                "unit, which WriteFeatures needs"
            )

    def _count(self, contents: Contents) -> None:
        count("units")
        count("records", len(contents.records))
        for name, items in contents.segments.items():
            count(f"{name}_segments", len(items))
        for failure in contents.failures:
            count(f"{failure.stage}_errors")
        count("dropped", len(contents.dropped))


@beam.typehints.with_input_types(Unit)
@beam.typehints.with_output_types(int)
@dataclass
class ExtractFeatures(beam.PTransform):
    """Units of raw records to the files of features/, records/, errors/ and dropped/; gives the numbers of finished
    units."""

    source: Source
    modalities: Mapping[str, Modality]
    encoders: Mapping[str, Encoder]
    scratch: Scratch
    marks: Marks
    fetcher: Fetcher = Fetcher()
    sign: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[int]:
        return (
            units
            | ReadRecords(self.source, self.scratch)
            | SegmentRecords(self.modalities, self.fetcher, self.scratch, self.sign, self.sizes)
            | NormalizeSegments(self.modalities, self.scratch)
            | EncodeSegments(self.encoders, self.scratch)
            | WriteFeatures(self.scratch, self.marks)
        )
