"""Encoders: from normalized segments of one modality to features; one file a family."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import UsageError
from mmembed.modalities import Modality
from mmembed.types import Space

_BUILTIN = {
    "image": "mmembed.encoders.image:ImageStatistics",
    "text": "mmembed.encoders.text:TextFeatures",
    "audio": "mmembed.encoders.audio:AudioStatistics",
}


class Encoder(Protocol):
    """A picklable value whose weights load in `setup`, on the worker; the same rows always give the same features."""

    @property
    def modality(self) -> str:
        """The name of the modality whose segments it takes."""

    @property
    def space(self) -> Space:
        """Where its features live; a change of what `encode` computes needs another version."""

    def setup(self) -> None:
        """Load weights. Called once a process before the first `encode`; calling it again does nothing."""

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), space.dim), all finite.

        Args:
            batch: at least one normalized segment: uint8 (height, width, 3) sRGB, str, or float32 (samples,) mono.
        """


def resolve(modality: Modality, spec: str) -> Encoder:
    """The encoder that a short name stands for: "builtin", or "module:Class" of the user's own.

    An encoder that is a dataclass with fields of the modality's names (`sample_rate`, `size`) gets the modality's
    values for them, so that it is made for what it will be given.

    Raises:
        UsageError: there is no such class, or its encoder is for another modality.
    """
    module, _, name = (_BUILTIN[modality.name] if spec == "builtin" else spec).partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
        encoder = cast(Encoder, kind(**_shared_fields(kind, modality)))
        _ = encoder.modality, encoder.space, encoder.setup, encoder.encode
    except Exception as error:  # this runs the user's own code, which may fail in any way
        raise UsageError(
            f"can't make the {modality.name} encoder {spec!r} (builtin, or module:Class that Python can import): "
            f"{type(error).__name__}: {error}"
        ) from error
    if encoder.modality != modality.name:
        raise UsageError(f"the encoder {spec!r} is for {encoder.modality}, not for {modality.name}")
    return encoder


def _shared_fields(kind: type, modality: Any) -> dict[str, Any]:
    names = [item.name for item in fields(kind)] if is_dataclass(kind) else []
    return {name: getattr(modality, name) for name in names if hasattr(modality, name)}
