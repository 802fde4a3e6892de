"""Pictures: decoded early at a low resolution, cut into the whole and its tiles, brought to one square form."""

from __future__ import annotations

import json
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from reprlib import repr as shortened
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import DecodeError, FilteredError, UsageError
from mmembed.modalities import option
from mmembed.types import Media, Span

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageCms import ImageCmsTransform

MAX_PIXELS = 178_000_000
"""A picture with more pixels is refused before its pixels are decoded: it would take 4 bytes each (a "bomb")."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF")
"""What is decoded. A short list on purpose: Pillow's other formats are rare and some run programs (EPS)."""

BAD_DATA = (
    OSError,  # with UnidentifiedImageError: not a picture, truncated, a broken stream
    SyntaxError,  # a header that breaks the rules of its format
    ValueError,  # sizes, chunks and modes that can't be
    TypeError,  # metadata of a wrong type
    IndexError,  # a header that is too short
    KeyError,  # a code that no table has
    OverflowError,  # a size that doesn't fit the decoder
    EOFError,  # no frame
    RuntimeError,  # libavif
    MemoryError,  # a header that promises more bytes than can be addressed
    struct.error,
    zlib.error,
)
"""What Pillow raises for broken files; it wraps only some of it."""

_FARTHEST = 1e9  # pixels: what is beyond, or no number at all, is no place in a picture
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAYS = ("1", "L", "LA", "La")
_TILES = re.compile(r"([1-9]\d?)x([1-9]\d?)")


SIDE = 128
"""Pixels of a side of what encoders get, where neither the user nor the encoder says: see docs/encoders.md."""

FITS = ("letterbox", "crop", "stretch")
"""Ways in which a picture becomes a square."""

DCT_SPARE, BOX_SPARE = 1.1, 1.5
"""A JPEG is decoded at a lower resolution, and any picture reduced by the means of n x n pixels, to no less than these
times the resolution that is needed. From there, the last resampling is hard to tell from one of all pixels; the DCT
leaves out fine detail more cleanly than means do (docs/encoders.md)."""

COVER = (128, 128, 128)
"""What is laid over hidden boxes: one colour, for a blur or a mean keeps something of what is beneath (of a face the
colour of the skin, of writing its length), and what is not there needs no proof that it can't be brought back."""

EXACT_MARGIN, LOSSY_MARGIN = 2, 18
"""Pixels of the original around hidden boxes that are covered too. Lossy forms spread what is in a box over the blocks
that it touches: in a JPEG with common sampling, 16 x 16 pixels, and 2 more where its colours are enlarged."""

_EXACT = ("PNG", "GIF", "BMP", "PPM")

