"""Media are served by the ids of the data set alone, as what they are, and never as a page."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from PIL import Image

from mmembed.search import Searcher
from mmembed.serve import media
from mmembed.serve.answers import Hit
from mmembed.types import Media, Neighbour


@pytest.fixture
def whole(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A record that has all modalities."""
    return next(row for row in records.values() if {"image", "text", "audio"} <= row.keys())


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_medium_is_served_as_what_it_shows(
    client: TestClient, small: Path, whole: dict[str, Any], modality: str
) -> None:
    path = small.parent / str(whole[modality])
    for address in (
        f"/media/{modality}/{whole['id']}",
        f"/media/{modality}/{whole['id']}?name={quote(whole[modality])}",
    ):
        response = client.get(address)
        assert response.status_code == 200 and alike(response.content, path)
        assert response.headers["Content-Type"] == {"image": "image/webp", "audio": "audio/wav"}[modality]
        assert response.headers["Content-Length"] == str(len(response.content))
        assert "sandbox" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"].startswith("private")


def alike(served: bytes, path: Path) -> bool:
    """Whether a picture looks, or a sound is, like a file."""
    if path.suffix in (".jpg", ".png"):
        with Image.open(io.BytesIO(served)) as got, Image.open(path) as original:
            difference = np.asarray(got.convert("RGB"), int) - np.asarray(original.convert("RGB"), int)
        return bool(np.abs(difference).mean() < 6)
    got, rate = soundfile.read(io.BytesIO(served), always_2d=True)
    original, same = soundfile.read(path, always_2d=True)
    return bool(rate == same and got.shape == original.shape and np.abs(got - original).max() < 1e-4)


def test_a_text_is_served_as_plain_text(client: TestClient, whole: dict[str, Any]) -> None:
    response = client.get(f"/media/text/{whole['id']}")
    assert response.text == whole["text"]
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "wanted, start, end",
    [
        ("bytes=0-9", 0, 10),
        ("bytes=5-5", 5, 6),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=0-9999999", 0, None),
    ],
)
def test_players_may_ask_for_a_part(
    client: TestClient, small: Path, whole: dict[str, Any], wanted: str, start: int, end: int | None
) -> None:
    data = client.get(f"/media/audio/{whole['id']}").content
    response = client.get(f"/media/audio/{whole['id']}", headers={"Range": wanted})
    assert response.content == data[start:end]
    whole_of_it = len(response.content) == len(data)
    assert response.status_code == (200 if whole_of_it else 206)
    if not whole_of_it:
        first = start % len(data)
        last = first + len(response.content) - 1
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(data)}"


def test_ranges_that_are_none(client: TestClient, small: Path, whole: dict[str, Any]) -> None:
    address = f"/media/audio/{whole['id']}"
    data = client.get(address).content
    for wanted in ("bytes=99999999-", "bytes=5-3", "bytes=-0"):
        response = client.get(address, headers={"Range": wanted})
        assert response.status_code == 416 and response.headers["Content-Range"] == f"bytes */{len(data)}"
    for wanted in (
        "bytes=0-1,4-5",
        "lines=1-2",
        "bytes=-",
        "nonsense",
        f"bytes={'9' * 5000}-",
        f"bytes=0-{'9' * 5000}",
    ):  # the whole is a right answer to these
        assert client.get(address, headers={"Range": wanted}).content == data


@pytest.mark.parametrize("route", ["media", "thumbnail"])
@pytest.mark.parametrize(
    "id",
    [
        "nobody",
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "file:%2F%2F%2Fetc%2Fpasswd",
        "manifest.jsonl",
        "images/000000.jpg",
        "%00",
        "a%0d%0aSet-Cookie:x",
    ],
)
def test_what_the_data_set_does_not_name_is_not_there(client: TestClient, route: str, id: str) -> None:
    for address in (f"/{route}/image/{id}", f"/{route}/image/{id}?name=/etc/passwd"):
        response = client.get(address)
        assert response.status_code == 404 and "root:" not in response.text
        assert "Set-Cookie" not in response.headers


def test_a_name_chooses_among_the_media_of_a_record_and_opens_no_other(
    client: TestClient, small: Path, whole: dict[str, Any]
) -> None:
    for name in ("/etc/passwd", "../manifest.jsonl", str(small / "dataset.json")):
        response = client.get(f"/media/image/{whole['id']}", params={"name": name})
        assert response.status_code == 404 or alike(response.content, small.parent / str(whole["image"]))


def test_a_name_is_no_longer_than_a_path(client: TestClient, whole: dict[str, Any]) -> None:
    for address in ("/media/image", "/media/text", "/thumbnail/image"):
        assert client.get(f"{address}/{whole['id']}", params={"name": "a" * 4097}).status_code == 422


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/docs.html", "/static/"])
def test_of_the_page_only_its_files_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"root:x:0:0:root:/root:/bin/bash\n",
        b"%PDF-1.7\n",
        b"",
    ],
)
def test_what_is_no_picture_and_no_sound_is_never_served(
    client: TestClient, tmp_path: Path, modality: str, content: bytes
) -> None:
    """Whoever writes a manifest names files of this machine: those that are no media stay unseen."""
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with patch.object(Searcher, "media", return_value=Media(path=str(path))):
        for route in ("media", "thumbnail"):
            response = client.get(f"/{route}/{modality}/a")
            assert response.status_code == 404
            assert content[:20].decode() not in response.text or not content


def test_what_is_gone_is_not_found(client: TestClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "gone.png", tmp_path, tmp_path / "pipe"):
        with patch.object(Searcher, "media", return_value=Media(path=str(path))):
            for address in ("/media/image/a", "/media/text/a", "/thumbnail/image/b"):
                assert client.get(address).status_code == 404


