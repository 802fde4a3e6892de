"""Media of a data set for a browser: their types told by their bytes, parts of them, small pictures of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw

from mmembed.modalities.audio import Audio
from mmembed.pages import previews
from mmembed.types import Media, Span

SIDE = 360
"""Pixels of the longer side of a thumbnail: 180 on a dense screen."""

WAVE = (360, 96)
"""Pixels of a sound's thumbnail."""

PEAKS = 120
"""Bars of a sound's thumbnail."""

BLOCK = 1 << 16
"""Bytes that are sent at once."""

_HEAD = 16
_RATE = 8_000  # Hz: enough to see how loud a sound is
_FRAME = _RATE // 50
_ACCENT = (124, 130, 242, 255)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)  # of longer numbers int() makes none


def type_of(modality: str, head: bytes) -> str:
    """The media type of a file by its first bytes; "" if it is none that a browser may be given.

    What a manifest calls a picture and is none (a page, an SVG with a script in it, a file of passwords) has no type.

    Args:
        head: 16 bytes, or fewer where there are no more.
    """
    kinds = {"image": _IMAGES, "audio": _SOUNDS}.get(modality, ())
    return next((kind for pattern, kind in kinds if re.match(pattern, head, re.DOTALL)), "")


_IMAGES = (
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"RIFF....WEBP", "image/webp"),
    (rb"GIF8[79]a", "image/gif"),
    (rb"BM", "image/bmp"),
    (rb"II\*\0|MM\0\*", "image/tiff"),
    (rb"P[1-6]\s", "image/x-portable-anymap"),
    (rb"....ftypavi[fs]", "image/avif"),
)
_SOUNDS = (
    (rb"(RIFF|RF64)....WAVE", "audio/wav"),
    (rb"fLaC", "audio/flac"),
    (rb"OggS", "audio/ogg"),
    (rb"ID3|\xff[\xe2-\xff]", "audio/mpeg"),
    (rb"FORM....AIF[FC]", "audio/aiff"),
    (rb"\.snd", "audio/basic"),
    (rb"caff", "audio/x-caf"),
)


@dataclass(frozen=True)
class Served:
    """A medium that is open, and what of it is asked for.

    Attributes:
        type: its media type.
        size: bytes of the whole.
        start: the first byte that is asked for.
        end: the one after the last.
    """

    file: BinaryIO
    type: str
    size: int
    start: int
    end: int

    def blocks(self) -> Iterator[bytes]:
        """What is asked for; the file is closed after it."""
        with self.file as file:
            file.seek(self.start)
            left = self.end - self.start
            while left and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                yield block


class RangeError(ValueError):
    """No byte that is asked for is there; the message is how many there are."""


def serve(media: Media, modality: str, wanted: str = "") -> Served | None:
    """A picture or a sound, open; None if it is none that a browser may be given.

    Args:
        wanted: the request's Range header; several ranges at once are answered with the whole.

    Raises:
        ReadError: it can't be opened.
        RangeError: it ends before what is asked for.
    """
    file = media.open()
    try:
        kind = type_of(modality, file.read(_HEAD))
        size = file.seek(0, io.SEEK_END)
        if kind:
            return Served(file, kind, size, *_slice(wanted, size))
        file.close()
        return None
    except BaseException:
        file.close()
        raise


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


def _webp(picture: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=82, method=2)
    return data.getvalue()


def content_of(media: Media) -> str | bytes:
    """All of a medium: a text, or the bytes of a file.

    Raises:
        ReadError: it can't be opened.
    """
    if isinstance(media.content, str):
        return media.content
    with media.open() as file:
        return file.read()
