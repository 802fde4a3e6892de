"""What the files of pictures and sounds say besides, and what of pictures nobody may see, stays in the input."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from command import IN_PROCESS, mmembed
from fastapi.testclient import TestClient
from PIL import Image as pillow
from PIL import ImageDraw
from planted import data_uris, told
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.embed import Embedder
from mmembed.explain import explain, write_overlay
from mmembed.pages.previews import in_terminal
from mmembed.search import Query, Searcher
from mmembed.serve.app import create_app
from mmembed.serve.settings import Settings
from mmembed.verify import verify

Rows = list[dict[str, Any]]
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def sent(out: Path, ids: list[str], *spans: str) -> Iterator[tuple[str, bytes]]:
    """All that a server sends of some records, by address."""
    with TestClient(create_app(Searcher.open(out), Settings()), base_url="http://localhost:8000") as client:
        yield "/api/info", client.get("/api/info").content
        yield "/api/search", client.get("/api/search", params={"id": ids[0], "k": 50}).content
        form = {"id": ids[0], "record": ids[1], "to": "image"}
        explained = client.post("/api/explain", data=form)
        assert explained.status_code == 200
        yield "/api/explain", explained.content
        for id in ids:
            for address in (f"/{route}/{name}/{id}" for route in ("media", "thumbnail") for name in ("image", "audio")):
                yield address, client.get(address).content
            for span in spans:
                yield f"/thumbnail/image/{id}?{span}", client.get(f"/thumbnail/image/{id}?span={span}").content


@pytest.fixture
def complete(rows: Rows) -> Rows:
    """30 records that have all modalities."""
    return [row for row in rows if all(row.get(key) for key in ("image", "text", "audio"))][:30]


def test_what_is_planted_in_files_stays_there(complete: Rows, manifest: Path, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "image", "text", "audio", "cover", "raw")}
    (tmp_path / "in").mkdir()
    for number, row in enumerate(complete):
        picture, sound = planted.FORMS[number % 6], planted.SOUNDS[number % 5]
        with pillow.open(manifest.parent / row["image"]) as image:
            content = planted.picture(picture, image.convert("RGB"))
        samples, rate = soundfile.read(manifest.parent / row["audio"], always_2d=True)
        heard = planted.sound(sound, samples.mean(axis=1), rate)
        assert told(content) or picture == "PNG"
        assert told(heard)
        if number in (6, 7, 8):  # a JPEG, a PNG and a WebP that are cut off behind what they say
            content = content[: len(content) * 9 // 10]
        (tmp_path / "in" / f"{number}.snd").write_bytes(heard if number != 10 else b"RIFF" + heard[40:])
        columns["id"].append(row["id"])
        columns["image"].append({"bytes": content, "path": None})
        columns["text"].append(row["text"] if isinstance(row["text"], str) else row["text"][0])
        columns["audio"].append(f"{number}.snd")
        columns["cover"].append({"bytes": content, "path": f"{number}.jpg"})  # a picture that is no medium here
        columns["raw"].append(heard)
    arrays = {name: pa.array(values, FILE if name in ("image", "cover") else None) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), tmp_path / "in" / "in.parquet")

    out = tmp_path / "out"
    words = ("build", tmp_path / "in" / "in.parquet", out, "--unit-records", 8, "--dedup", "near")
    mmembed(*words, "--max-error-rate", 1, *FLAGS, *IN_PROCESS)
    failed = {(row["id"], row["modality"]) for row in pq.read_table(out / "errors").to_pylist()}
    assert (complete[6]["id"], "image") in failed and (complete[10]["id"], "audio") in failed and len(failed) <= 4
    found = dict(planted.contents(out))
    assert [path for path, content in planted.contents(out) if told(content)] == []
    assert len(data_uris(found[str(out / "report.html")])) >= 12  # so that there was something to be found

    page = tmp_path / "page.html"
    (tmp_path / "query.jpg").write_bytes(planted.picture("JPEG", pillow.new("RGB", (64, 64), "red")))
    (tmp_path / "query.mp3").write_bytes(planted.sound("MP3", np.sin(np.arange(16_000) / 9), 16_000))
    asked = ("query", out, "--image", tmp_path / "query.jpg", "--audio", tmp_path / "query.mp3", "--html", page)
    mmembed(*asked, "-k", 60)
    assert len(data_uris(page.read_bytes())) >= 12 and not told(page.read_bytes())
    answers = dict(sent(out, columns["id"]))
    assert [address for address, content in answers.items() if told(content)] == []
    assert sum(content[:4] == b"RIFF" for content in answers.values()) >= 4 * len(complete) - 12


SECRET_COLOUR, BOX = (255, 0, 255), (60, 20, 140, 70)


def scene(number: int, hidden: bool = True, form: str = "PNG", orientation: int = 1) -> bytes:
    """A gray picture of 200 x 120, with writing in a box of a colour of its own."""
    rng = np.random.default_rng(number)
    gray = pillow.fromarray(rng.integers(0, 200, (12, 20), np.uint8)).convert("RGB")
    image = gray.resize((200, 120), pillow.Resampling.NEAREST)
    if hidden:
        draw = ImageDraw.Draw(image)
        draw.rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=SECRET_COLOUR)
        draw.text((70, 30), f"number {number}", fill="white")
    exif = pillow.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif)
    return file.getvalue()


def shows(data: bytes) -> bool:
    """Whether a picture has pixels of the secret colour."""
    pixels = np.asarray(pillow.open(io.BytesIO(data)).convert("RGB"), int)
    return bool(((pixels[..., 0] - pixels[..., 1] > 90) & (pixels[..., 2] - pixels[..., 1] > 90)).any())


def pictures(page: bytes) -> list[bytes]:
    return [data for data in data_uris(page) if data[8:12] == b"WEBP"]


def features(out: Path) -> dict[str, Any]:
    table = pq.read_table(out / "features" / "image")
    return dict(zip(table["id"].to_pylist(), np.array(table["feature"].to_pylist(), np.float32)))


def test_hidden_boxes_are_seen_nowhere(complete: Rows, manifest: Path, tmp_path: Path) -> None:
    """Of two inputs whose pictures differ in hidden boxes alone, all features are the same, bit for bit."""
    shown, bad = complete[0]["id"], complete[1]["id"]
    boxes: list[Any] = [[list(BOX)], [{"x": 60, "y": 20, "width": 80, "height": 50}]]
    for name, hidden in (("with", True), ("without", False)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sounds").symlink_to(manifest.parent / "sounds")
        rows = []
        for number, row in enumerate(complete):
            orientation = number % 8 + 1 if number > 10 else 1
            (folder / f"{number}.png").write_bytes(scene(number, hidden and number not in (0, 2), "PNG", orientation))
            rows.append(row | {"image": f"{number}.png", "faces": boxes[number % 2]})
            if orientation > 1:
                width, height = (120, 200) if orientation > 4 else (200, 120)
                rows[-1]["faces"] = [turned(BOX, orientation, width, height)]
        rows[0] |= {"faces": []}
        rows[1] |= {"faces": [[1, 2, 3]]}
        rows[2].pop("faces")
        rows[4] |= {"image": "3.png", "faces": [[0, 0, 30, 30], list(BOX)]}  # one file, other boxes
        (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        words = ("build", folder / "m.jsonl", folder / "out", "--blur-boxes", "faces", "--unit-records", 8)
        mmembed(*words, "--max-error-rate", 1, "--dedup", "near", *FLAGS, *IN_PROCESS)
    out = tmp_path / "with" / "out"
    assert verify(Dataset.open(out)) == []
    (error,) = pq.read_table(out / "errors").to_pylist()
    assert (error["id"], error["modality"], error["error"]) == (bad, "image", "DecodeError")
    found, same = features(out), features(tmp_path / "without" / "out")
    assert found.keys() == same.keys() and bad not in found and len(found) == len(complete) - 1
    assert all(np.array_equal(found[id], same[id]) for id in found)
    assert not np.array_equal(found[complete[3]["id"]], found[complete[4]["id"]])

    ids = [row["id"] for row in complete]
    assert shows((tmp_path / "with" / "3.png").read_bytes())
    report = pictures((out / "report.html").read_bytes())
    assert len(report) >= 8 and not any(map(shows, report))
    page = tmp_path / "page.html"
    mmembed("query", out, "--id", ids[3], "--to", "image", "--html", page, "-k", 60)
    assert len(pictures(page.read_bytes())) >= 20 and not any(map(shows, pictures(page.read_bytes())))
    answers = dict(sent(out, ids[2:], "60,20,140,70"))
    assert len([data for data in answers.values() if data[8:12] == b"WEBP"]) >= 4 * 28
    assert not any(shows(data) for data in answers.values() if data[8:12] == b"WEBP")
    explained = pictures(answers["/api/explain"])
    assert len(explained) >= 1 and not any(map(shows, explained))

    searcher = Searcher.open(out)
    overlay = tmp_path / "overlay.png"
    write_overlay(explain(searcher, Query.of(text="a red star"), ids[3], "image"), overlay)
    gray = np.asarray(pillow.open(overlay))[45, 64].astype(int)  # tinted red or blue alone, and not both
    assert min(gray[0], gray[2]) - gray[1] < 60
    assert "128;128;128" in in_terminal(searcher.media(ids[3], "image"))[3]
    with TestClient(create_app(searcher, Settings()), base_url="http://localhost:8000") as client:
        for route in ("media", "thumbnail"):  # what is hidden of it is not known, so nothing is shown
            assert client.get(f"/{route}/image/{bad}").status_code == 404
        assert client.get(f"/media/image/{shown}").status_code == 200

    row = {"id": "new", "image": (tmp_path / "with" / "3.png").read_bytes()}
    other = row | {"image": (tmp_path / "without" / "3.png").read_bytes()}
    embedder = Embedder(str(out), "")
    first, second = ([s.data for _, s in embedder.embed([r | {"faces": [list(BOX)]}])[0]] for r in (row, other))
    assert np.array_equal(first, second) and len(first) == 1


def turned(box: tuple[int, int, int, int], orientation: int, width: int, height: int) -> list[int]:
    """A box of what is stored, in the oriented picture of such a size."""
    left, top, right, bottom = box
    if orientation > 4:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return [left, top, right, bottom]


def test_a_key_that_no_record_has_hides_nothing_and_is_refused(complete: Rows, manifest: Path, tmp_path: Path) -> None:
    result = mmembed("build", manifest, tmp_path / "out", "--blur-boxes", "fases", *FLAGS, *IN_PROCESS, expect=2)
    assert "has the column 'fases'" in result.stderr
