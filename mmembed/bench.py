"""How fast encoders are, by the number of segments that they get at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmembed.config import ExtractConfig, Parts
from mmembed.encoders import Encoder
from mmembed.encoders.input import Input
from mmembed.errors import UsageError
from mmembed.inputs import Source, open_source
from mmembed.modalities import Modality
from mmembed.steps import normalize_segments, segment_records
from mmembed.testing import check_encoder, exact_in_any_batch, segments
from mmembed.types import Batch

_WORDS = ("small", "old", "red", "two", "frog", "house", "tree", "with", "on", "under", "picture", "drawn", "bright")

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SEGMENTS = 128
"""Segments that are encoded, once for each size of batch."""

SECONDS = 20.0
"""Of CPU time for one size at most; what was done by then counts."""

ENOUGH = 0.95
"""The smallest batch that reaches this share of the best throughput is recommended: it holds the least memory."""


def bench(input: str, config: ExtractConfig) -> Iterator[dict[str, Any]]:
    """For each modality and size of batch, what its encoder does in a second of CPU time, and by how much.

    Args:
        input: a data set whose first segments are encoded, or "" for made-up ones.

    Raises:
        UsageError: an encoder can't be made, or there is no such input.
    """
    source = open_source(input, config.choice) if input else None  # before a model is loaded
    parts = dict(Parts(config))
    modalities = {name: modality for name, (modality, _) in parts.items()}
    given = normalized_segments(source, config.unit_records, modalities) if source else {}
    for name, (_, encoder) in parts.items():
        some = given[name] if source else _ordinary(name, encoder.input)
        if some:
            yield {"modality": name, "encoder": str(encoder.space), **_measured(encoder, some)}


@dataclass(frozen=True)
class Checked:
    """What a check of one encoder found.

    Attributes:
        fault: what is wrong, "" if nothing is.
        exact: whether rows have the same bits in any batch.
    """

    modality: str
    encoder: Encoder
    fault: str
    exact: bool = False


def check(config: ExtractConfig) -> Iterator[Checked]:
    """Each modality's encoder, checked (`mmembed.testing.check_encoder`).

    Raises:
        UsageError: an encoder can't be made.
    """
    for name, (_, encoder) in Parts(config).items():
        try:
            check_encoder(encoder)
            yield Checked(name, encoder, "", exact_in_any_batch(encoder))
        except AssertionError as error:
            yield Checked(name, encoder, str(error))


def _measured(encoder: Encoder, some: Sequence[Any]) -> dict[str, Any]:
    """Segments a second of CPU time by size of batch, and the size to choose.

    Raises:
        UsageError: the encoder can't encode them.
    """
    try:
        encoder.setup()
        encoder.encode(some[:1])  # what is allocated once is no matter of speed
    except Exception as error:  # of whatever kind a user's own encoder raises
        raise UsageError(
            f"{encoder.space} fails: {type(error).__name__}: {error}; see `mmembed encoders check`"
        ) from error
    found = {size: _throughput(encoder, some, size) for size in SIZES if size <= max(len(some), 1)}
    best = max(found.values())
    return {
        "segments": len(some),
        "per_second": found,
        "batch": next(size for size, speed in found.items() if speed >= ENOUGH * best),
    }


def _ordinary(modality: str, input: Input) -> list[Any]:
    """As many segments, made up: captions of 3 to 15 words, or pictures and sounds, which cost the same whatever they
    show."""
    if modality != "text":
        return (segments(modality, input) * SEGMENTS)[:SEGMENTS]
    random = np.random.default_rng(0)
    return [" ".join(random.choice(_WORDS, size)) for size in random.integers(3, 16, SEGMENTS)]


def _throughput(encoder: Encoder, some: Sequence[Any], size: int) -> float:
    start, done = time.process_time(), 0
    for first in range(0, len(some), size):
        done += len(encoder.encode(some[first : first + size]))
        if time.process_time() - start > SECONDS:
            break
    return done / max(time.process_time() - start, 1e-9)


def normalized_segments(source: Source, unit_records: int, modalities: Mapping[str, Modality]) -> dict[str, list[Any]]:
    """The first SEGMENTS normalized segments of each modality of an input, read by units of so many records."""
    found: dict[str, list[Any]] = {name: [] for name in modalities}
    for unit in source.units(unit_records):
        records, _ = source.read(unit)
        wanted = {name: modality for name, modality in modalities.items() if len(found[name]) < SEGMENTS}
        for batch in segment_records(Batch(tuple(records)), wanted):
            if batch.modality and len(found[batch.modality]) < SEGMENTS:
                found[batch.modality] += [item.data for item in normalize_segments(batch, modalities).items]
        if all(len(some) >= SEGMENTS for some in found.values()):
            break
    return {name: some[:SEGMENTS] for name, some in found.items()}
