"""The sample set: the same bytes each time, and pictures, captions and sounds that say what the scene says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mmembed import sample
from mmembed.errors import UsageError
from mmembed.sample import COLORS, NUMBERS, POSITIONS, SAMPLE_RATE, SHAPES, SIDE, SIZES, Scene, write_sample

SCENES = st.builds(
    Scene,
    shape=st.sampled_from(sorted(SHAPES)),
    color=st.sampled_from(sorted(COLORS)),
    count=st.sampled_from(sorted(NUMBERS)),
    position=st.sampled_from(sorted(POSITIONS)),
    size=st.sampled_from(sorted(SIZES)),
)
RANDOMS = st.integers(0, 2**32).map(Random)
EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample"), 120, 3).parent


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def one_of(words: tuple[str, ...], text: str) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


def ink(picture: Image.Image, background: int) -> NDArray[np.bool_]:
    """Pixels that differ clearly from the background, bool (height, width)."""
    plain = np.asarray(sample._background(background), int)
    far: NDArray[np.bool_] = np.abs(np.asarray(picture, int) - plain).max(2) > 40
    return far


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_with_another_hash_seed_writes_the_same_bytes(
    folder: Path, tmp_path: Path, hash_seed: str
) -> None:
    program = (
        "import sys, pathlib; from mmembed.sample import write_sample; write_sample(pathlib.Path(sys.argv[1]), 120, 3)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    assert digests(tmp_path) == digests(folder)


def test_a_larger_set_begins_with_the_smaller_one(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, 30, 3)
    small, large = digests(tmp_path), digests(folder)
    manifest = (folder / "manifest.jsonl").read_bytes()
    assert manifest.startswith((tmp_path / "manifest.jsonl").read_bytes())
    del small["manifest.jsonl"]
    assert len(small) > 50
    assert small.items() <= large.items()


def test_another_seed_gives_other_scenes(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, 30, 4)
    assert [row["scene"] for row in rows(tmp_path)] != [row["scene"] for row in rows(folder)[:30]]


def test_a_second_call_writes_nothing_and_another_replaces_the_manifest(tmp_path: Path) -> None:
    manifest = write_sample(tmp_path, 5, 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_sample(tmp_path, 5, 0) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    write_sample(tmp_path, 3, 1)
    assert len(rows(tmp_path)) == 3
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.suffix]


def test_a_set_whose_writing_was_interrupted_has_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path, 5, 0)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "play", lambda scene, random: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_sample(tmp_path, 5, 1)
    assert not (tmp_path / "manifest.jsonl").exists()
    write_sample(tmp_path, 5, 1)
    assert len(rows(tmp_path)) == 5


@pytest.mark.parametrize("records", [0, -1])
def test_fewer_than_one_record_is_an_error(tmp_path: Path, records: int) -> None:
    with pytest.raises(UsageError, match=f"{records} records: at least 1"):
        write_sample(tmp_path / "new", records, 0)
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "mine"}\n')
    with pytest.raises(UsageError, match="choose another folder"):
        write_sample(tmp_path, 1, 0)
    assert (tmp_path / "manifest.jsonl").read_text() == '{"id": "mine"}\n'


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't write a sample to"):
        write_sample(tmp_path / "file", 1, 0)


def test_every_row_names_its_scene_and_files_that_are_there(folder: Path) -> None:
    for index, row in enumerate(rows(folder)):
        scene = {key: row[key] for key in ("shape", "color", "count", "position", "size")}
        assert row["id"] == f"scene-{index:06}"
        assert row["scene"] == str(Scene(**scene))
        assert set(row) <= {"id", "image", "text", "audio", "scene", *scene}
    named = {row[key] for row in rows(folder) for key in ("image", "audio") if key in row}
    assert named == set(digests(folder)) - {"manifest.jsonl"}


def test_every_picture_opens_and_has_its_size(folder: Path) -> None:
    kinds = set()
    for path in (folder / "images").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
            kinds.add(picture.format)
    assert kinds == {"JPEG", "PNG"}


def test_every_sound_opens_and_has_its_rate_and_duration(folder: Path) -> None:
    kinds = set()
    for path in (folder / "sounds").iterdir():
        sound, info = soundfile.read(path, dtype="int16")[0], soundfile.info(path)
        assert (info.samplerate, info.subtype) == (SAMPLE_RATE, "PCM_16")
        assert 1.0 <= info.duration <= 1.6
        assert 10000 < np.abs(sound.astype(int)).max() < 32767
        kinds.add(info.format)
    assert kinds == {"WAV", "FLAC"}


def test_the_missing_shares_are_as_stated() -> None:
    made = [sample._row(0, index)[1] for index in range(4000)]
    missing = {key: sum(key not in row for row in made) / len(made) for key in ("audio", "image", "text")}
    assert missing == pytest.approx({"audio": 0.05, "image": 0.05, "text": 0.03}, abs=0.012)
    assert all(sum(key in row for key in missing) >= 2 for row in made)


@settings(max_examples=300, deadline=None)
@given(scene=SCENES, random=RANDOMS)
def test_a_caption_names_all_that_the_scene_says_in_good_grammar(scene: Scene, random: Random) -> None:
    text = sample.describe(scene, random)
    assert one_of(tuple(pair[scene.count > 1] for pair in SHAPES[scene.shape].words), text)
    assert one_of(COLORS[scene.color].words, text)
    assert one_of(SIZES[scene.size].words, text)
    assert one_of(POSITIONS[scene.position].words, text)
    assert one_of((*NUMBERS[scene.count], "an") if scene.count == 1 else NUMBERS[scene.count], text)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |[{}]", text, re.IGNORECASE)
    assert text[0].isupper() == text.endswith(".") or text[0].isdigit()
    assert not re.search(r"\bare\b|\b(all|both)\b", text) or scene.count > 1


def test_captions_of_one_scene_vary() -> None:
    scene = Scene("star", "red", 3, "left", "small")
    assert len({sample.describe(scene, Random(seed)) for seed in range(200)}) > 150


@EXAMPLES
@given(scene=SCENES, random=RANDOMS)
def test_a_picture_shows_as_many_shapes_of_that_color_and_size_at_that_place(scene: Scene, random: Random) -> None:
    state = random.getstate()
    background = random.randrange(len(sample._BACKGROUNDS))
    random.setstate(state)
    picture = sample.draw(scene, random)
    shown = ink(picture, background)
    labels, count = ndimage.label(shown, np.ones((3, 3)))
    assert count == scene.count
    color = np.median(np.asarray(picture)[ndimage.binary_erosion(shown)], axis=0)
    assert min(COLORS, key=lambda name: np.abs(color - COLORS[name].rgb).sum()) == scene.color
    y, x = ndimage.center_of_mass(shown)
    anchors = {name: np.array(position.anchor) * SIDE for name, position in POSITIONS.items()}
    assert min(anchors, key=lambda name: np.hypot(*(anchors[name] - (x, y)))) == scene.position
    heights = [part[0].stop - part[0].start for part in ndimage.find_objects(labels)]
    assert all((height > 34) == (scene.size == "large") for height in heights)
    border = np.ones_like(shown)
    border[1:-1, 1:-1] = False
    assert not (shown & border).any()


def test_every_pattern_fits_at_its_largest() -> None:
    for count, patterns in sample._PATTERNS.items():
        for points in patterns:
            assert len(points) == count
            apart = np.hypot(*(np.array(points)[:, None] - np.array(points)).T)
            assert count == 1 or apart[~np.eye(count, dtype=bool)].min() >= 1
    for scene in (
        Scene("ring", "red", count, position, size) for count in NUMBERS for position in POSITIONS for size in SIZES
    ):
        radius = SIZES[scene.size].radius[1]
        middles = sample._middles(scene, radius, Random(0))
        assert (middles - radius >= 0).all()
        assert (middles + radius <= SIDE).all()


@EXAMPLES
@given(scene=SCENES, random=RANDOMS)
def test_a_sound_has_as_many_beats_as_the_scene_says(scene: Scene, random: Random) -> None:
    sound = sample.play(scene, random).astype(float)
    mono = sound if sound.ndim == 1 else sound.mean(1)
    energy = np.sqrt(np.convolve(mono**2, np.full(160, 1 / 160), "same"))  # over 10 ms
    # Partials that beat with each other let a tone ripple as it dies away: shorter gaps don't part two beats.
    _, beats = ndimage.label(ndimage.binary_closing(energy > 0.03 * energy.max(), np.ones(SAMPLE_RATE * 12 // 1000)))
    assert beats == scene.count


@EXAMPLES
@given(scene=SCENES, random=RANDOMS)
def test_a_sound_has_the_side_of_the_scene(scene: Scene, random: Random) -> None:
    sound = sample.play(scene, random).astype(float)
    if scene.position in ("left", "right"):
        power = (sound**2).sum(0)
        assert ("left" if power[0] > power[1] else "right") == scene.position
    else:
        assert sound.ndim == 1


@pytest.mark.parametrize("color", COLORS)
def test_the_pitch_of_a_sound_is_that_of_the_color(color: str) -> None:
    sound = sample.play(Scene("circle", color, 5, "centre", "small"), Random(1)).astype(float)
    peak = np.abs(np.fft.rfft(sound, 1 << 17)).argmax() * SAMPLE_RATE / (1 << 17)
    assert min(COLORS, key=lambda name: abs(np.log(peak / COLORS[name].hertz))) == color


@pytest.mark.parametrize(("position", "sign"), [("top", 1), ("bottom", -1), ("centre", 0)])
def test_the_pitch_rises_at_the_top_and_falls_at_the_bottom(position: str, sign: int) -> None:
    sound = sample.play(Scene("circle", "black", 1, position, "small"), Random(1)).astype(float)
    loud = np.flatnonzero(np.abs(sound) > 0.1 * np.abs(sound).max())
    first, last = sound[loud[0] : loud[-1]][:480], sound[loud[0] : loud[-1]][-480:]
    rates = [np.count_nonzero(np.diff(np.signbit(part))) for part in (first, last)]
    assert np.sign(rates[1] - rates[0]) == sign or (sign == 0 and abs(rates[1] - rates[0]) <= 1)
