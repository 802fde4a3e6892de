"""The built-in encoder of pictures: edges, colours, texture and outline as statistics, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.input import Input
from mmembed.errors import EncodeError
from mmembed.types import Space

GRID = 8
"""Edges and colour layout are taken on GRID x GRID cells; mirrored cells are averaged, so half of them remain."""

ORIENTATIONS = 8
"""Bins of edge direction over half a turn."""

FAINT = 0.2
"""Added to the norm of a cell's mean gradient, in gray levels: below it, a cell counts as flat instead of its noise
being amplified."""

HSV_BINS = (12, 3, 3)
"""Bins of hue, saturation, value."""

RADII = (1, 2, 4)
"""Distances in pixels at which texture compares a pixel with its eight neighbours."""

BANDS = 2
"""Texture is counted in this many horizontal bands, from top to bottom."""

NOISE = 2
"""Gray levels by which a neighbour must be lighter to count as lighter."""

WHITE = 243
"""A pixel with a channel below this is part of the object and not of the white ground."""

MIN_SIDE = 16
"""Least height and width in pixels."""


@dataclass(frozen=True)
class ImageStatistics:
    """What is measured on a picture; a picture and its mirror image have the same features.

    edges: histograms of oriented gradients (Dalal and Triggs, 2005) of the strongest channel, 8 x 8 cells of 8 unsigned
        directions, each cell of length 1: what shape it has.
    layout: the mean colour of 8 x 8 cells.
    colours: histogram of hue, saturation and value of what is not white, square roots of frequencies.
    texture: uniform local binary patterns (Ojala, Pietikäinen and Mäenpää, 2002) at distances 1, 2 and 4 in an upper
        and a lower half, square roots of frequencies.
    outline: area, height, width, aspect and fill of what is not white.
    """

    @property
    def modality(self) -> str:
        """Always "image"."""
        return "image"

    @property
    def space(self) -> Space:
        """Version 1."""
        return Space("image-statistics", "1", _dim())

    @property
    def input(self) -> Input:
        """Pictures of any size; 128 pixels were found to be enough (docs/encoders.md)."""
        return Input()

    def setup(self) -> None:
        """There are no weights."""

    def encode(self, batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), space.dim), finite, each value between -5 and 5.

        A loop over pictures on purpose: one picture's arrays stay in the processor's cache, which makes it faster than
        arrays of a whole batch, and a row can't depend on its batch.

        Args:
            batch: uint8 (height, width, 3) sRGB, at least 16 x 16.

        Raises:
            EncodeError: a picture has another form.
        """
        return np.stack([_features(picture) for picture in batch])


