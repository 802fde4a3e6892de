"""What an encoder takes, and how normalized segments become it: the preprocessing of pretrained models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import EncodeError, UsageError
from mmembed.modalities.image import FITS

Array = NDArray[np.float32]

EXAMPLES: dict[str, Callable[[int], Any]] = {
    "image": lambda size: np.zeros((size, size, 3), np.uint8),
    "text": lambda _: "a picture",
    "audio": lambda rate: np.sin(np.arange(rate, dtype=np.float32)),
}
"""By modality, a segment of a size or a rate: a model is run on it to see whether it fits."""

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Input:
    """What an encoder takes, as far as its modality is concerned. The first three decide how segments are normalized,
    the others what a model's own preprocessing then makes of them.

    Attributes:
        size: pixels of a side of the square pictures; 0: any.
        fit: how a picture becomes a square, of which the user may choose another: "letterbox", "crop" or "stretch";
            "": as is usual.
        sample_rate: Hz of sounds; 0: any.
        crop: pixels of a side of the middle of the picture that the model gets; 0: all of it.
        layout: of the array that the model gets, "NCHW" or "NHWC".
        mean: what is taken off the channels red, green, blue, whose values are 0 to 1.
        std: what they are divided by then.
        standardize: whether each sound is brought to mean 0 and deviation 1 (wav2vec 2.0).
        max_tokens: longer texts are cut; 0: as the tokenizer says.

    Raises:
        UsageError: a value is out of its range.
    """

    size: int = 0
    fit: str = ""
    sample_rate: int = 0
    crop: int = 0
    layout: str = "NCHW"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    standardize: bool = False
    max_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "crop", "sample_rate", "max_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"input: {name} is {getattr(self, name)}, but must be 0 or more")
        if self.crop > self.size:
            raise UsageError(f"input: crop is {self.crop}, more than size = {self.size}")
        if self.fit not in ("", *FITS) or self.layout not in LAYOUTS:
            raise UsageError(f"input: fit is one of {FITS}, layout of {LAYOUTS}; not {self.fit!r}, {self.layout!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UsageError(f"input: mean and std are three numbers each, std above 0; not {self.mean}, {self.std}")

    @property
    def pixels(self) -> int:
        """Of a side of what the model gets."""
        return self.crop or self.size


def pixel_values(pictures: Sequence[NDArray[np.uint8]], input: Input) -> Array:
    """Pictures as a model takes them: (p / 255 - mean) / std of the middle, float32 (n, 3, h, w), or (n, h, w, 3).

    Args:
        pictures: uint8 (size, size, 3) sRGB.

    Raises:
        EncodeError: a picture is of another size.
    """
    for picture in pictures:
        if input.size and picture.shape != (input.size, input.size, 3):
            raise EncodeError(f"a picture must be of shape {(input.size, input.size, 3)}, not {picture.shape}")
    start = (input.size - input.pixels) // 2
    middle = slice(start, start + input.pixels) if input.crop else slice(None)
    # One multiplication and one addition a channel, straight into the array that the model gets.
    scale = (1 / (255 * np.asarray(input.std))).astype(np.float32)
    shift = (-np.asarray(input.mean) / np.asarray(input.std)).astype(np.float32)
    height, width = pictures[0][middle, middle].shape[:2]
    values = np.empty((len(pictures), 3, height, width), np.float32)
    for row, picture in enumerate(pictures):
        for channel in range(3):
            np.multiply(picture[middle, middle, channel], scale[channel], out=values[row, channel])
    values += shift[:, np.newaxis, np.newaxis]
    return values if input.layout == "NCHW" else np.ascontiguousarray(values.transpose(0, 2, 3, 1))


def waveform(samples: Array, standardize: bool = False) -> Array:
    """A sound without the zeros that pad a segment, float32 (samples,); at mean 0 and deviation 1 if that is wanted.

    Args:
        samples: float32 (n,), mono.

    Raises:
        EncodeError: there are no samples, or some are not finite.
    """
    if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        raise EncodeError(f"a segment must be finite samples of one channel, but is of shape {samples.shape}")
    last = int(np.argmax(samples[::-1] != 0))  # 0 too where there is no sound at all
    heard = samples[: len(samples) - last if samples[-1 - last] else 1]
    if not standardize:
        return heard
    return np.asarray((heard - heard.mean()) / np.sqrt(heard.var() + 1e-7), np.float32)  # as transformers does it


def by_length(lengths: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    """Rows that are equally long, together, the shortest first.

    Texts and sounds are encoded so, and not padded: then no row depends on its neighbours, nothing is computed for
    padding, and no mask is needed.
    """
    values = np.asarray(lengths)
    return (np.flatnonzero(values == length) for length in np.unique(values))


POOLINGS = ("mean", "cls", "max", "last")

POOLING = {"image": "cls", "text": "mean", "audio": "mean"}
"""By modality, where nothing says how a model's tokens or frames become one vector."""


def pooled(output: NDArray[Any], how: str, layout: str = "NCHW") -> Array:
    """A model's output as features, float32 (n, dim).

    Args:
        output: (n, dim) as it is; (n, tokens, dim); or (n, dim, h, w) in the layout NCHW, (n, h, w, dim) in NHWC.
        how: over tokens or places: their "mean" or "max", the first one ("cls"), or the "last"; a map of places has no
            first one, and "cls" is its mean.

    Raises:
        UsageError: the output has another form.
    """
    if output.ndim == 4:
        how = "mean" if how == "cls" else how
        output = output.reshape(*output.shape[:2], -1).transpose(0, 2, 1) if layout == "NCHW" else _flat(output)
    if output.ndim == 3:
        output = {"mean": _mean, "max": _max, "cls": _first, "last": _last}[how](output)
    if output.ndim != 2:
        raise UsageError(f"the model's output is of shape {output.shape}: it must be (n, dim), with tokens or places")
    return np.ascontiguousarray(output, np.float32)


def _flat(output: NDArray[Any]) -> NDArray[Any]:
    return output.reshape(len(output), -1, output.shape[-1])


def _mean(output: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(output.mean(axis=1, dtype=np.float32))


def _max(output: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(output.max(axis=1))


def _first(output: NDArray[Any]) -> NDArray[Any]:
    return output[:, 0]


def _last(output: NDArray[Any]) -> NDArray[Any]:
    return output[:, -1]


def unit_rows(features: NDArray[np.floating]) -> Array:
    """Rows of length 1, float32; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)
