"""Whatever a file holds, its modality gives finite segments or one of the project's own errors, soon, in little memory.

What a good file gives, odd ones among them (CMYK, 16 bits, palettes, NaN, eight channels, …), is tested by modality, in
tests/modalities; this is about files that are damaged, made to harm, or something else than they seem. What hundreds of
damaged files take together, in a process of its own, is measured by tests/fuzzing.py.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageFile

from mmembed.errors import DecodeError, ReadError, RecordError
from mmembed.modalities import Modality
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.types import Media

MODALITIES: dict[str, Modality] = {"image": Image(size=32, tiles="2x2"), "audio": Audio(window=0.2), "text": Text(5, 1)}


def picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    """Noise of 36 x 24 pixels as a file."""
    noise = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 4), np.uint8))
    image = noise.convert("RGB").quantize(64) if mode == "P" else noise.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sound(form: str, subtype: str, rate: int = 44_100, seconds: float = 0.5) -> bytes:
    """Stereo noise as a file."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * rate), 2))
    soundfile.write(file, noise, rate, format=form, subtype=subtype)
    return file.getvalue()


FILES = {
    "JPEG": ("image", picture("JPEG", exif=b"Exif\0\0" + pillow.Exif().tobytes()[6:])),
    "progressive JPEG": ("image", picture("JPEG", progressive=True)),
    "CMYK JPEG": ("image", picture("JPEG", "CMYK")),
    "MPO": ("image", picture("MPO", save_all=True, append_images=[pillow.new("RGB", (36, 24))])),
    "PNG": ("image", picture("PNG", "RGBA")),
    "palette PNG": ("image", picture("PNG", "P", transparency=bytes([0, 100]))),
    "16-bit PNG": ("image", picture("PNG", "I;16")),
    "WebP": ("image", picture("WEBP", "RGBA")),
    "animated WebP": ("image", picture("WEBP", save_all=True, append_images=[pillow.new("RGB", (36, 24))])),
    "GIF": ("image", picture("GIF", "P")),
    "TIFF": ("image", picture("TIFF")),
    "LZW TIFF": ("image", picture("TIFF", compression="tiff_lzw")),
    "BMP": ("image", picture("BMP")),
    "PPM": ("image", picture("PPM")),
    "AVIF": ("image", picture("AVIF")),
    "WAV": ("audio", sound("WAV", "PCM_16")),
    "float WAV": ("audio", sound("WAV", "FLOAT")),
    "FLAC": ("audio", sound("FLAC", "PCM_16")),
    "MP3": ("audio", sound("MP3", "MPEG_LAYER_III")),
    "OGG": ("audio", sound("OGG", "VORBIS")),
    "Opus": ("audio", sound("OGG", "OPUS", 48_000)),
    "AIFF": ("audio", sound("AIFF", "PCM_16")),
    "TXT": ("text", "Żaby skaczą daleko. 吾輩は猫である。สวัสดีครับ 🐸\n\n".encode() * 20),
    "UTF-16 TXT": ("text", ("Żaby skaczą daleko. " * 20).encode("utf-16")),
}
PICTURES = [name for name, (modality, _) in FILES.items() if modality == "image"]


