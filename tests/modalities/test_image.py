"""Pictures are decoded to what a person sees, at the resolution that is needed, or refused with one kind of error."""

from __future__ import annotations

import io
import json
import math
import pickle
import tracemalloc
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageCms, ImageOps, features

from mmembed.errors import DecodeError, FilteredError, ReadError, UsageError
from mmembed.modalities import image as module
from mmembed.modalities.image import BOX_SPARE, COVER, DCT_SPARE, EXACT_MARGIN, LOSSY_MARGIN, Image, Picture
from mmembed.types import Media


def encoded(image: pillow.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(content: bytes, **options: object) -> Picture:
    return Image(**options).decode(Media(content=content))  # type: ignore[arg-type]


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(decoded(content).pixels)


def flat(colour: object, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> pillow.Image:
    return pillow.new(mode, size, colour)  # type: ignore[arg-type]


def noise(height: int = 24, width: int = 36, channels: int = 3) -> pillow.Image:
    return pillow.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8))


def smooth(width: int, height: int) -> pillow.Image:
    """Slow waves: what any good reduction keeps."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(7 * x / width + i) * np.cos(5 * y / height + 2 * i) for i in range(3)]
    return pillow.fromarray(np.stack(waves, 2).astype(np.uint8))


QUADRANTS = np.zeros((16, 24, 3), np.uint8)
QUADRANTS[:8, :12], QUADRANTS[:8, 12:], QUADRANTS[8:, :12], QUADRANTS[8:, 12:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (40, 40, 40),
)


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("GIF", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 4),
        ("MPO", {"quality": 100, "subsampling": 0}, 4),
        pytest.param("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 8),
    ],
)
def test_formats_give_the_pixels_that_were_saved(form: str, options: dict[str, object], tolerance: int) -> None:
    assert form != "AVIF" or features.check("avif")
    picture = decoded(encoded(pillow.fromarray(QUADRANTS), form, **options))
    assert (picture.width, picture.height, picture.box) == (24, 16, (0, 0, 24, 16))
    assert picture.pixels.mode == "RGB"
    assert np.abs(np.asarray(picture.pixels).astype(int) - QUADRANTS).max() <= tolerance


def test_a_file_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(flat((1, 2, 3)), "PNG"))
    assert Image().decode(Media(path="a.png", folder=str(tmp_path))).width == 20


def test_the_first_frame_of_a_gif_counts() -> None:
    first, second = flat((255, 0, 0)).quantize(4), flat((0, 255, 0)).quantize(4)
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (pixels(content) == (255, 0, 0)).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_shows_white(form: str) -> None:
    image = flat((200, 0, 0, 255), "RGBA")
    image.paste((0, 0, 200, 0), (0, 0, 10, 16))
    image.paste((0, 0, 0, 128), (0, 0, 10, 8))
    got = pixels(encoded(image, form, **({"lossless": True} if form == "WEBP" else {})))
    assert (got[8:, :10] == 255).all() and (got[:, 10:] == (200, 0, 0)).all()
    assert (np.abs(got[:8, :10].astype(int) - 127) <= 1).all()


def test_what_is_transparent_does_not_bleed_into_a_reduced_picture() -> None:
    image = flat((0, 0, 0, 0), "RGBA", (600, 600))
    image.paste((255, 0, 0, 255), (300, 0, 600, 600))
    small = Image(size=20).normalize(decoded(encoded(image, "PNG"), size=20))
    assert (small[:, :9] == 255).all() and small[..., 0].min() >= 254


def test_gray_with_alpha_shows_white() -> None:
    image = flat((50, 255), "LA")
    image.paste((50, 0), (0, 0, 10, 16))
    got = pixels(encoded(image, "PNG"))
    assert (got[:, :10] == 255).all() and (got[:, 10:] == 50).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_palette_with_transparency_shows_white(transparency: int | bytes) -> None:
    image = flat(0, "P")
    image.putpalette([9, 8, 7, 100, 150, 200])
    image.paste(1, (10, 0, 20, 16))
    for form in ("PNG", "GIF") if isinstance(transparency, int) else ("PNG",):
        got = pixels(encoded(image, form, transparency=transparency))
        assert (got[:, :10] == 255).all() and (got[:, 10:] == (100, 150, 200)).all()


def test_a_transparent_colour_shows_white() -> None:
    image = flat((10, 20, 30))
    image.paste((200, 100, 50), (10, 0, 20, 16))
    got = pixels(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert (got[:, :10] == 255).all() and (got[:, 10:] == (200, 100, 50)).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    values = np.array([[0, 257, 1000, 32768, 65278, 65535]] * 4, np.uint16)
    got = pixels(encoded(pillow.fromarray(values), form))
    assert (got[0] == np.array([0, 1, 4, 128, 254, 255])[:, None]).all()


def test_a_transparent_gray_of_sixteen_bits_shows_white() -> None:
    values = np.array([[300, 300, 5140, 5140]] * 4, np.uint16)
    got = pixels(encoded(pillow.fromarray(values), "PNG", transparency=300))
    assert got[0, :, 0].tolist() == [255, 255, 20, 20]


def test_one_bit_is_black_and_white() -> None:
    image = flat(1, "1")
    image.paste(0, (0, 0, 10, 16))
    got = pixels(encoded(image, "PNG"))
    assert (got[:, :10] == 0).all() and (got[:, 10:] == 255).all()


def test_floating_point_pixels_are_refused_with_a_remedy() -> None:
    with pytest.raises(DecodeError, match="8 or 16 bits"):
        decoded(encoded(flat(0.5, "F"), "TIFF"))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_ink_on_white(form: str) -> None:
    image = flat((0, 255, 255, 0), "CMYK", (32, 16))  # red
    image.paste((0, 0, 0, 0), (16, 0, 32, 16))  # no ink; Pillow writes a JPEG inverted, as Adobe does
    got = pixels(encoded(image, form, **({"quality": 100} if form == "JPEG" else {}))).astype(int)
    assert np.abs(got[:, :16] - (255, 0, 0)).max() <= 3 and np.abs(got[:, 16:] - 255).max() <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_gives_the_same_picture(form: str, orientation: int) -> None:
    # What a camera stores so that the viewer, who applies the tag, sees QUADRANTS (written out, independent of Pillow's
    # table: a tag says where row 0 and column 0 of the stored picture belong).
    seen = np.kron(QUADRANTS, np.ones((2, 2, 1), np.uint8))
    swapped = seen.transpose(1, 0, 2)
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }[orientation]
    exif = pillow.Exif()
    exif[0x0112] = orientation
    lossy = {"quality": 100, "subsampling": "4:4:4"} if form in ("JPEG", "AVIF") else {}
    content = encoded(
        pillow.fromarray(np.ascontiguousarray(stored)),
        form,
        exif=exif,
        **({"lossless": True} if form == "WEBP" else lossy),
    )
    picture = decoded(content)
    assert (picture.width, picture.height) == (48, 32)
    assert np.abs(np.asarray(picture.pixels).astype(int) - seen).max() <= (8 if lossy else 0)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_picture_keeps_the_size_of_the_oriented_original(orientation: int) -> None:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    picture = decoded(encoded(smooth(1000, 500), "JPEG", exif=exif), size=32)
    assert (picture.width, picture.height) == ((1000, 500) if orientation == 1 else (500, 1000))
    assert max(picture.pixels.size) < 100


def test_broken_exif_and_profile_are_ignored() -> None:
    clean = pixels(encoded(noise(), "PNG"))
    assert (
        pixels(encoded(noise(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff", icc_profile=b"no profile" * 20)) == clean
    ).all()
    orientation = pillow.Exif()
    orientation[0x0112] = 77
    assert (pixels(encoded(noise(), "PNG", exif=orientation)) == clean).all()


def test_an_srgb_profile_changes_nothing_and_a_wrong_mode_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clean = pixels(encoded(noise(), "PNG"))
    assert np.abs(pixels(encoded(noise(), "PNG", icc_profile=profile)).astype(int) - clean).max() <= 1
    gray = encoded(flat(100, "L"), "PNG", icc_profile=profile)
    assert (pixels(gray) == 100).all()


def test_an_embedded_profile_is_converted() -> None:
    """A profile whose red and blue columns are exchanged shows red as blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    entries = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    got = pixels(encoded(flat((255, 0, 0)), "PNG", icc_profile=bytes(profile)))
    assert np.abs(got.astype(int) - (0, 0, 255)).max() <= 3