def _features(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 (dim,) of one picture, uint8 (height, width, 3)."""
    from PIL import Image

    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < MIN_SIDE:
        raise EncodeError(
            f"a picture must be uint8 (height, width, 3) of at least {MIN_SIDE} x {MIN_SIDE}, "
            f"not {picture.dtype} {picture.shape}"
        )
    image = Image.fromarray(picture)
    gray = np.asarray(image.convert("L"))
    # Three slices: a reduction along an axis of three is many times slower.
    drawn = np.minimum(np.minimum(picture[..., 0], picture[..., 1]), picture[..., 2]) < WHITE
    parts = (
        edges(picture),
        layout(np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))),
        colours(np.asarray(image.convert("HSV")), drawn),
        *(texture(gray, radius) for radius in RADII),
        outline(drawn),
    )
    return np.concatenate(parts)


@cache
def _dim() -> int:
    return len(_features(np.zeros((MIN_SIDE, MIN_SIDE, 3), np.uint8)))


def edges(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of oriented gradients, float32 (GRID * GRID / 2 * ORIENTATIONS,).

    At each pixel the channel with the largest gradient (central differences, 0 at the border) counts. Its magnitude is
    shared between the two nearest directions; bin b stands for the angle b / ORIENTATIONS of half a turn.
    """
    across, down = gradient(picture)
    height, width = across.shape
    at = np.flatnonzero((across != 0) | (down != 0))  # much of many pictures is flat
    across, down = across.ravel()[at], down.ravel()[at]
    magnitude = np.sqrt(across * across + down * down)
    direction = np.arctan2(down, across) * np.float32(ORIENTATIONS / np.pi) + np.float32(ORIENTATIONS)
    lower = direction.astype(np.intp)
    upper_share = magnitude * (direction - lower.astype(np.float32))
    # Counted over a whole turn and folded below: cheaper than a modulo at each pixel.
    bins = 3 * ORIENTATIONS
    index = _cells(height, width)[at] * bins + lower
    total = np.bincount(index, magnitude - upper_share, GRID * GRID * bins)
    total += np.bincount(index + 1, upper_share, GRID * GRID * bins)
    cells = total.reshape(GRID, GRID, 3, ORIENTATIONS).sum(axis=2) * (GRID * GRID / (height * width))
    cells /= np.linalg.norm(cells, axis=2, keepdims=True) + FAINT
    mirrored = cells[:, ::-1, -np.arange(ORIENTATIONS) % ORIENTATIONS]
    return np.asarray((cells + mirrored)[:, : GRID // 2] / 2, np.float32).ravel()


@lru_cache(maxsize=1)  # pictures of a run are of one size
def _cells(height: int, width: int) -> NDArray[np.int64]:
    """The cell of each pixel, row by row, int64 (height * width,)."""
    return ((np.arange(height) * GRID // height)[:, None] * GRID + np.arange(width) * GRID // width).ravel()


def gradient(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Differences to the right and downward of the channel in which they are largest together, float32 (height, width),
    in gray levels over two pixels; 0 at the border."""
    channels = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)
    across, down = np.zeros_like(channels), np.zeros_like(channels)
    np.subtract(channels[:, :, 2:], channels[:, :, :-2], out=across[:, :, 1:-1])
    np.subtract(channels[:, 2:], channels[:, :-2], out=down[:, 1:-1])
    squared = across * across + down * down
    best_across, best_down, best = across[0], down[0], squared[0]
    for channel in (1, 2):
        larger = squared[channel] > best
        best = np.where(larger, squared[channel], best)
        best_across = np.where(larger, across[channel], best_across)
        best_down = np.where(larger, down[channel], best_down)
    return best_across, best_down


def layout(cells: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The left half of (GRID, GRID, 3) mean colours, averaged with the mirrored right half; 0 to 1."""
    shares = cells.astype(np.float32) / 255
    return np.asarray((shares + shares[:, ::-1])[:, : GRID // 2] / 2, np.float32).ravel()


def colours(hsv: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Histogram of hue, saturation and value (uint8, height, width, 3) where `drawn`, square roots of frequencies,
    0 to 1; all 0 where nothing is."""
    code = np.zeros(drawn.shape, np.uint16)
    for channel, bins in enumerate(HSV_BINS):
        code = code * np.uint16(bins) + ((hsv[..., channel] * np.uint16(bins)) >> np.uint16(8))
    counts = np.bincount(code[drawn], minlength=int(np.prod(HSV_BINS)))
    return np.asarray(np.sqrt(counts / max(1, counts.sum())), np.float32)


def texture(gray: NDArray[np.uint8], radius: int) -> NDArray[np.float32]:
    """Histograms of local binary patterns in BANDS horizontal bands, square roots of frequencies, 0 to 1."""
    pattern = binary_pattern(gray, radius)
    fold = pattern_classes()
    classes = int(fold.max()) + 1
    bands = [
        np.bincount(fold, np.bincount(band.ravel(), minlength=256), classes) / band.size
        for band in np.array_split(pattern, BANDS)
    ]
    return np.asarray(np.sqrt(np.concatenate(bands)), np.float32)


def binary_pattern(gray: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """One bit for each of eight neighbours `radius` away, clockwise from the upper left (bit 0): is it more than NOISE
    lighter? uint8 (height - 2 * radius, width - 2 * radius)."""
    height, width = gray.shape
    # All in one row of bytes, which a processor compares and adds many at once; what wraps around is cut off below.
    flat, start = gray.ravel(), radius * width + radius
    count = (height - 2 * radius) * width - 2 * radius
    inner = np.minimum(flat[start : start + count], np.uint8(255 - NOISE)) + np.uint8(NOISE)  # nothing exceeds 255
    pattern = np.zeros((height - 2 * radius) * width, np.uint8)
    bits, lighter = pattern[:count], np.empty(count, bool)
    for y, x in [(1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]:  # the highest bit first
        place = y * radius * width + x * radius
        np.greater(flat[place : place + count], inner, out=lighter)
        bits += bits
        bits += lighter.view(np.uint8)
    return pattern.reshape(-1, width)[:, : width - 2 * radius]


@cache
def pattern_classes() -> NDArray[np.int64]:
    """The class of each of the 256 patterns: a uniform one (its ring changes twice at most) shares a class with its
    mirror image alone; all others share one."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    uniform = (bits != np.roll(bits, 1, axis=1)).sum(axis=1) <= 2
    mirrored = bits[:, [2, 1, 0, 7, 6, 5, 4, 3]] @ (1 << np.arange(8))
    return np.unique(np.where(uniform, np.minimum(np.arange(256), mirrored), 256), return_inverse=True)[1]


def outline(drawn: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Area, height and width as shares of the picture, log(height / width), and the share of the bounding rows and
    columns that is filled; float32 (5,), from bool (height, width)."""
    area, tall, wide = drawn.mean(), drawn.any(axis=1).mean(), drawn.any(axis=0).mean()
    aspect = np.log((tall + 0.02) / (wide + 0.02))
    return np.array([area, tall, wide, aspect, area / max(tall * wide, 1e-3)], np.float32)