CELLS = 8
"""Rows and columns of the grid in which explanations tell the parts of a picture apart."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, or the part of it that one segment covers.

    Attributes:
        pixels: the whole picture: mode RGB, sRGB, oriented, over white; reduced where it was large.
        width: of the oriented original, in pixels.
        height: likewise.
        box: the part (left, top, right, bottom), in pixels of the oriented original.
        shown: where in `pixels` the picture lies: the last row and column of a reduced one may be filled in part.
    """

    pixels: PILImage
    width: int
    height: int
    box: tuple[int, int, int, int]
    shown: tuple[float, float, float, float]

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels in memory."""
        return 3 * self.pixels.width * self.pixels.height


@dataclass(frozen=True)
class Image:
    """Pictures: JPEG, PNG, WebP, GIF (its first frame), TIFF, BMP, PPM, AVIF.

    Attributes:
        size: side in pixels of the square that encoders get; 0: SIDE.
        fit: how a picture becomes a square: "letterbox" pads it with white, "crop" takes its middle, "stretch" changes
            its aspect; "": letterbox. Where they are left open, an encoder decides (`encoders.resolve`).
        tiles: "RxC": a grid of R rows and C columns whose tiles are further segments after the whole picture;
            "" for none.
        boxes: a key of the record's metadata that holds boxes, each [left, top, right, bottom], or an object of these
            keys or of x, y, width and height, in pixels of the oriented original: further segments after the whole
            picture, which is then decoded at its full resolution; "" for none.
        blur_boxes: a key of the record's metadata that holds boxes, as of `boxes`: they and a margin are covered as
            soon as the picture is decoded, for whatever purpose. The reader of the input takes them from the record
            to its media (`Media.blur`); where the key is missing, null or an empty list, nothing is hidden. A box
            that is none, or lies outside the picture, makes the picture an error.
        min_side: a picture whose shorter side has fewer pixels is left out.
        max_aspect: a picture whose longer side is more than so many times the other is left out; 0: none is.
    """

    size: int = option(0, "side in pixels of the square that encoders get; 0: as the encoder takes it, built-in 128")
    fit: str = option(
        "", "how a picture becomes a square: letterbox, crop or stretch (default: as the encoder does, else letterbox)"
    )
    tiles: str = option("", "RxC: the tiles of a grid of R rows and C columns are further segments, like 2x3")
    boxes: str = option("", "a key of the metadata with boxes [left, top, right, bottom]: they are further segments")
    blur_boxes: str = option(
        "", "a key of the metadata with boxes, as of --image-boxes: they are made unrecognizable", "--blur-boxes"
    )
    min_side: int = option(0, "leave out pictures whose shorter side has fewer pixels")
    max_aspect: float = option(
        0.0, "leave out pictures whose longer side is more than so many times the other; 0: none"
    )

    name: ClassVar[str] = "image"
    version: ClassVar[str] = "2"

    def __post_init__(self) -> None:
        if self.size and not 16 <= self.size <= 1024:
            raise UsageError(f"size is {self.size}: a picture's side is 16 to 1024 pixels; try 128")
        if self.fit not in ("", *FITS):
            raise UsageError(f'fit is "{self.fit}": it must be "letterbox", "crop" or "stretch"')
        if self.tiles and self.boxes:
            raise UsageError("tiles and boxes are two ways to cut a picture: choose one")
        if self.min_side < 0:
            raise UsageError(f"min_side is {self.min_side}: a picture's side has 0 pixels or more")
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise UsageError(
                f"max_aspect is {self.max_aspect}: the longer side is at least 1 times the other, or 0: any"
            )
        if self.tiles and not _TILES.fullmatch(self.tiles):
            raise UsageError(f'tiles are "{self.tiles}": write rows x columns, each 1 to 99, like "2x3", or nothing')

    @property
    def side(self) -> int:
        """Of the square that encoders get, in pixels."""
        return self.size or SIDE

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles, (0, 0) for none."""
        match = _TILES.fullmatch(self.tiles)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    @property
    def by_content(self) -> bool:
        """Whether segments depend on the medium alone: boxes are metadata."""
        return not self.boxes and not self.blur_boxes

    def decode(self, media: Media) -> Picture:
        """Decode at not much more than the needed resolution: less than 3 times it stays on each side.

        Raises:
            ReadError: the file can't be opened.
            DecodeError: it is not a picture, broken, or larger than MAX_PIXELS; or what is to be hidden is no box.
            FilteredError: its size or aspect is outside what is wanted.
        """
        from PIL import Image as pillow
        from PIL import UnidentifiedImageError

        with media.open() as file, warnings.catch_warnings():
            # Pillow warns of doubtful metadata and large pictures; neither matters here, and they come by the thousand.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            try:
                with pillow.open(file, formats=FORMATS) as image:
                    self._filter(*image.size)
                    picture = self._decode(image)
                    margin = EXACT_MARGIN if image.format in _EXACT else LOSSY_MARGIN
            except (*BAD_DATA, pillow.DecompressionBombError) as error:
                # Pillow's own words for it hold a memory address, and a rerun must give the same message.
                unknown = isinstance(error, UnidentifiedImageError)
                reason = f"it is none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
                raise DecodeError(f"can't decode {media.path or 'the picture'}: {reason}") from error
        if media.blur:
            _cover(picture, json.loads(media.blur), margin)
        return picture

    def _filter(self, width: int, height: int) -> None:
        """Raise FilteredError for a picture of a size that is not wanted."""
        shorter, longer = sorted((width, height))
        if shorter < self.min_side:
            raise FilteredError(f"{width} x {height} pixels: the shorter side is below min_side = {self.min_side}")
        if self.max_aspect and longer > self.max_aspect * shorter:
            raise FilteredError(f"{width} x {height} pixels: the longer side is above max_aspect = {self.max_aspect:g}")

    def _decode(self, image: PILImage) -> Picture:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}: make the picture smaller")
        # A JPEG is decoded at 1/2, 1/4 or 1/8 by its DCT; its last row and column may then be filled in part, and
        # `filled` says how far.
        drafted = None if self.boxes else image.draft(None, self._kept(width, height, DCT_SPARE))
        filled = drafted[1][2:] if drafted else (width, height)
        image.load()
        orientation, profile = _orientation(image), image.info.get("icc_profile")
        small, factor = _over_white(image), 1
        if not self.boxes:  # else boxes of any size are cut out later
            small, factor = _reduced(small, self._kept(width, height, BOX_SPARE))
        shown = _shown(small.size, (filled[0] / factor, filled[1] / factor), orientation)
        if orientation >= 5:
            width, height = height, width
        pixels = _orient(_to_srgb(small, profile), orientation)
        pixels.info = {}  # comments and the like: whoever saves the pixels saves nothing else
        return Picture(pixels, width, height, (0, 0, width, height), shown)

    def _kept(self, width: int, height: int, spare: float) -> tuple[int, int]:
        """The least size to keep: `spare` times the resolution of the sharpest segment.

        The grid's longer side counts for both, so that a rotation changes nothing.
        """
        side = min(width, height) if self.fit in ("crop", "stretch") else max(width, height)
        scale = min(1.0, spare * self.side * max(1, *self.grid) / side)
        return math.ceil(width * scale), math.ceil(height * scale)

    def segment(
        self, decoded: Picture, metadata: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[tuple[Span, Picture]]:
        """The whole picture, then its tiles row by row, or the boxes of the record; spans (left, top, right, bottom) in
        pixels of the oriented original. Tiles cover it without gap or overlap; one smaller than the grid has fewer.

        Raises:
            DecodeError: before the first segment: a box is none, or lies outside the picture.
        """
        if self.boxes:
            for box in [decoded.box, *_boxes(metadata.get(self.boxes), decoded)]:
                yield box, self._part(decoded, box)
            return
        yield decoded.box, decoded
        rows, columns = self.grid
        for top, bottom in _cuts(decoded.height, rows):
            for left, right in _cuts(decoded.width, columns):
                box = (left, top, right, bottom)
                yield box, replace(decoded, box=box)

    def _part(self, picture: Picture, box: tuple[int, int, int, int]) -> Picture:
        """What a box shows as a picture of its own, with no more pixels than are needed."""
        width, height = box[2] - box[0], box[3] - box[1]
        pixels, factor = _reduced(picture.pixels.crop(box), self._kept(width, height, BOX_SPARE))
        return Picture(pixels, width, height, (0, 0, width, height), (0, 0, width / factor, height / factor))

    def normalize(self, piece: Picture) -> NDArray[np.uint8]:
        """The piece as uint8 (side, side, 3) sRGB, filtered so that it doesn't alias; a small one is enlarged.

        At a tile's border the filter sees the pixels beyond it, as it would in the whole picture.
        """
        from PIL.Image import Resampling

        left, top, right, bottom = _middle(piece.box) if self.fit == "crop" else piece.box
        scale = self.side / max(right - left, bottom - top)
        width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        if self.fit == "stretch":
            width = height = self.side
        shown_left, shown_top, shown_right, shown_bottom = piece.shown
        across, down = shown_right - shown_left, shown_bottom - shown_top
        # Multiplied before divided, and nothing beyond the border: `resize` refuses a box too wide by a rounding.
        box = (
            shown_left + left * across / piece.width,
            shown_top + top * down / piece.height,
            min(shown_left + right * across / piece.width, shown_right),
            min(shown_top + bottom * down / piece.height, shown_bottom),
        )
        small = piece.pixels.resize((width, height), Resampling.BICUBIC, box, reducing_gap=2.0)
        square = np.full((self.side, self.side, 3), 255, np.uint8)
        x, y = (self.side - width) // 2, (self.side - height) // 2
        square[y : y + height, x : x + width] = np.asarray(small)
        return square

    def parts(self, content: NDArray[np.uint8]) -> list[tuple[float, ...]]:
        """8 x 8 cells of a normalized picture, row by row, in its pixels."""
        rows, columns = ([*_cuts(length, CELLS)] for length in content.shape[:2])
        return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]

    def masked(self, content: NDArray[np.uint8], spans: Sequence[tuple[float, ...]]) -> NDArray[np.uint8]:
        """With some cells in the mean colour of the whole picture."""
        picture, colour = content.copy(), content.mean(axis=(0, 1)).round().astype(np.uint8)
        for left, top, right, bottom in spans:
            picture[int(top) : int(bottom), int(left) : int(right)] = colour
        return picture


