"""Media of a data set for a browser: what they show and sound like, parts of that, small pictures of it."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw

from mmembed.modalities.audio import Audio, open_sound
from mmembed.pages import previews
from mmembed.types import Media, Span

SIDE = 360
"""Pixels of the longer side of a thumbnail: 180 on a dense screen."""

LARGE = 3072
"""Pixels of the longer side of a picture that is looked at, at most; a larger one keeps a third of them or more."""

WAVE = (360, 96)
"""Pixels of a sound's thumbnail."""

PEAKS = 120
"""Bars of a sound's thumbnail."""

BLOCK = 1 << 16
"""Bytes that are sent at once."""

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # of a WAV
_RATE = 8_000  # Hz: enough to see how loud a sound is
_FRAME = _RATE // 50
_ACCENT = (124, 130, 242, 255)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)  # of longer numbers int() makes none


@dataclass(frozen=True)
class Served:
    """A medium, and what of it is asked for.

    Attributes:
        type: its media type.
        size: bytes of the whole.
        start: the first byte that is asked for.
        end: the one after the last.
        blocks: what is asked for.
    """

    type: str
    size: int
    start: int
    end: int
    blocks: Iterator[bytes]


class RangeError(ValueError):
    """No byte that is asked for is there; the message is how many there are."""


def serve(media: Media, modality: str, wanted: str = "") -> Served:
    """A picture as WebP or a sound as WAV, made of what was decoded: nothing else that is in a file leaves this machine
    (where and by whom it was made, a small picture of what was cut away), and what is no medium is no answer.

    Args:
        wanted: the request's Range header; several ranges at once are answered with the whole.

    Raises:
        RecordError: it can't be opened or decoded.
        RangeError: it ends before what is asked for.
    """
    if modality == "image":
        data = _webp(previews.thumbnail(media, LARGE).pixels, quality=90)
        start, end = _slice(wanted, len(data))
        return Served("image/webp", len(data), start, end, iter([data[start:end]]))
    binary, file, frames = open_sound(media)
    try:
        size = _HEADER.size + 2 * file.channels * frames
        start, end = _slice(wanted, size)
    except BaseException:
        binary.close()
        raise
    return Served("audio/wav", size, start, end, _wav(binary, file, size, start, end))


def _wav(binary: BinaryIO, file: Any, size: int, start: int, end: int) -> Iterator[bytes]:
    """Bytes of the WAV, 16 bits a sample, that a sound is; it is decoded as they are taken, and closed after them."""
    import soundfile

    with binary, file:
        width, rate, body = 2 * file.channels, file.samplerate, size - _HEADER.size
        most = 0xFFFFFFFF  # of more bytes, a WAV says that they are so many, and players go on to the end
        riff = (b"RIFF", min(size - 8, most), b"WAVE", b"fmt ", 16, 1, file.channels, rate)
        yield _HEADER.pack(*riff, rate * width, width, 16, b"data", min(body, most))[start:end]
        frame, skip = divmod(max(0, start - _HEADER.size), width)
        left = end - max(start, _HEADER.size)
        with suppress(soundfile.LibsndfileError):  # damaged from there on: silence
            warm = max(0, frame - rate)  # frames of an MP3 lean on those before
            file.seek(warm)
            file.read(frame - warm, dtype="float32")
            while left > 0 and len(samples := file.read(BLOCK // width, dtype="float32", always_2d=True)):
                whole = np.clip(np.nan_to_num(samples), -1, 1) * 32_767
                data = whole.round().astype("<i2").tobytes()[skip : skip + left]
                skip, left = 0, left - len(data)
                yield data
        while left > 0:  # its header promised more
            yield bytes(min(BLOCK, left))
            left -= BLOCK


def _slice(wanted: str, size: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(wanted.strip())
    if not match or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RangeError(str(size))
    return start, end


def thumbnail(media: Media, span: Span = ()) -> bytes:
    """A picture, small, as WebP; what lies outside a box is veiled.

    Args:
        span: the box, in pixels of the oriented original; () for none.

    Raises:
        ReadError: it can't be opened.
        DecodeError: it can't be decoded.
    """
    small = previews.thumbnail(media, SIDE)
    if len(span) == 4 and span != (0, 0, small.width, small.height):
        return _webp(_veiled(small.pixels, [value * small.pixels.width / small.width for value in span]))
    return _webp(small.pixels)


def _veiled(picture: Any, box: Sequence[float]) -> Any:
    """Pale outside a box, (left, top, right, bottom) in any order, which may reach out of the picture."""
    xs, ys = sorted(map(round, box[::2])), sorted(map(round, box[1::2]))
    veil = pillow.new("L", picture.size, 170)
    ImageDraw.Draw(veil).rectangle([xs[0], ys[0], xs[1], ys[1]], fill=0)
    return pillow.composite(pillow.new("RGB", picture.size, (128, 128, 136)), picture, veil)


def wave(media: Media) -> bytes:
    """How loud a sound is over time, as WebP that is transparent between its bars.

    Raises:
        ReadError: it can't be opened.
        DecodeError: it can't be decoded.
    """
    frames: list[NDArray[np.float32]] = []
    position = 0
    for start, block in Audio(sample_rate=_RATE, window=0.0).decode(media):
        frames.append(np.zeros((start - position) // _FRAME, np.float32))
        frames.append(np.maximum.reduceat(np.abs(block), np.arange(0, len(block), _FRAME)))
        position = start + len(block)
    heights = peaks(np.concatenate(frames), PEAKS)
    picture = pillow.new("RGBA", WAVE)
    draw, step, middle = ImageDraw.Draw(picture), WAVE[0] / len(heights), WAVE[1] / 2
    for place, height in enumerate(heights):
        half = max(1.0, height * (middle - 2))
        draw.rounded_rectangle(
            (place * step, middle - half, (place + 0.7) * step, middle + half), step / 4, fill=_ACCENT
        )
    return _webp(picture)


def peaks(samples: NDArray[np.float32], count: int) -> list[float]:
    """The loudest of each of at most `count` equal stretches, 0 to 1, by the loudest of all."""
    if not len(samples):
        return [0.0]
    starts = np.unique(np.linspace(0, len(samples), min(count, len(samples)), endpoint=False).astype(np.intp))
    found = np.maximum.reduceat(np.abs(samples), starts)
    return [round(float(value), 3) for value in found / max(float(found.max()), 1e-9)]


def webp(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (height, width, 3) as WebP."""
    return _webp(pillow.fromarray(pixels))


def _webp(picture: Any, quality: int = 82) -> bytes:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=quality, method=2)
    return data.getvalue()
