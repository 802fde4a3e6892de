"""The steps of extraction as plain functions on batches: segment, normalize, encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed.encoders import Encoder
from mmembed.errors import CrashError, EncodeError, FilteredError, ReadError, RecordError
from mmembed.fetch import Fetcher
from mmembed.inputs.rows import TEXT_MODALITIES
from mmembed.modalities import Divisible, Modality
from mmembed.pieces import Piece, Pieces
from mmembed.scratch import Scratch
from mmembed.signatures import signature
from mmembed.tables import vectors_from_arrow
from mmembed.types import Batch, Dropped, Failure, Media, Record, Segment, Span

# A batch of segments is what an encoder gets at once: enough rows for a matrix product to pay, and bounded in
# memory. Both numbers decide the shape of products and so the last bits of features: they don't depend on the runner.
BATCH_SEGMENTS = 64  # where the configuration says nothing else
BATCH_BYTES = 32 << 20

Item = Segment | Failure | Dropped

_PUBLIC_HOSTS = Fetcher()
_NOTHING = Batch(())
_ANY: Mapping[str, int] = {}

Key = tuple[str, str, Span, str]
"""Of what a segment holds: its modality, the content hash of its medium, its span, and what of it is hidden."""

Known = dict[Key, NDArray[np.float32]]
"""Features of a unit by what they are of: the same segment is encoded once."""


def segment_records(
    records: Batch,
    modalities: Mapping[str, Modality],
    fetcher: Fetcher = _PUBLIC_HOSTS,
    scratch: Scratch | None = None,
    unit: int = 0,
    sign: bool = False,
    sizes: Mapping[str, int] = _ANY,
    pieces: Pieces | None = None,
) -> Iterator[Batch]:
    """Decode and cut the records of a unit: batches of segments, one modality after the other, then the records.

    A medium that can't be decoded becomes a failure; the record's other media stay. One that a filter leaves out
    becomes a row of dropped/. One whose features an earlier run left comes with them, and is not decoded.

    Args:
        fetcher: of media that are named by web addresses.
        scratch: what earlier attempts left, and where a note is left of what this one is doing.
        unit: its number.
        sign: whether segments carry the signature of their medium, by which near duplicates are found.
        sizes: by modality, the most segments of a batch.
        pieces: where the features of the longest media lie, whose pieces were encoded before.
    """
    for modality in modalities.values():
        most = sizes.get(modality.name, BATCH_SEGMENTS)
        items: list[Item] = []
        size = count = 0
        for item in _cut(records.items, modality, fetcher, scratch, unit, sign, pieces):
            items.append(item)
            if isinstance(item, Segment):
                count += 1
                size += _nbytes(item.data)
                if count == most or size >= BATCH_BYTES:
                    yield _batch(items, modality.name)
                    items, size, count = [], 0, 0
        if items:
            yield _batch(items, modality.name)
    yield records


def _batch(items: Sequence[Item], modality: str, before: Batch = _NOTHING) -> Batch:
    """Items sorted by what they are, after what an earlier step refused."""
    return Batch(
        tuple(item for item in items if isinstance(item, Segment)),
        modality,
        before.failures + tuple(item for item in items if isinstance(item, Failure)),
        before.dropped + tuple(item for item in items if isinstance(item, Dropped)),
    )


def normalize_segments(
    batch: Batch, modalities: Mapping[str, Modality], scratch: Scratch | None = None, unit: int = 0
) -> Batch:
    """Each segment in the form that its encoder takes; features and a batch of records pass through."""
    if not batch.modality:
        return batch
    modality = modalities[batch.modality]
    items: list[Item] = []
    for segment in batch.items:
        try:
            _note(scratch, unit, "normalize", segment.source, batch.modality)
            _check_alive(scratch, segment.source, batch.modality, "normalize")
            items.append(segment if segment.encoded else replace(segment, data=modality.normalize(segment.data)))
        except (RecordError, CrashError) as error:
            items.append(_failure(segment, batch.modality, "normalize", error))
    return _batch(items, batch.modality, batch)


def encode_segments(
    batch: Batch,
    encoders: Mapping[str, Encoder],
    scratch: Scratch | None = None,
    unit: int = 0,
    known: Known | None = None,
) -> Batch:
    """Each segment with its feature, float32 (dim,), as data; a batch of records passes through.

    A segment whose feature is not finite, or that its encoder refuses with a RecordError, becomes a failure. One that
    the unit has had before, in another record, is not encoded again.

    Args:
        known: features of the unit's earlier batches; those of this one are added.

    Raises:
        ValueError: the encoder gives another shape or dtype than it promises; it is broken for all records.
    """
    if not batch.modality or not batch.items:
        return batch
    encoder, known = encoders[batch.modality], {} if known is None else known

    def key(segment: Segment) -> Key:
        return batch.modality, segment.content_hash, segment.span, segment.blur

    new: dict[Key, Segment] = {}
    for segment in batch.items:
        if not segment.encoded and key(segment) not in known:
            new.setdefault(key(segment), segment)
    todo = list(new.values())
    encoded: list[NDArray[np.float32] | Failure] = []
    if todo and scratch and scratch.is_alone(unit):  # a worker died while it encoded several: find out of which
        for segment in todo:
            _note(scratch, unit, "encode one", segment.source, batch.modality)
            encoded += _encode_alone(segment, batch.modality, encoder, scratch)
    elif todo:
        _note(scratch, unit, "encode", todo[0].source, batch.modality)
        try:
            encoded = _encode(todo, batch.modality, encoder)
        except RecordError:  # one of them was refused: find it, and keep the others
            encoded = [item for segment in todo for item in _encode_alone(segment, batch.modality, encoder, None)]
    found = list(zip(new, encoded, strict=True))
    known |= {which: item for which, item in found if not isinstance(item, Failure)}
    refused = {which: item for which, item in found if isinstance(item, Failure)}
    items: list[Item] = []
    for segment in batch.items:
        if segment.encoded:
            items.append(segment)
        elif (feature := known.get(which := key(segment))) is not None:
            items.append(replace(segment, data=feature, encoded=True))
        else:
            items.append(_again(segment, refused[which]))
    return _batch(items, batch.modality, batch)


def _again(segment: Segment, refused: Failure) -> Failure:
    """The failure of a segment that is equal to one that was refused."""
    return replace(refused, id=segment.id, segment=segment.number, source=segment.source, medium=segment.medium)


def _encode(segments: Sequence[Segment], modality: str, encoder: Encoder) -> list[NDArray[np.float32] | Failure]:
    features = encoder.encode([segment.data for segment in segments])
    if features.shape != (len(segments), encoder.space.dim) or features.dtype != np.float32:
        raise ValueError(
            f"the encoder {encoder.space} gave {features.dtype} {features.shape} for {len(segments)} segments: "
            f"it must give float32 {(len(segments), encoder.space.dim)}"
        )
    error = EncodeError(f"the encoder {encoder.space} gave a feature that is not finite")
    finite = np.asarray(np.isfinite(features).all(axis=1))
    return [
        feature if ok else _failure(segment, modality, "encode", error)
        for segment, feature, ok in zip(segments, features, finite, strict=True)
    ]


def _encode_alone(
    segment: Segment, modality: str, encoder: Encoder, scratch: Scratch | None
) -> list[NDArray[np.float32] | Failure]:
    try:
        _check_alive(scratch, segment.source, modality, "encode")
        return _encode([segment], modality, encoder)
    except (RecordError, CrashError) as error:
        return [_failure(segment, modality, "encode", error)]


class _Job(NamedTuple):
    """A medium of a record, and its features where an earlier run left them."""

    record: Record
    medium: int
    media: Media
    features: pa.Table | None


def _cut(
    records: Sequence[Record],
    modality: Modality,
    fetcher: Fetcher,
    scratch: Scratch | None,
    unit: int,
    sign: bool,
    pieces: Pieces | None,
) -> Iterator[Item]:
    """All of one modality: the segments of each record, lazily, and what could not be used."""
    left = scratch if scratch and modality.by_content and scratch.has_features(modality.name) else None
    jobs = [
        _Job(record, medium, media, _features_of(media, modality.name, left, sign) if left else None)
        for record in records
        for medium, media in enumerate(record.media.get(modality.name, ()))
    ]
    fetched = fetcher.prefetched(job.media for job in jobs if job.features is None)
    for source, of_record in groupby(jobs, key=lambda job: job.record.source):
        number = 0
        for job in of_record:
            items: Iterator[Item]
            if job.features is not None:
                items = _taken_over(job, modality.name, number, job.features, scratch if sign else None)
            else:
                _note(scratch, unit, "segment", source, modality.name)
                items = _segments(job, next(fetched), modality, number, scratch, sign, pieces)
            for item in items:
                number += isinstance(item, Segment)
                yield item
                if job.features is None:  # whoever took it has left notes of its own
                    _note(scratch, unit, "segment", source, modality.name)


def _segments(
    job: _Job,
    media: Media | ReadError,
    modality: Modality,
    number: int,
    scratch: Scratch | None,
    sign: bool,
    pieces: Pieces | None,
) -> Iterator[Item]:
    """The segments of one medium, lazily, and a failure where decoding stops."""
    record, first = job.record, number
    try:
        _check_alive(scratch, record.source, modality.name, "segment")
        if isinstance(media, ReadError):
            raise media
        content_hash, signed = media.content_hash, signature(modality, media) if sign else b""
        done = pieces.encoded(job.media) if pieces else None
        for span, piece in done.segments if done else modality.segment(modality.decode(media), record.metadata):
            name = piece if isinstance(piece, str) else media.path
            yield Segment(
                record.id,
                number,
                span,
                name,
                content_hash,
                piece,
                job.medium,
                encoded=bool(done),
                signature=signed,
                source=record.source,
                blur=media.blur,
            )
            number += 1
        for kind, message in done.failures if done else ():
            yield Failure(record.id, modality.name, None, "segment", kind, message, record.source, medium=job.medium)
        if number == first and not (done and done.failures):
            raise FilteredError("nothing of it is left to be encoded")
    except FilteredError as error:
        yield Dropped(record.id, modality.name, "filter", str(error), "", record.source, job.medium)
    except (RecordError, CrashError) as error:
        kind, message = _reason(error)
        message = message.replace(job.media.location, job.media.path) if job.media.hidden else message
        segment = number if number > first else None
        yield Failure(record.id, modality.name, segment, "segment", kind, message, record.source, medium=job.medium)


def encode_piece(
    piece: Piece, modality: Divisible, encoder: Encoder, size: int, scratch: Scratch
) -> tuple[list[Segment], list[tuple[str, str]]]:
    """The encoded segments of a piece of a medium, and kinds and messages of what can't be used of it.

    Args:
        size: the most segments of a batch.
    """
    encoded: list[Segment] = []
    failures: list[tuple[str, str]] = []

    def readable() -> Iterator[tuple[Span, Any]]:
        try:
            _check_alive(scratch, piece.source, piece.modality, "segment")
            yield from modality.piece(piece.media, piece.number, piece.cut.count)
        except (RecordError, CrashError) as error:
            failures.append(_reason(error))

    found = readable()
    scratch.note(piece.unit, "segment", piece.source, piece.modality)
    while some := list(islice(found, size)):
        segments = tuple(
            Segment(piece.id, len(encoded) + place, span, piece.media.path, "", data, source=piece.source)
            for place, (span, data) in enumerate(some)
        )
        batch = normalize_segments(Batch(segments, piece.modality), {piece.modality: cast(Modality, modality)})
        batch = encode_segments(batch, {piece.modality: encoder})
        encoded += batch.items
        failures += [(failure.error, failure.message) for failure in batch.failures]
        scratch.note(piece.unit, "segment", piece.source, piece.modality)
    return encoded, failures


def _taken_over(job: _Job, modality: str, number: int, rows: pa.Table, signed: Scratch | None) -> Iterator[Segment]:
    """The segments of a medium as an earlier run left them."""
    content_hash = rows["content_hash"][0].as_py()
    found = (signed.signature(modality, content_hash) or b"") if signed else b""
    names = rows["media"].to_pylist() if modality in TEXT_MODALITIES else [job.media.path] * rows.num_rows
    for span, name, feature in zip(rows["span"].to_pylist(), names, vectors_from_arrow(rows["feature"])):
        yield Segment(
            job.record.id,
            number,
            tuple(span),
            name,
            content_hash,
            feature,
            job.medium,
            encoded=True,
            signature=found,
            source=job.record.source,
        )
        number += 1


def _features_of(media: Media, modality: str, scratch: Scratch, sign: bool) -> pa.Table | None:
    """What an earlier run left of a medium; None where it must be decoded."""
    try:
        content_hash = scratch.content_hash(media) or (None if media.is_remote else media.content_hash)
    except ReadError:  # met again, and told, where it is decoded
        return None
    if not content_hash or (sign and not scratch.signature(modality, content_hash)):
        return None
    return scratch.features(modality, content_hash)


def _check_alive(scratch: Scratch | None, source: str, modality: str, stage: str) -> None:
    """Raise CrashError for a medium that a worker died of at this stage before."""
    if scratch and (death := scratch.death(source, modality, stage)):
        raise CrashError(death)


def _note(scratch: Scratch | None, unit: int, stage: str, source: str, modality: str) -> None:
    if scratch:
        scratch.note(unit, stage, source, modality)


def _failure(segment: Segment, modality: str, stage: str, error: RecordError | CrashError) -> Failure:
    kind, message = _reason(error)
    return Failure(segment.id, modality, segment.number, stage, kind, message, segment.source, medium=segment.medium)


def _reason(error: RecordError | CrashError) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _nbytes(data: Any) -> int:
    return len(data) if isinstance(data, str) else int(data.nbytes)