FORMS = [("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None), ("AU", None)]


@pytest.mark.parametrize("form, subtype", FORMS)
def test_any_part_of_a_sound_is_that_of_the_whole(form: str, subtype: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * 48_000 + 1, 2))
    soundfile.write(path, noise, 48_000, format=form, subtype=subtype)
    served = media.serve(Media(path=str(path)), "audio")
    whole = b"".join(served.blocks)
    assert len(whole) == served.size and served.type == "audio/wav"
    got, rate = soundfile.read(io.BytesIO(whole), dtype="float32")
    original, _ = soundfile.read(path, dtype="float32")
    assert rate == 48_000 and got.shape == original.shape and np.abs(got - original.clip(-1, 1)).max() < 1e-4
    for start, end in [
        (0, 0),
        (3, 43),
        (43, 44),
        (44, 45),
        (47, 400_001),
        (400_001, 500_000),
        (served.size - 9, 1 << 40),
    ]:
        part = media.serve(Media(path=str(path)), "audio", f"bytes={start}-{end}")
        assert b"".join(part.blocks) == whole[start : end + 1]


def test_a_sound_that_ends_before_its_header_says_is_silent_there(tmp_path: Path) -> None:
    data = io.BytesIO()
    soundfile.write(data, np.full(48_000, 0.5), 8000, format="FLAC")
    cut = Media(path="a.flac", content=data.getvalue()[:-40])
    served = media.serve(cut, "audio")
    assert served.size == 44 + 2 * 48_000 == len(b"".join(served.blocks))


def test_a_long_sound_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        for _ in range(20):
            file.write(np.zeros((30 * 48_000, 2)))
    tracemalloc.start()
    served = media.serve(Media(path=str(path)), "audio")
    assert sum(map(len, served.blocks)) == served.size > 100e6
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_a_large_picture_is_sent_smaller(tmp_path: Path) -> None:
    for size in ((8000, 100), (60_000, 2)):
        data = io.BytesIO()
        Image.new("RGB", size).save(data, "PNG")
        content = b"".join(media.serve(Media(path="a", content=data.getvalue()), "image").blocks)
        with Image.open(io.BytesIO(content)) as image:
            assert 1500 <= max(image.size) <= media.LARGE


def test_thumbnails_are_small_pictures(client: TestClient, whole: dict[str, Any]) -> None:
    for modality in ("image", "audio"):
        response = client.get(f"/thumbnail/{modality}/{whole['id']}")
        assert response.status_code == 200 and response.headers["Content-Type"] == "image/webp"
        assert response.headers["Cache-Control"].startswith("private, max-age")
        with Image.open(io.BytesIO(response.content)) as image:
            assert image.format == "WEBP" and max(image.size) <= 360
    assert client.get(f"/thumbnail/text/{whole['id']}").status_code == 422
    for span in ("1,2", "a", "1,2,3,nan", "1,2,3,1e30"):
        assert client.get(f"/thumbnail/image/{whole['id']}", params={"span": span}).status_code == 422
    for span in ("10,10,0,0", "-9,-9,-1,-1", "0,0,999999,-999999", "5,5,5,5"):
        assert client.get(f"/thumbnail/image/{whole['id']}", params={"span": span}).status_code == 200


def test_a_large_picture_becomes_small_and_upright_and_what_lies_outside_a_box_pale(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # its first row is the right side
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "a.jpg", exif=exif)
    picture = Media(path=str(tmp_path / "a.jpg"))
    with Image.open(io.BytesIO(media.thumbnail(picture, (0, 0, 600, 600)))) as image:
        assert image.size == (180, 360)
        inside, outside = (np.array(image.convert("RGB").getpixel((90, row)), int) for row in (40, 300))
    assert inside[0] > 240 and inside[1] < 20
    assert 100 < outside[0] < 200 and outside[1] > 60
    assert media.thumbnail(picture, (600, 600, 0, 0)) == media.thumbnail(picture, (0, 0, 600, 600))
    with Image.open(io.BytesIO(media.thumbnail(picture, (0, 0, 600, 1200)))) as image:
        assert np.array(image.convert("RGB").getpixel((90, 300)))[0] > 240


def test_a_waveform_is_loud_where_the_sound_is(tmp_path: Path) -> None:
    samples = np.zeros(32_000)
    samples[16_000:] = np.sin(np.arange(16_000) / 5)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    with Image.open(io.BytesIO(media.wave(Media(path=str(tmp_path / "a.wav"))))) as image:
        alpha = np.array(image.convert("RGBA"))[..., 3] > 128
    left, right = alpha[:, :170].sum(), alpha[:, 190:].sum()
    assert right > 10 * left > 0


def test_peaks_are_the_loudest_of_equal_stretches() -> None:
    assert media.peaks(np.array([0, -1, 0.5, 0], np.float32), 2) == [1.0, 0.5]
    assert media.peaks(np.zeros(0, np.float32), 5) == [0.0]
    assert media.peaks(np.zeros(3, np.float32), 5) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("id", ["a/b.jpg", "ä ö", "a?b#c", "%41", "a&b=c", "a//b", "/a"])
def test_the_address_of_a_hit_leads_to_it(address: str, id: str, picture: Path) -> None:
    hit = Hit.of(Neighbour(1, 0.5, "image", id, 0, (0.0, 0.0, 9.0, 9.0), "ü/x&y.jpg", {}))
    with patch.object(Searcher, "media", autospec=True, return_value=Media(path=str(picture))) as found:
        for url in (hit.media_url, hit.thumbnail_url):
            assert httpx.get(address + url).status_code == 200
    assert [call.args[1:] for call in found.call_args_list] == [(id, "image", "ü/x&y.jpg")] * 2