@pytest.mark.parametrize("content", [b"", b"\0", b"no picture at all", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_named_without_an_address(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DecodeError, match=r"^can't decode x\.png: it is none of JPEG, PNG"):
        Image().decode(Media(path="x.png", folder=str(tmp_path)))
    with pytest.raises(DecodeError) as raised:
        decoded(content)
    assert "0x" not in str(raised.value)


def test_a_missing_file_is_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="can't open no"):
        Image().decode(Media(path="no.png", folder=str(tmp_path)))


def bomb(width: int, height: int) -> bytes:
    """A BMP header that promises width x height pixels, without them."""
    size = width * height * 3
    return (
        b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
        + width.to_bytes(4, "little") + height.to_bytes(4, "little") + b"\1\0\x18\0" + bytes(4)
        + (size & 0x7FFFFFFF).to_bytes(4, "little") + bytes(16)
    )  # fmt: skip


@pytest.mark.parametrize("size", [(13_400, 13_300), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_takes_memory(size: tuple[int, int]) -> None:
    limit = pillow.MAX_IMAGE_PIXELS
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DecodeError, match="pixels"):
            decoded(bomb(*size))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert limit == pillow.MAX_IMAGE_PIXELS


def test_the_limit_is_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(flat((1, 2, 3)), "PNG")
    monkeypatch.setattr(module, "MAX_PIXELS", 320)
    assert decoded(content).width == 20
    monkeypatch.setattr(module, "MAX_PIXELS", 319)
    with pytest.raises(DecodeError, match="20 x 16 pixels are more than 319"):
        decoded(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (700, 1900), (2000, 90), (500, 500)])
def test_decoding_at_low_resolution_is_close_to_decoding_all(form: str, width: int, height: int) -> None:
    image, size = smooth(width, height), 64
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    got = Image(size=size).normalize(decoded(encoded(image, form, **options), size=size)).astype(int)
    scale = size / max(width, height)
    inner = image.resize((round(width * scale), round(height * scale)), pillow.Resampling.BICUBIC)
    expected = np.full((size, size, 3), 255)
    x, y = (size - inner.width) // 2, (size - inner.height) // 2
    expected[y : y + inner.height, x : x + inner.width] = np.asarray(inner)
    assert np.abs(got - expected).mean() < 1.5 and np.abs(got - expected).max() < 20


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_reduced_without_a_shift(form: str, orientation: int) -> None:
    image, turned = smooth(999, 749), pillow.Exif()  # its last row and column are filled in part
    turned[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    full = ImageOps.exif_transpose(pillow.open(io.BytesIO(encoded(image, form, exif=turned, **options))))
    picture = decoded(encoded(image, form, exif=turned, **options), size=64, fit="stretch")
    assert picture.shown != (0, 0, *picture.pixels.size)
    got = Image(size=64, fit="stretch").normalize(picture).astype(int)
    assert np.abs(got - np.asarray(full.resize((64, 64), pillow.Resampling.BICUBIC))).mean() < 0.6


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("tiles", "longest", "fit"), [("", 1, "letterbox"), ("3x2", 3, "letterbox"), ("", 1, "crop"), ("2x2", 2, "crop")]
)
def test_what_stays_is_bounded_by_what_is_needed(form: str, tiles: str, longest: int, fit: str) -> None:
    content = encoded(flat((9, 9, 9), size=(3000, 2000)), form)
    picture = decoded(content, size=32, tiles=tiles, fit=fit)
    needed = 32 * longest / (3000 if fit == "letterbox" else 2000)
    for kept, length in ((picture.pixels.width, 3000), (picture.pixels.height, 2000)):
        spare = DCT_SPARE if form == "JPEG" else BOX_SPARE
        assert length * needed * spare <= kept <= length * needed * 3


@settings(deadline=None, max_examples=80)
@given(
    width=st.integers(1, 300), height=st.integers(1, 300), rows=st.integers(1, 99), columns=st.integers(1, 99),
    fit=st.sampled_from(["letterbox", "crop"]),
)  # fmt: skip
def test_tiles_cover_each_pixel_once_row_by_row(width: int, height: int, rows: int, columns: int, fit: str) -> None:
    picture = Picture(pillow.new("RGB", (width, height)), width, height, (0, 0, width, height), (0, 0, width, height))
    (whole, first), *tiles = Image(size=16, tiles=f"{rows}x{columns}", fit=fit).segment(picture)
    assert whole == (0, 0, width, height) and first == picture
    covered = np.zeros((height, width), int)
    for span, piece in tiles:
        left, top, right, bottom = piece.box
        assert span == piece.box and left < right and top < bottom
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert len(tiles) == min(rows, height) * min(columns, width)
    assert tiles == sorted(tiles, key=lambda tile: (tile[0][1], tile[0][0]))


def test_tiles_show_their_part_of_a_reduced_picture() -> None:
    image = pillow.fromarray(QUADRANTS).resize((1200, 800), pillow.Resampling.NEAREST)
    modality = Image(size=32, tiles="2x2", fit="crop")
    segments = list(modality.segment(modality.decode(Media(content=encoded(image, "PNG")))))
    assert [span for span, _ in segments] == [
        (0, 0, 1200, 800),
        (0, 0, 600, 400),
        (600, 0, 1200, 400),
        (0, 400, 600, 800),
        (600, 400, 1200, 800),
    ]
    for (_, piece), colour in zip(segments[1:], ((255, 0, 0), (0, 255, 0), (0, 0, 255), (40, 40, 40)), strict=True):
        inner = modality.normalize(piece)[2:-2, 2:-2]  # the filter at the border sees beyond it
        assert (inner == colour).all()


def test_letterbox_pads_with_white_and_crop_takes_the_middle() -> None:
    image = flat((0, 0, 0), size=(60, 30))
    image.paste((255, 0, 0), (0, 0, 15, 30))
    picture = decoded(encoded(image, "PNG"))
    boxed = Image(size=60).normalize(picture)
    assert (boxed[:15] == 255).all() and (boxed[45:] == 255).all() and (boxed[15:45] == np.asarray(image)).all()
    assert (Image(size=60, fit="crop").normalize(picture)[:, 3:-3] == 0).all()  # the filter sees beyond the border


@settings(deadline=None, max_examples=40)
@given(
    width=st.sampled_from([1, 2, 3, 17, 10_000]), height=st.sampled_from([1, 2, 3, 17, 10_000]),
    size=st.sampled_from([16, 33]), fit=st.sampled_from(["letterbox", "crop"]),
    tiles=st.sampled_from(["", "1x9", "2x3"]),
)  # fmt: skip
def test_any_shape_gives_squares(width: int, height: int, size: int, fit: str, tiles: str) -> None:
    if width * height > 1_000_000:
        width = 1
    modality = Image(size=size, fit=fit, tiles=tiles)
    picture = modality.decode(Media(content=encoded(flat((10, 20, 30), size=(width, height)), "PNG")))
    for _, piece in modality.segment(picture):
        square = modality.normalize(piece)
        assert square.shape == (size, size, 3) and square.dtype == np.uint8
        assert (square[(size - 1) // 2, (size - 1) // 2] == (10, 20, 30)).all()


def test_a_fine_pattern_does_not_alias() -> None:
    checks = pillow.fromarray((np.indices((1001, 1001)).sum(0) % 2 * 255).astype(np.uint8))
    small = Image(size=96).normalize(decoded(encoded(checks, "PNG"), size=96))
    assert np.abs(small.astype(int) - 127).max() <= 8


def test_the_same_bytes_give_the_same_pixels_and_the_modality_is_picklable() -> None:
    modality = pickle.loads(pickle.dumps(Image(size=40, tiles="2x2")))
    content = Media(content=encoded(noise(200, 300), "JPEG"))
    first, second = (modality.normalize(modality.decode(content)) for _ in range(2))
    assert modality == Image(size=40, tiles="2x2") and (first == second).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size is 8"),
        ({"size": 5000}, "16 to 1024"),
        ({"fit": "fill"}, '"letterbox", "crop" or "stretch"'),
        ({"tiles": "2"}, "rows x columns"),
        ({"tiles": "0x2"}, "rows x columns"),
        ({"tiles": "2x2x2"}, "rows x columns"),
        ({"tiles": "2x2\n"}, "rows x columns"),
    ],
)
def test_a_bad_configuration_says_value_and_rule(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Image(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "size, options, message",
    [
        ((300, 20), {"min_side": 21}, "300 x 20 pixels: the shorter side is below min_side = 21"),
        ((300, 20), {"max_aspect": 14.9}, "300 x 20 pixels: the longer side is above max_aspect = 14.9"),
        ((20, 300), {"max_aspect": 14.9}, "20 x 300 pixels"),
    ],
)
def test_pictures_of_other_sizes_are_left_out_before_they_are_decoded(
    size: tuple[int, int], options: dict[str, Any], message: str
) -> None:
    buffer = BytesIO()
    pillow.new("RGB", size).save(buffer, "PNG")
    cut_short = Media(content=buffer.getvalue()[:60])  # the header is there, the pixels are not
    with pytest.raises(FilteredError, match=message):
        Image(**options).decode(cut_short)
    assert Image(min_side=20, max_aspect=15).decode(Media(content=buffer.getvalue())).width == size[0]


def test_boxes_are_segments_after_the_whole_picture() -> None:
    image = Image(boxes="faces", size=32)
    picture = image.decode(Media(content=png(pillow.new("RGB", (100, 50), "red"))))
    boxes = [[10, 5, 30, 25], [-5, -5, 7.2, 8.0], [90, 40, 1000, 1000]]
    spans = [span for span, _ in image.segment(picture, {"faces": boxes})]
    assert spans == [(0, 0, 100, 50), (10, 5, 30, 25), (0, 0, 8, 8), (90, 40, 100, 50)]
    assert [span for span, _ in image.segment(picture, {})] == spans[:1]
    assert all(image.normalize(piece).shape == (32, 32, 3) for _, piece in image.segment(picture, {"faces": boxes}))
    assert not image.by_content and Image().by_content


def test_a_box_may_be_an_object() -> None:
    image = Image(boxes="faces")
    picture = image.decode(Media(content=png(pillow.new("RGB", (100, 50)))))
    boxes = [
        {"left": 10, "top": 5, "right": 30, "bottom": 25},
        {"x": 10, "y": 5, "width": 20, "height": 21, "of": "me"},
    ]
    spans = [span for span, _ in image.segment(picture, {"faces": boxes})]
    assert spans == [(0, 0, 100, 50), (10, 5, 30, 25), (10, 5, 30, 26)]


def test_a_small_box_of_a_large_picture_is_seen_at_its_full_resolution() -> None:
    original, box = noise(1200, 1600), (800, 600, 864, 664)
    image = Image(size=64, boxes="faces")
    content = Media(content=png(original))
    (_, whole), (span, piece) = image.segment(image.decode(content), {"faces": [list(box)]})
    assert span == box
    assert np.array_equal(image.normalize(piece), np.asarray(original.crop(box)))
    assert whole.nbytes < original.width * original.height / 10
    plain = Image(size=64)
    alike = image.normalize(whole).astype(int) - plain.normalize(plain.decode(content))
    assert np.abs(alike).max() <= 2


@pytest.mark.parametrize(
    "boxes",
    [
        7,
        "all",
        [[1, 2, 3]],
        [[1, 2, 3, "4"]],
        [[1, 2, 3, True]],
        [[0, 0, 0, 5]],
        [[200, 0, 300, 5]],
        [[0, 0, float("nan"), 5]],
        [[0, 0, float("inf"), 5]],
        [[0, 0, 10**400, 5]],
        [{}],
        [{"left": 1, "top": 2}],
        [{"x": 1, "y": 2, "width": 0, "height": 5}],
        [{"x": 1, "y": 2, "width": "3", "height": 5}],
        [[0, 0, 5, 5], None],
    ],
)
def test_boxes_that_are_none_are_an_error_before_any_segment(boxes: Any) -> None:
    image = Image(boxes="faces")
    picture = image.decode(Media(content=png(pillow.new("RGB", (100, 50), "red"))))
    with pytest.raises(DecodeError, match="box"):
        next(image.segment(picture, {"faces": boxes}))


def hidden(picture: pillow.Image, form: str, boxes: Any, orientation: int = 1, **options: Any) -> Media:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    return Media(content=encoded(picture, form, exif=exif, **options), blur=json.dumps(boxes))


def stored(box: Sequence[int], orientation: int, width: int, height: int) -> tuple[int, ...]:
    """Where a box of the oriented picture lies in what is stored, which has such a size."""
    turned = height, width
    left, top, right, bottom = box
    across, down = turned if orientation > 4 else (width, height)
    if orientation in (2, 3, 6, 7):
        left, right = across - right, across - left
    if orientation in (3, 4, 7, 8):
        top, bottom = down - bottom, down - top
    return (top, left, bottom, right) if orientation > 4 else (left, top, right, bottom)


FORMS = [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"quality": 60, "subsampling": 1, "progressive": True})]


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(20, 330), st.integers(20, 330)),
    st.lists(st.tuples(*[st.integers(-40, 320), st.integers(1, 200)] * 2), min_size=1, max_size=3),
    st.integers(1, 8),
    st.sampled_from(FORMS),
    st.sampled_from([16, 128]),
)
def test_what_is_hidden_leaves_no_trace_and_what_is_not_stays(
    size: tuple[int, int],
    sides: list[tuple[int, int, int, int]],
    orientation: int,
    form: tuple[str, dict[str, Any]],
    side: int,
) -> None:
    """At whatever resolution, orientation and form: pictures that differ in hidden boxes alone become the same."""
    upright = size[::-1] if orientation > 4 else size
    boxes = [(left, top, left + width, top + height) for left, width, top, height in sides]
    boxes = [box for box in boxes if box[0] < upright[0] and box[1] < upright[1] and box[2] > 0 and box[3] > 0]
    boxes = [box for box in boxes if box[2] > 1 or box[3] > 1]
    plain, other = noise(size[1], size[0]), noise(size[1], size[0])
    for number, box in enumerate(boxes):
        other.paste((255, 40 * number, 0), stored(box, orientation, *size))  # type: ignore[arg-type]
    image = Image(size=side)
    first, second = (image.decode(hidden(of, form[0], boxes, orientation, **form[1])) for of in (plain, other))
    assert (first.width, first.height) == upright
    assert np.array_equal(np.asarray(first.pixels), np.asarray(second.pixels))
    assert np.array_equal(image.normalize(first), image.normalize(second))
    whole = image.decode(hidden(plain, form[0], [], orientation, **form[1]))
    far = np.ones(np.asarray(whole.pixels).shape[:2], bool)
    scale = max(whole.width / whole.pixels.width, whole.height / whole.pixels.height)
    margin = (EXACT_MARGIN if form[0] == "PNG" else LOSSY_MARGIN) / scale + 2
    for box in boxes:
        left, top, right, bottom = (round(value / scale) for value in box)
        far[
            max(0, math.floor(top - margin)) : max(0, math.ceil(bottom + margin)),
            max(0, math.floor(left - margin)) : max(0, math.ceil(right + margin)),
        ] = False
    assert np.array_equal(np.asarray(first.pixels)[far], np.asarray(whole.pixels)[far])