def outcome(modality: str, media: Media) -> list[tuple[float, ...]] | str:
    """The spans of what a medium gives, all of it finite, or the message of its error."""
    cut = MODALITIES[modality]
    spans = []
    try:
        for span, piece in cut.segment(cut.decode(media), {}):
            ready = cut.normalize(piece)
            assert np.isfinite(span).all() and span[-1] > span[len(span) // 2 - 1]
            assert ready if isinstance(ready, str) else ready.size and np.isfinite(ready).all()
            spans.append(span)
    except RecordError as error:
        message = str(error)
        assert not media.path or modality == "text" or media.path in message
        assert len(message) > 15 and " at 0x" not in message  # an address would differ from run to run
        return message
    assert spans
    return spans


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_gives_segments_whatever_its_name_ends_in(name: str, tmp_path: Path) -> None:
    modality, content = FILES[name]
    for ending in ("png", "mp3", "txt", "xyz"):
        (tmp_path / f"file.{ending}").write_bytes(content)
        found = outcome(modality, Media(f"file.{ending}", folder=str(tmp_path)))
        assert found == outcome(modality, Media(content=content))
        assert isinstance(found, list)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", {"image": "it is none of JPEG, ", "audio": "Format not recognised", "text": "the text is empty"}),
        (bytes(5000), {"image": "none of JPEG, ", "audio": "not recognised", "text": "holds no visible character"}),
        (b"\xff" * 5000, {"image": "none of JPEG, ", "audio": "not recognised", "text": "is not UTF-8 at byte 0"}),
    ],
    ids=["nothing", "zeros", "ones"],
)
def test_a_file_of_nothing_says_what_it_is_not(
    modality: str, content: bytes, reason: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert reason[modality] in outcome(modality, Media("a.bin", folder=str(tmp_path)))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_missing_file_and_a_folder_are_read_errors_that_name_them(modality: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in ("missing.bin", "folder"):
        with pytest.raises(ReadError, match=path):
            MODALITIES[modality].decode(Media(path, folder=str(tmp_path)))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WAV", "OGG", "UTF-16 TXT"])
def test_a_file_of_another_modality_is_an_error(name: str) -> None:
    own, content = FILES[name]
    for modality in MODALITIES.keys() - {own}:
        found = outcome(modality, Media("a.bin", content))
        assert isinstance(found, str) or modality == "text"  # many bytes are UTF-16 by chance


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_gives_segments_or_an_error(name: str) -> None:
    modality, content = FILES[name]
    lengths = [*range(0, min(len(content), 200), 9), *range(200, len(content), max(1, len(content) // 60))]
    refused = [isinstance(outcome(modality, Media("a.bin", content[:length])), str) for length in lengths]
    assert refused[0]
    assert all(refused[: len(lengths) // 2]) or name not in PICTURES  # half a picture is none, half a sound is one


edits = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=6)


def edited(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Each edit removes some bytes at a place and puts others there; most of them lie where headers do."""
    for place, removed, put in changes:
        at = place % min(len(content), 400 if place % 4 else 20_000) if content else 0
        content = content[:at] + put + content[at + removed :]
    return content


@settings(deadline=timedelta(seconds=5), max_examples=400)
@given(name=st.sampled_from(sorted(FILES)), changes=edits)
def test_a_damaged_file_gives_segments_or_an_error_in_bounded_time(
    name: str, changes: list[tuple[int, int, bytes]]
) -> None:
    modality, content = FILES[name]
    outcome(modality, Media("a.bin", edited(content, changes)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, passes: int = 0, before: bytes = b"") -> bytes:
    """A gray PNG made by hand; `rows` are its filtered rows, `before` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, passes)
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + chunk(b"IEND", b"")


def huge(form: str) -> bytes:
    """A file that promises 30,000 x 30,000 pixels."""
    side = 30_000
    content = bytearray(FILES[form][1])
    if form == "PNG":
        return png(side, side, bytes((side // 8 + 1) * side), bits=1)  # a sound one, of 110 kB
    if form == "JPEG":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif form == "GIF":
        content[6:10] = struct.pack("<HH", side, side)
    elif form == "BMP":
        content[18:26] = struct.pack("<II", side, side)
    elif form == "TIFF":
        [directory] = struct.unpack("<I", content[4:8])
        for tag in (256, 257):  # width, height
            at = content.index(struct.pack("<H", tag), directory)
            content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_a_huge_picture_is_refused_before_its_pixels_are_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = huge(form)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"can't decode a\.bin: .*(900000000|30000 x 30000) pixels"):
            Image().decode(Media("a.bin", content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize(
    "kind, head", [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"a\0\0")]
)
def test_a_chunk_of_a_png_that_swells_is_refused_before_it_does(kind: bytes, head: bytes) -> None:
    swelling = chunk(kind, head + zlib.compress(bytes(32 << 20), 9))
    content = png(8, 8, bytes(9 * 8), before=swelling)
    assert len(content) < 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="can't decode the picture: Decompressed data too large"):
            Image().decode(Media(content=content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("width, height", [(1, 1), (1, 20_000), (20_000, 1)])
def test_a_picture_of_one_pixel_across_gives_segments(width: int, height: int) -> None:
    assert outcome("image", Media(content=png(width, height, bytes((width + 1) * height))))[0] == (0, 0, width, height)


def test_a_picture_without_pixels_is_an_error() -> None:
    assert "can't decode" in outcome("image", Media("a.bin", png(0, 5, b"")))


@pytest.mark.parametrize("form, options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animated_picture_the_first_frame_counts(form: str, options: dict[str, Any]) -> None:
    file = io.BytesIO()
    frames = [pillow.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(file, form, save_all=True, append_images=frames[1:], **options)
    assert Image().decode(Media(content=file.getvalue())).pixels.getpixel((20, 15)) == (255, 0, 0)


def test_an_interlaced_picture_is_as_any_other() -> None:
    gray: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    # The seven passes of the PNG specification, 8.2; Pillow writes none.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, down, across in passes for row in gray[y::down, x::across])
    found = Image().decode(Media(content=png(64, 48, rows, passes=1))).pixels
    assert np.array_equal(np.asarray(found)[..., 0], gray)


@pytest.mark.parametrize("form, subtype", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "FLOAT")])
def test_a_sound_without_samples_is_an_error(form: str, subtype: str) -> None:
    found = outcome("audio", Media("a.bin", sound(form, subtype, seconds=0)))
    assert "holds no samples" in found or "can't decode" in found


def test_three_hours_of_sound_give_their_segments_in_little_memory_and_not_one(tmp_path: Path) -> None:
    rate, hours = 4_000, 3
    loud = np.random.default_rng(0).uniform(-0.3, 0.3, rate * 10)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", rate, 1, "PCM_16") as file:
        for minute in range(60 * hours):
            file.write(np.zeros(rate * 60) if minute % 60 else np.pad(loud, (0, rate * 50)))
        file.write(loud)
    media, audio = Media("long.flac", folder=str(tmp_path)), Audio(sample_rate=rate)
    tracemalloc.start()
    try:
        spans = [span for span, _ in audio.segment(audio.decode(media))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.allclose(spans, [(3600 * hour, 3600 * hour + 10) for hour in range(hours + 1)], atol=0.01)
    assert peak < 16 << 20
    whole = Audio(sample_rate=rate, window=0)
    with pytest.raises(DecodeError, match="longer than 3,600 seconds, too long for one segment: set --audio-window"):
        list(whole.segment(whole.decode(media)))
