"""Raw records to features: read, segment, normalize, encode, write.

What flows is `(unit, batch)`, see `mmembed.types.Batch`. Of it nothing crosses a shuffle: the steps of a unit are fused
and run in one process, so neither media nor vectors are ever held by the runner. (References to pieces of long media
do, see `mmembed.pieces`.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import apache_beam as beam

from mmembed import encryption
from mmembed.encoders import Encoder
from mmembed.engine import use_one_thread
from mmembed.features import Contents, Marks, write_unit
from mmembed.fetch import Fetcher
from mmembed.inputs import Source
from mmembed.modalities import Divisible, Modality
from mmembed.pieces import Piece, Pieces
from mmembed.privacy import Privacy
from mmembed.scratch import Scratch
from mmembed.steps import (
    BATCH_SEGMENTS,
    Known,
    encode_piece,
    encode_segments,
    normalize_segments,
    segment_records,
)
from mmembed.transforms.monitoring import count, observe, timed, timed_each
from mmembed.transforms.threads import OneThread
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
        return units | "Read" >> beam.ParDo(_Read(self.source, self.scratch))


@dataclass
class _Read(beam.DoFn):
    source: Source
    scratch: Scratch | None
    state: encryption.State = field(default_factory=encryption.state)

    def setup(self) -> None:
        self.state.enter()

    def process(self, unit: Unit) -> Iterator[Element]:
        if self.scratch:
            self.scratch.begin(unit.number, unit.fingerprint, unit.file)
        try:
            with timed("read"):
                batch = self.source.read_stamped(unit)
            observe("unit_records", len(batch.items))
            yield unit, batch
        finally:  # when the steps that are fused with this one have done the unit, or failed
            if self.scratch:
                self.scratch.rest()


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
    pieces: Pieces | None = None

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element]:
        return batches | "Segment" >> beam.FlatMap(self._segment)

    def _segment(self, element: Element) -> Iterator[Element]:
        unit, records = element
        batches = segment_records(
            records, self.modalities, self.fetcher, self.scratch, unit.number, self.sign, self.sizes, self.pieces
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
    _ready: set[str] = field(default_factory=set)

    def setup(self) -> None:
        use_one_thread()

    def process(self, element: Element) -> Iterator[Element]:
        unit, batch = element
        if batch.modality and batch.modality not in self._ready:  # an input without texts loads no model of texts
            self.encoders[batch.modality].setup()
            self._ready.add(batch.modality)
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
    privacy: Privacy = Privacy()

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[int]:
        return batches | "Write" >> beam.ParDo(_Write(self.scratch, self.marks, self.privacy))


@dataclass
class _Write(beam.DoFn):
    scratch: Scratch
    marks: Marks
    privacy: Privacy
    state: encryption.State = field(default_factory=encryption.state)
    _open: dict[int, Contents] = field(default_factory=dict)

    def setup(self) -> None:
        self.state.enter()

    def start_bundle(self) -> None:
        self._open = {}

    def process(self, element: Element) -> Iterator[int]:
        unit, batch = element
        contents = self._open.setdefault(unit.number, Contents())
        contents.failures += self.privacy.cleaned(batch.failures)
        contents.dropped += batch.dropped
        if batch.modality:
            contents.segments.setdefault(batch.modality, []).extend(batch.items)
            observe(f"{batch.modality}_batch_segments", len(batch.items))
            return
        del self._open[unit.number]
        contents.records, contents.stamps, contents.redacted = batch.items, batch.stamps, batch.redacted
        self.scratch.note(unit.number, "write", unit.file, "")
        with timed("write"):
            write_unit(self.scratch, unit, contents, self.marks)
        self._count(contents)
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
        count("redacted", sum(contents.redacted.values()))


@beam.typehints.with_input_types(Element)
@beam.typehints.with_output_types(Element | Piece)
@dataclass
class DivideMedia(beam.PTransform):
    """Batches of records, whose longest media say what they are cut into; of units that wait for pieces of such media
    these pieces.

    (Not two outputs: Beam's strictest type checks refuse every transform that has several.)
    """

    pieces: Pieces
    modalities: Mapping[str, Modality]

    def expand(self, batches: beam.PCollection[Element]) -> beam.PCollection[Element | Piece]:
        return batches | "Divide" >> beam.FlatMap(self._divide).with_output_types(Element | Piece)

    def _divide(self, element: Element) -> Sequence[Element | Piece]:
        unit, batch = element
        records = self.pieces.divided(batch.items, self.modalities)
        missing = self.pieces.missing(unit, records)
        count("pieces", len(missing))
        return missing or [(unit, replace(batch, items=records))]


def _only_pieces(element: Element | Piece) -> list[Piece]:
    return [element] if isinstance(element, Piece) else []


def _only_batches(element: Element | Piece) -> list[Element]:
    return [] if isinstance(element, Piece) else [element]


@beam.typehints.with_input_types(Piece)
@beam.typehints.with_output_types(str)
@dataclass
class EncodePieces(beam.PTransform):
    """Pieces of media to files of their features, in OUT/scratch/pieces/; gives the names of the media."""

    pieces: Pieces
    modalities: Mapping[str, Modality]
    encoders: Mapping[str, Encoder]
    sizes: Mapping[str, int]

    def expand(self, pieces: beam.PCollection[Piece]) -> beam.PCollection[str]:
        return (
            pieces
            | "Spread" >> beam.Reshuffle()  # references, so that all workers take some
            | "EncodePiece" >> beam.ParDo(OneThread("encode_piece", self._encode)).with_output_types(str)
        )

    def _encode(self, piece: Piece) -> str:
        modality, encoder = self.modalities[piece.modality], self.encoders[piece.modality]
        assert isinstance(modality, Divisible)
        encoder.setup()
        scratch = self.pieces.scratch
        scratch.begin(piece.unit, piece.fingerprint, piece.media.path)
        try:
            segments, failures = encode_piece(piece, modality, encoder, self.sizes[piece.modality], scratch)
        finally:
            scratch.rest()
        self.pieces.write(piece, segments, encoder.space.dim, failures)
        return piece.cut.name


@beam.typehints.with_input_types(Unit)
@beam.typehints.with_output_types(int)
@dataclass
class ExtractFeatures(beam.PTransform):
    """Units of raw records to the files of features/, records/, errors/ and dropped/; gives the numbers of finished
    units. A unit with a medium that is cut in pieces (`DivideMedia`) is not among them the first time."""

    source: Source
    modalities: Mapping[str, Modality]
    encoders: Mapping[str, Encoder]
    scratch: Scratch
    marks: Marks
    fetcher: Fetcher = Fetcher()
    sign: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    def expand(self, units: beam.PCollection[Unit]) -> beam.PCollection[int]:
        pieces = Pieces(self.scratch, self.marks.modalities)
        sizes = {name: self.sizes.get(name, BATCH_SEGMENTS) for name in self.modalities}
        divided = units | ReadRecords(self.source, self.scratch) | DivideMedia(pieces, self.modalities)
        _ = (
            divided
            | "Pieces" >> beam.FlatMap(_only_pieces).with_output_types(Piece)
            | EncodePieces(pieces, self.modalities, self.encoders, sizes)
        )
        return (
            divided
            | "Batches" >> beam.FlatMap(_only_batches).with_output_types(Element)
            | SegmentRecords(self.modalities, self.fetcher, self.scratch, self.sign, sizes, pieces)
            | NormalizeSegments(self.modalities, self.scratch)
            | EncodeSegments(self.encoders, self.scratch)
            | WriteFeatures(self.scratch, self.marks, self.source.choice.privacy)
        )
