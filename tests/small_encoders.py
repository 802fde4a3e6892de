"""Encoders of a few dimensions: data sets made with them fit in milliseconds. They stand in for a user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.input import Input
from mmembed.types import Space

FLAGS = tuple(
    word
    for modality in ("image", "text", "audio")
    for word in (f"--{modality}-encoder", f"small_encoders:Small{modality.capitalize()}")
)


@dataclass(frozen=True)
class SmallImage:
    """Mean colours of the 3 x 3 cells of a picture."""

    modality = "image"
    space = Space("small-image", "1", 27)
    input = Input()

    def setup(self) -> None:
        """Nothing to load."""

    def encode(self, batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.stack([_cells(picture) for picture in batch]).astype(np.float32)


@dataclass(frozen=True)
class SmallText:
    """Counts of hashed words."""

    modality = "text"
    space = Space("small-text", "1", 24)
    input = Input()

    def setup(self) -> None:
        """Nothing to load."""

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        features = np.zeros((len(batch), self.space.dim), np.float32)
        for row, text in enumerate(batch):
            for word in text.lower().split():
                features[row, hashlib.md5(word.encode()).digest()[0] % self.space.dim] += 1
        return features


@dataclass(frozen=True)
class SmallAudio:
    """Energy of 20 bands of the whole sound."""

    modality = "audio"
    space = Space("small-audio", "1", 20)
    input = Input()

    def setup(self) -> None:
        """Nothing to load."""

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.stack([_bands(sound) for sound in batch]).astype(np.float32)


def _cells(picture: NDArray[np.uint8]) -> NDArray[Any]:
    rows = np.array_split(picture, 3)
    return np.concatenate([cell.mean((0, 1)) for row in rows for cell in np.array_split(row, 3, axis=1)])


def _bands(sound: NDArray[np.float32]) -> NDArray[Any]:
    power = np.abs(np.fft.rfft(sound, 4096)) ** 2
    return np.log([band.mean() + 1e-6 for band in np.array_split(power[:800], 20)])
