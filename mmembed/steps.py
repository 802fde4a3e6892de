"""The steps of extraction as plain functions on batches: segment, normalize, encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmembed.encoders import Encoder
from mmembed.errors import EncodeError, RecordError
from mmembed.modalities import Modality
from mmembed.types import Batch, Failure, Record, Segment

# A batch of segments is what an encoder gets at once: enough rows for a matrix product to pay, and bounded in
# memory. Both numbers decide the shape of products and so the last bits of features: they don't depend on the runner.
BATCH_SEGMENTS = 64
BATCH_BYTES = 32 << 20


def segment_records(records: Batch, modalities: Mapping[str, Modality]) -> Iterator[Batch]:
    """Decode and cut the records of a unit: batches of segments, one modality after the other, then the records.

    A record that can't be decoded becomes a failure of that modality; its other modalities stay.
    """
    for modality in modalities.values():
        items: list[Segment] = []
        failures: list[Failure] = []
        size = 0
        for record in records.items:
            for item in _segments(record, modality):
                if isinstance(item, Failure):
                    failures.append(item)
                    continue
                items.append(item)
                size += _nbytes(item.data)
                if len(items) == BATCH_SEGMENTS or size >= BATCH_BYTES:
                    yield Batch(tuple(items), modality.name)
                    items, size = [], 0
        if items or failures:
            yield Batch(tuple(items), modality.name, tuple(failures))
    yield records


def normalize_segments(batch: Batch, modalities: Mapping[str, Modality]) -> Batch:
    """Each segment in the form that its encoder takes; a batch of records passes through."""
    if not batch.modality:
        return batch
    modality = modalities[batch.modality]
    items: list[Segment] = []
    failures = list(batch.failures)
    for segment in batch.items:
        try:
            items.append(replace(segment, data=modality.normalize(segment.data)))
        except RecordError as error:
            failures.append(_failure(segment, batch.modality, "normalize", error))
    return Batch(tuple(items), batch.modality, tuple(failures))


def encode_segments(batch: Batch, encoders: Mapping[str, Encoder]) -> Batch:
    """Each segment with its feature, float32 (dim,), as data; a batch of records passes through.

    A segment whose feature is not finite, or that its encoder refuses with a RecordError, becomes a failure.

    Raises:
        ValueError: the encoder gives another shape or dtype than it promises; it is broken for all records.
    """
    if not batch.modality or not batch.items:
        return batch
    encoder = encoders[batch.modality]
    try:
        encoded: list[Segment | Failure] = _encode(batch.items, batch.modality, encoder)
    except RecordError:  # one of them was refused: find it, and keep the others
        encoded = [item for segment in batch.items for item in _encode_alone(segment, batch.modality, encoder)]
    items = tuple(item for item in encoded if isinstance(item, Segment))
    failures = tuple(item for item in encoded if isinstance(item, Failure))
    return Batch(items, batch.modality, batch.failures + failures)


def _encode(segments: Sequence[Segment], modality: str, encoder: Encoder) -> list[Segment | Failure]:
    features = encoder.encode([segment.data for segment in segments])
    if features.shape != (len(segments), encoder.space.dim) or features.dtype != np.float32:
        raise ValueError(
            f"the encoder {encoder.space} gave {features.dtype} {features.shape} for {len(segments)} segments: "
            f"it must give float32 {(len(segments), encoder.space.dim)}"
        )
    error = EncodeError(f"the encoder {encoder.space} gave a feature that is not finite")
    finite = np.asarray(np.isfinite(features).all(axis=1))
    return [
        replace(segment, data=feature) if ok else _failure(segment, modality, "encode", error)
        for segment, feature, ok in zip(segments, features, finite, strict=True)
    ]


def _encode_alone(segment: Segment, modality: str, encoder: Encoder) -> list[Segment | Failure]:
    try:
        return _encode([segment], modality, encoder)
    except RecordError as error:
        return [_failure(segment, modality, "encode", error)]


def _segments(record: Record, modality: Modality) -> Iterator[Segment | Failure]:
    """The segments of one record, lazily, and a failure where decoding stops."""
    media = record.media.get(modality.name)
    if media is None:
        return
    number = 0
    try:
        content_hash = media.content_hash()
        for span, piece in modality.segment(modality.decode(media)):
            name = piece if isinstance(piece, str) else media.path
            yield Segment(record.id, number, span, name, content_hash, piece, record.source)
            number += 1
    except RecordError as error:
        yield Failure(record.id, modality.name, number or None, "segment", *_reason(error), record.source)


def _failure(segment: Segment, modality: str, stage: str, error: RecordError) -> Failure:
    return Failure(segment.id, modality, segment.number, stage, *_reason(error), segment.source)


def _reason(error: RecordError) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _nbytes(data: Any) -> int:
    return len(data) if isinstance(data, str) else int(data.nbytes)
