"""Thumbnails, sounds and pictures in a terminal."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import html_page
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmembed.errors import DecodeError, ReadError
from mmembed.pages import previews
from mmembed.pages.previews import Piece, contact_sheet, in_terminal, show, sound, thumbnail
from mmembed.types import Media


def picture(width: int, height: int, **options: Any) -> Media:
    data = io.BytesIO()
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (255, 0, 0)
    Image.fromarray(pixels).save(data, "PNG", **options)
    return Media(path="a.png", content=data.getvalue())


def tone(seconds: float, rate: int = 44_100, silence: float = 0.0) -> Media:
    data = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(data, np.concatenate([np.zeros(round(silence * rate)), wave]), rate, format="WAV")
    return Media(path="a.wav", content=data.getvalue())


def heard(data: bytes) -> tuple[np.ndarray[Any, Any], int]:
    samples, rate = soundfile.read(io.BytesIO(data))
    return samples, rate


def only(media: Media) -> Callable[[str], Media]:
    return lambda name: media


def test_a_thumbnail_is_small_and_never_enlarged() -> None:
    large, small = thumbnail(picture(2000, 500)), thumbnail(picture(20, 10))
    assert large.pixels.size == (240, 60) and (large.width, large.height) == (2000, 500)
    assert small.pixels.size == (20, 10)


def test_a_thumbnail_is_turned_as_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right: what is at the top comes to the right
    small = thumbnail(picture(100, 60, exif=exif))
    assert small.pixels.size == (60, 100)
    assert small.pixels.getpixel((55, 50)) == (255, 0, 0) and small.pixels.getpixel((5, 50)) == (0, 0, 0)


def test_a_picture_in_a_page_is_webp_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    page = html_page.read(
        show("image", [Piece("image", (0, 0, 300, 200), "a.png")], only(picture(300, 200, exif=exif)))
    )
    (uri,) = page.values("img", "src")
    data = base64.b64decode(uri.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (240, 160)) and not image.getexif()
    assert page.values("img", "width") == ["240"]


def test_tiles_are_frames_on_one_picture() -> None:
    spans = [(0, 0, 300, 200), (0, 0, 150, 100), (150, 100, 300, 200)]
    page = html_page.read(show("image", [Piece("image", span, "a.png") for span in spans], only(picture(300, 200))))
    assert page.tags.count("img") == 1
    assert page.values("span", "style") == [
        "left:0.0%;top:0.0%;width:50.0%;height:50.0%",
        "left:50.0%;top:50.0%;width:50.0%;height:50.0%",
    ]


@pytest.mark.parametrize("silence", [0.0, 1.5])
def test_a_sound_is_what_its_span_says(silence: float) -> None:
    data, mime, seconds = sound(tone(4, silence=silence), (silence + 1, silence + 3))
    samples, rate = heard(data)
    assert mime == "audio/mpeg" and rate == 16_000 and samples.ndim == 1
    assert seconds == pytest.approx(2, abs=1e-3)
    assert len(samples) / rate == pytest.approx(2, abs=0.2)  # of MP3, with what its frames pad
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * rate / len(samples) == pytest.approx(440, abs=5)


def test_a_long_sound_is_cut_and_small() -> None:
    data, _, seconds = sound(tone(120), (0, 120))
    assert seconds == previews.SECONDS and len(data) < 120_000
    page = html_page.read(show("audio", [Piece("audio", (0, 120), "a.wav")], only(tone(120))))
    assert "the first 12.0 s of it" in page.text
    assert page.values("audio", "controls") == [""]


def test_the_same_sound_has_the_same_bytes() -> None:
    assert sound(tone(2), (0, 2)) == sound(tone(2), (0, 2))


def test_without_mp3_a_sound_is_flac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "", "WAV": ""})
    data, mime, _ = sound(tone(1), ())
    assert mime == "audio/flac" and data[:4] == b"fLaC"


def test_a_span_beyond_the_end_is_an_error() -> None:
    with pytest.raises(ReadError, match="nothing at 7 seconds"):
        sound(tone(1), (7, 8))


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("media", [Media(path="<b>gone", folder="/nowhere"), Media(path="<b>bad", content=b"nothing")])
def test_what_can_not_be_read_is_said_in_its_place(modality: str, media: Media) -> None:
    page = html_page.read(show(modality, [Piece(modality, (0, 1), media.path)], only(media)))
    assert page.tags == ["p"] and media.path in page.text and "/nowhere" not in page.text


def test_texts_have_their_place_where_there_are_several() -> None:
    one = html_page.read(show("text", [Piece("text", (0, 3), "abc")], only(Media(content="abc"))))
    two = html_page.read(show("text", [Piece("text", (0, 3), "abc"), Piece("text", (4, 7), "def")], only(Media("x"))))
    assert one.texts == ["abc"]
    assert two.texts == ["abc", "0 to 3 characters", "def", "4 to 7 characters"]


def test_a_modality_that_has_no_form_is_left_out() -> None:
    assert show("smell", [Piece("smell", (), "a")], only(Media("x"))) == ""


def test_a_picture_in_a_terminal_is_two_pixels_a_sign() -> None:
    lines = in_terminal(picture(48, 40), 24, 10)
    assert len(lines) == 10 and all(line.count("▀") == 24 and line.endswith("\x1b[0m") for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m")
    assert lines[-1].startswith("\x1b[38;2;0;0;0;48;2;0;0;0m")


@pytest.mark.parametrize("width, height", [(1, 1), (4000, 3), (3, 4000), (17, 31)])
def test_pictures_of_any_aspect_fit(width: int, height: int) -> None:
    lines = in_terminal(picture(width, height), 24, 10)
    assert 1 <= len(lines) <= 10 and 1 <= lines[0].count("▀") <= 24


def test_pictures_stand_side_by_side(tmp_path: Path) -> None:
    def missing() -> Media:
        raise DecodeError("no picture")

    media = {f"{n} \x1b[2Jid": (missing if n == 2 else lambda: picture(48, 40)) for n in range(5)}
    lines = contact_sheet(media, 60)
    plain = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]
    assert len(lines) == 2 * 11 and "\x1b[2J" not in "".join(lines)
    assert plain[1] == "▀" * 24 + "  " + "▀" * 24
