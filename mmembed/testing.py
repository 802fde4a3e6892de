"""Checks for encoders of your own: call `check_encoder` in a test."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from mmembed.encoders import Encoder
from mmembed.encoders.input import Input
from mmembed.modalities.audio import RATE
from mmembed.modalities.image import SIDE

SAME = 1e-4
"""What a row may differ by from one batch to another, in parts of the largest value: more is no rounding."""

TEXTS = (
    "A frog.",
    "a photograph of two green frogs that sit on a leaf in the rain",
    "Straße, naïve café; Ünïcödé",
    "青い鳥が飛ぶ",
    "!?",
    "word " * 400,
)


def segments(modality: str, input: Input, seed: int = 0) -> list[Any]:
    """Normalized segments as a build gives them to an encoder: plain ones and odd ones.

    Returns:
        of image uint8 (size, size, 3): noise, white, a ramp, shapes; of text str: short, long, of other scripts; of
        audio float32 (samples,): noise, a tone, a click, with padding and without.

    Raises:
        ValueError: there is no such modality.
    """
    random = np.random.default_rng(seed)
    if modality == "text":
        return list(TEXTS)
    if modality == "image":
        side = input.size or SIDE
        ramp = np.linspace(0, 255, side)[:, np.newaxis, np.newaxis] * np.ones((1, side, 3))
        shape = np.full((side, side, 3), 255.0)
        shape[side // 4 : side // 2, side // 3 :] = (200, 30, 30)
        noise = random.integers(0, 256, (2, side, side, 3))
        return [np.asarray(picture, np.uint8) for picture in (*noise, np.full((side, side, 3), 255.0), ramp, shape)]
    if modality == "audio":
        rate = input.sample_rate or RATE
        tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        click = np.where(np.arange(rate // 2) == rate // 4, 0.9, 0.01)
        hiss = 0.1 * random.normal(size=rate)
        sounds = (hiss, tone, np.pad(tone[: rate // 2], (0, rate // 2)), click, np.pad(hiss[: rate // 2], (0, rate)))
        return [sound.astype(np.float32) for sound in sounds]
    raise ValueError(f"modality = {modality!r}: must be image, text or audio")


def check_encoder(encoder: Encoder, batch: Sequence[Any] = ()) -> None:
    """Check what a build relies on: the encoder can be sent to workers and then does the same; features have the shape
    and type that it promises, are finite, and differ where segments do; a row is the same alone, in a batch and in
    another order, within rounding; and twice the same to the last bit.

    Args:
        batch: normalized segments to try it on; by default `segments` of its modality.

    Raises:
        AssertionError: it does not; the message says what is wrong, and what to do.
    """
    for name in ("modality", "space", "input"):
        assert hasattr(encoder, name), f"it has no {name!r}: see mmembed.encoders.Encoder"
    tried = list(batch) or segments(encoder.modality, encoder.input)
    before = [_copy(segment) for segment in tried]
    try:
        sent = pickle.loads(cloudpickle.dumps(encoder))  # as Beam does it; what is read here was written here
    except Exception as error:
        raise AssertionError(
            f"it can't be pickled ({error}), so workers can't have it: keep paths and settings in fields, and load "
            "weights in setup()"
        ) from error
    assert sent.space == encoder.space, f"on a worker it has the space {sent.space}, here {encoder.space}"
    try:
        encoder.setup()
        encoder.setup()
    except Exception as error:
        raise AssertionError(f"setup() raises {type(error).__name__}: {error}") from error
    features = _checked(encoder, tried, "a batch")
    unchanged = all(np.array_equal(a, b) for a, b in zip(before, tried, strict=True))
    assert unchanged, "encode() changes the segments that it is given: copy them first"
    again = _checked(encoder, tried, "a batch")
    assert np.array_equal(features, again), "the same batch twice gives other bits: is there dropout, or chance?"
    sent.setup()
    there = _checked(sent, tried, "a batch")
    assert np.array_equal(features, there), "sent to a worker it gives other bits: what isn't pickled?"
    alone = np.concatenate([_checked(encoder, [segment], "one segment") for segment in tried])
    backwards = _checked(encoder, tried[::-1], "a batch")[::-1]
    for other, how in ((alone, "alone"), (backwards, "in another order")):
        _same(features, other, how)
    distinct = len(np.unique(features, axis=0))
    assert distinct > 1 or len(tried) == 1, f"{len(tried)} different segments all have the same feature"


def exact_in_any_batch(encoder: Encoder, batch: Sequence[Any] = ()) -> bool:
    """Whether a row has the very same bits alone and in a batch: then a data set that is extended is equal to one that
    is built at once."""
    tried = list(batch) or segments(encoder.modality, encoder.input)
    alone = np.concatenate([encoder.encode([segment]) for segment in tried])
    return bool(np.array_equal(encoder.encode(tried), alone))


def _checked(encoder: Encoder, batch: Sequence[Any], what: str) -> NDArray[np.float32]:
    try:
        features = encoder.encode(batch)
    except Exception as error:
        raise AssertionError(f"of {what} encode() raises {type(error).__name__}: {error}") from error
    shape = (len(batch), encoder.space.dim)
    assert isinstance(features, np.ndarray), f"of {what} encode() gives {type(features).__name__}, not a numpy array"
    assert features.dtype == np.float32, f"of {what} features are {features.dtype}: they must be float32"
    assert features.shape == shape, f"of {what} features are {features.shape}: its space says {shape}"
    assert np.isfinite(features).all(), f"of {what} features are not all finite"
    return features.copy()


def _same(features: NDArray[np.float32], other: NDArray[np.float32], how: str) -> None:
    scale = float(np.abs(features).max()) or 1.0
    worst = float(np.abs(features - other).max()) / scale
    assert worst <= SAME, (
        f"a row {how} differs by {worst:.1e} of the largest value from the row in its batch: is it padded without a "
        "mask, normalized over the batch, or quantized dynamically? With --…-batch 1 nothing has neighbours"
    )


def _copy(segment: Any) -> Any:
    return segment if isinstance(segment, str) else segment.copy()