def _reduced(image: PILImage, kept: tuple[int, int]) -> tuple[PILImage, int]:
    """The means of as many pixels as leave at least `kept`, and how many they are in each direction."""
    factor = max(1, min(image.width // kept[0], image.height // kept[1]))
    return (image.reduce(factor) if factor > 1 else image), factor


def _shown(size: tuple[int, int], filled: tuple[float, float], orientation: int) -> tuple[float, float, float, float]:
    """Where a picture lies once `_orient` has turned its pixels, of which so many were filled from the upper left."""
    right = size[0] if orientation in (2, 3, 7, 8) else filled[0]
    bottom = size[1] if orientation in (3, 4, 6, 7) else filled[1]
    left, top = right - filled[0], bottom - filled[1]
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def _boxes(values: Any, picture: Picture) -> list[tuple[int, int, int, int]]:
    """The boxes that a record gives, in whole pixels and cut off at the picture's border."""
    if values is None:
        return []
    if not isinstance(values, list):
        raise DecodeError(f"boxes are a list of [left, top, right, bottom], not {shortened(values)}")
    return [_box(value, picture) for value in values]


def _box(value: Any, picture: Picture) -> tuple[int, int, int, int]:
    """One of them. Lists [x, y, width, height], as COCO has them, look like those of borders and can't be told apart:
    who has them writes objects."""
    sides = value
    if isinstance(value, dict):
        sides = [value.get(key) for key in ("left", "top", "right", "bottom")]
        if sides == [None] * 4:
            sides = [value.get(key) for key in ("x", "y", "width", "height")]
            if all(map(_is_number, sides)):
                sides[2], sides[3] = sides[0] + sides[2], sides[1] + sides[3]
    if not isinstance(sides, list) or len(sides) != 4 or not all(map(_is_number, sides)):
        raise DecodeError(
            "a box is [left, top, right, bottom] in pixels, or an object of these keys or of x, y, width and height, "
            f"not {shortened(value)}"
        )
    left, top = max(0, math.floor(sides[0])), max(0, math.floor(sides[1]))
    right, bottom = min(picture.width, math.ceil(sides[2])), min(picture.height, math.ceil(sides[3]))
    if left >= right or top >= bottom:
        raise DecodeError(
            f"the box {shortened(value)} holds nothing of the picture of {picture.width} x {picture.height}"
        )
    return left, top, right, bottom


def _cover(picture: Picture, values: Any, margin: int) -> None:
    """Lay COVER over boxes and a margin, and over each pixel of a reduced picture that holds some of them.

    Raises:
        DecodeError: as of `_boxes`; or a box is one pixel, as those are that are given in parts of the whole.
    """
    pixels, (left, top, right, bottom) = picture.pixels, picture.shown
    across, down = (right - left) / picture.width, (bottom - top) / picture.height
    for box in _boxes(values, picture):
        if box == (0, 0, 1, 1):
            raise DecodeError("a box to be hidden is one pixel: boxes are in pixels, not in parts of the picture")
        covered = (
            max(0, math.floor(left + (box[0] - margin) * across)),
            max(0, math.floor(top + (box[1] - margin) * down)),
            min(pixels.width, math.ceil(left + (box[2] + margin) * across)),
            min(pixels.height, math.ceil(top + (box[3] + margin) * down)),
        )
        pixels.paste(COVER, covered)


def _is_number(value: Any) -> bool:
    """Whether a value of JSON can be a place in a picture: no boolean, not infinite, not beyond what a float holds."""
    return type(value) in (int, float) and -_FARTHEST < value < _FARTHEST


def _cuts(length: int, parts: int) -> Iterator[tuple[int, int]]:
    """[0, length) cut into `parts` ranges that differ by one at most; empty ones are left out."""
    for i in range(parts):
        start, end = i * length // parts, (i + 1) * length // parts
        if start < end:
            yield start, end


def _middle(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The largest square in the middle of a box."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    left, top = left + (right - left - side) / 2, top + (bottom - top - side) / 2
    return left, top, left + side, top + side


def _over_white(image: PILImage) -> PILImage:
    """Any mode as 8-bit L, RGB or CMYK; what is transparent shows white."""
    from PIL import Image as pillow

    if image.mode in _SIXTEEN_BITS:
        return _eight_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: save the picture with 8 or 16 bits")
    mode = "L" if image.mode in _GRAYS else "RGB"
    if image.has_transparency_data:
        layer = image.convert(mode + "A")
        canvas = pillow.new(mode, image.size, "white")
        canvas.paste(layer.convert(mode), mask=layer.getchannel("A"))
        return canvas
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert(mode)


def _eight_bits(image: PILImage) -> PILImage:
    """Gray of 16 bits as L: scaled (65535 is white) where Pillow's own conversion clips."""
    from PIL import Image as pillow

    gray = np.asarray(image)
    if gray.min() < 0 or gray.max() > 65535:
        raise ValueError(f"gray values from {gray.min()} to {gray.max()}: save the picture with 8 or 16 bits")
    eight = ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        eight[gray == clear] = 255
    return pillow.fromarray(eight)


def _to_srgb(image: PILImage, profile: object) -> PILImage:
    """L, RGB or CMYK as sRGB, by the ICC profile where there is a sound one."""
    from PIL import ImageCms

    if isinstance(profile, bytes):
        try:
            converted = ImageCms.applyTransform(image, _srgb_transform(profile, image.mode))
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a broken profile, or one for another mode: the picture is shown as if it had none
        if converted is not None:
            return converted
    return image.convert("RGB")


@lru_cache(maxsize=16)  # most pictures of a set carry one of a few profiles
def _srgb_transform(profile: bytes, mode: str) -> ImageCmsTransform:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _orientation(image: PILImage) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it can't be read."""
    from PIL.ExifTags import Base

    try:
        value = image.getexif().get(Base.Orientation, 1)
    except BAD_DATA:  # only the metadata are broken, and a picture without them is a good picture
        return 1
    return value if value in range(1, 9) else 1


def _orient(image: PILImage, orientation: int) -> PILImage:
    """Turn and mirror as EXIF 2.3, tag 0x0112 says."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(methods[orientation]) if orientation in methods else image
