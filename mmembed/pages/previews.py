"""Media small enough for a page: a thumbnail of a picture, a short sound that plays, both as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import MmembedError, ReadError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.pages import parts
from mmembed.types import Media, Span

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIDE = 240
"""Pixels of a thumbnail's longer side, at most."""

SECONDS = 12.0
"""Of a sound in a page, at most."""

_BLOCK = "▀"  # the upper half in the colour of the sign, the lower in that of its ground

Find = Callable[[str], Media]
"""Gives a medium by the name that a segment has in its column `media`. Raises MmembedError where it is gone."""


@dataclass(frozen=True)
class Piece:
    """A segment as a page shows it.

    Attributes:
        modality: of it.
        span: see `mmembed.types.Span`.
        media: the piece of text, or the name of the file.
    """

    modality: str
    span: Span
    media: str


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small picture.

    Attributes:
        pixels: RGB, at most `side` on each side, oriented, over white.
        width: of the oriented original, in pixels.
        height: likewise.
    """

    pixels: PILImage
    width: int
    height: int


def thumbnail(media: Media, side: int = SIDE) -> Thumbnail:
    """A picture made small; never enlarged. Boxes of it that nobody may see (`Media.blur`) are covered.

    Raises:
        RecordError: it can't be read or decoded.
    """
    picture = Image(size=min(max(side, 16), 1024)).decode(media)
    pixels = picture.pixels.copy()
    pixels.thumbnail((side, side))
    return Thumbnail(pixels, picture.width, picture.height)


def sound(media: Media, span: Sequence[float], most: float = SECONDS) -> tuple[bytes, str, float]:
    """A stretch of a sound, mono at 16 kHz, from the start of a span: its bytes, their MIME type, and its seconds.

    MP3, which all browsers play; FLAC where libsndfile can't write it. (Ogg would have a random serial number, and the
    same data set another page each time.)

    Args:
        span: start and end in seconds; none: from the first sample that is not silence.
        most: seconds.

    Raises:
        RecordError: it can't be read or decoded, or holds nothing there.
    """
    import soundfile

    decoder = Audio(window=0)
    rate = decoder.rate
    start = round(span[0] * rate) if len(span) == 2 else None
    length = round(min(most, span[1] - span[0] if len(span) == 2 else most) * rate)
    held: list[NDArray[np.float32]] = []
    for position, block in decoder.decode(media):
        start = position if start is None else start
        held.append(block[max(0, start - position) : max(0, start + length - position)])
        if position + len(block) >= start + length:
            break
    samples = np.concatenate(held)
    if not len(samples):
        raise ReadError(f"{media.path or 'the sound'} holds nothing at {span[0]:g} seconds")
    file = io.BytesIO()
    form, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    soundfile.write(file, np.clip(samples, -1, 1), rate, format=form)
    return file.getvalue(), mime, len(samples) / rate


def uri(data: bytes, mime: str) -> str:
    """Bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def show(modality: str, pieces: Sequence[Piece], find: Find, weights: Mapping[str, float] | None = None) -> str:
    """Segments of one modality of a record as markup. What can't be read is said in its place (`parts.gone`).

    Args:
        pieces: in order.
        find: gives the media.
        weights: of the words of texts, as of `parts.text_block`.
    """
    return _SHOWN[modality](pieces, find, weights or {}) if modality in _SHOWN else ""