def test_hidden_boxes_are_covered_with_one_colour() -> None:
    got = np.asarray(Image().decode(hidden(noise(100, 80), "PNG", [[20, 30, 40, 50]])).pixels)
    assert (got[28:52, 18:42] == COVER).all() and not (got[27] == COVER).all() and not (got[:, 42] == COVER).all()


def test_a_large_picture_that_is_reduced_is_covered_too() -> None:
    box = [1001, 503, 1403, 807]
    for form in ("PNG", "JPEG"):
        picture = Image(size=64).decode(hidden(smooth(3001, 2003), form, [box]))
        assert picture.pixels.width < 400
        scale = picture.pixels.width / 3001
        left, top, right, bottom = (round(value * scale) for value in box)
        assert (np.asarray(picture.pixels)[top:bottom, left:right] == COVER).all()
        assert not (np.asarray(picture.pixels)[: top - 4] == COVER).all(axis=2).any()


def test_tiles_and_boxes_show_what_is_hidden_as_little() -> None:
    blur, seen = [[10, 10, 50, 40]], [[10, 10, 40, 40], [60, 0, 100, 50]]
    first, second = noise(50, 100), noise(50, 100)
    second.paste("red", (10, 10, 50, 40))
    for image in (Image(tiles="2x3", blur_boxes="faces"), Image(boxes="parts", blur_boxes="faces")):
        both = [
            [image.normalize(piece) for _, piece in image.segment(image.decode(medium), {"parts": seen})]
            for medium in (hidden(first, "PNG", blur), hidden(second, "PNG", blur))
        ]
        assert len(both[0]) >= 3 and all(map(np.array_equal, *both))
        assert not image.by_content
    assert (both[0][1] == COVER).all()


def test_a_picture_whose_hidden_boxes_are_none_is_not_decoded() -> None:
    for boxes in (
        "all",
        7,
        {"left": 1},
        [[1, 2, 3]],
        [[0.1, 0.2, 0.5, 0.6]],
        [[200, 0, 300, 5]],
        [[9, 9, 20, 20], None],
    ):
        with pytest.raises(DecodeError, match="box"):
            Image(blur_boxes="faces").decode(hidden(noise(), "PNG", boxes))


def test_nothing_of_a_file_but_its_pixels_is_left_when_it_is_decoded() -> None:
    picture = Image().decode(Media(content=encoded(noise(), "JPEG", comment=b"secret", xmp=b"<secret/>")))
    assert picture.pixels.info == {} and b"secret" not in encoded(picture.pixels, "JPEG")


def png(picture: pillow.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