def _pictures(pieces: Sequence[Piece], find: Find, weights: Mapping[str, float]) -> str:
    """A thumbnail for each picture, with a frame around each segment that is not the whole of it."""
    drawn = []
    for name in dict.fromkeys(piece.media for piece in pieces):
        spans = [piece.span for piece in pieces if piece.media == name]
        try:
            small = thumbnail(find(name))
        except MmembedError as error:
            drawn.append(parts.gone(_reason(name, error)))
            continue
        data = io.BytesIO()
        small.pixels.save(data, "WEBP", quality=80, method=4)
        boxes = "".join(_box(span, small) for span in spans if _is_part(span, small))
        size = f'width="{small.pixels.width}" height="{small.pixels.height}"'
        caption = f"{parts.isolated(name)} · {small.width} x {small.height}"
        drawn.append(
            f'<figure><span class="pic"><img {size} alt="{parts.label(name)}" '
            f'src="{uri(data.getvalue(), "image/webp")}">{boxes}</span>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return "".join(drawn)


def _is_part(span: Span, small: Thumbnail) -> bool:
    return len(span) == 4 and tuple(span) != (0, 0, small.width, small.height)


def _box(span: Span, small: Thumbnail) -> str:
    """A frame over a thumbnail, in percent of its sides."""
    left, top, right, bottom = (
        100 * min(max(value / whole, 0), 1)
        for value, whole in zip(span, (small.width, small.height, small.width, small.height))
    )
    style = f"left:{left:.1f}%;top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%"
    return f'<span style="{style}"></span>'


def _sounds(pieces: Sequence[Piece], find: Find, weights: Mapping[str, float]) -> str:
    """A player for each segment."""
    drawn = []
    for piece in pieces:
        try:
            data, mime, seconds = sound(find(piece.media), piece.span)
        except MmembedError as error:
            drawn.append(parts.gone(_reason(piece.media, error)))
            continue
        length = piece.span[1] - piece.span[0] if len(piece.span) == 2 else seconds
        cut = f", the first {seconds:.1f} s of it" if length > seconds + 0.05 else ""
        caption = f"{parts.isolated(piece.media)} · {where(piece)}{cut}"
        drawn.append(
            f'<figure><audio controls preload="none" src="{uri(data, mime)}"></audio>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return "".join(drawn)


def _texts(pieces: Sequence[Piece], find: Find, weights: Mapping[str, float]) -> str:
    """Each piece of text, with its place where there are several."""
    return "".join(
        parts.text_block(piece.media, weights)
        + (f'<p class="small soft">{where(piece)}</p>' if len(pieces) > 1 or piece.span[:1] not in ((0,), ()) else "")
        for piece in pieces
    )


_SHOWN: dict[str, Callable[[Sequence[Piece], Find, Mapping[str, float]], str]] = {
    "image": _pictures,
    "text": _texts,
    "audio": _sounds,
}
"""By modality, how its segments are shown."""


def where(piece: Piece) -> str:
    """A span in words."""
    span = [f"{value:.1f}" if piece.modality == "audio" else f"{value:g}" for value in piece.span]
    unit = {"audio": "s", "text": "characters", "image": "pixels"}.get(piece.modality, "")
    return f"{' to '.join(span) if len(span) == 2 else ', '.join(span)} {unit}".strip()


def _reason(name: str, error: Exception) -> str:
    return f"{name}: {error}" if name not in str(error) else str(error)


def in_terminal(media: Media, columns: int = 24, rows: int = 10) -> list[str]:
    """A picture as lines of half blocks in 24-bit colours, two pixels a sign; each line has `columns` signs at most.

    Raises:
        RecordError: it can't be read or decoded.
    """
    from PIL.Image import Resampling

    small = thumbnail(media, 2 * max(columns, 2 * rows)).pixels
    scale = min(columns / small.width, 2 * rows / small.height)
    width, height = max(1, round(small.width * scale)), max(2, round(small.height * scale / 2) * 2)
    pixels: NDArray[Any] = np.asarray(small.resize((width, height), Resampling.BICUBIC))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2]):
        signs = [
            "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*above, *below) + _BLOCK for above, below in zip(upper, lower)
        ]
        lines.append("".join(signs) + "\x1b[0m")
    return lines


def contact_sheet(media: Mapping[str, Callable[[], Media]], width: int, columns: int = 24) -> list[str]:
    """Pictures side by side, as lines for a terminal of so many columns; a name over each. What can't be read or is no
    picture is left out.

    Args:
        media: how each is found, by its name.
    """
    drawn = []
    for name, find in media.items():
        with suppress(MmembedError):
            drawn.append((parts.clean(name), in_terminal(find(), columns)))
    lines = []
    for start in range(0, len(drawn), abreast := max(1, (width + 2) // (columns + 2))):
        row = drawn[start : start + abreast]
        lines.append("  ".join(parts.shorten(name, columns).ljust(columns) for name, _ in row).rstrip())
        widths = [picture[0].count(_BLOCK) for _, picture in row]
        for number in range(max(len(picture) for _, picture in row)):
            cells = [
                picture[number] + " " * (columns - size) if number < len(picture) else " " * columns
                for (_, picture), size in zip(row, widths)
            ]
            lines.append("  ".join(cells).rstrip())
    return lines
