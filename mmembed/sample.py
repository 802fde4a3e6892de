"""A sample data set made by code: the same scene as a picture, a caption and a sound.

A scene is some shapes of one colour and size at one place. Each of its five attributes can be seen, read and
heard; the tables below say how. It is a demo and a test bed, not a benchmark.

    attribute   picture              caption        sound
    shape       outline              synonyms       timbre
    color       RGB                  synonyms       pitch, notes of an A minor 7 chord
    position    where                phrases        left, right: side and a drum; top, bottom: rising, falling
    size        radius               synonyms       short notes, or long ones with a sub-octave
    count       1 to 5 in a pattern  words, digits  number of beats
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import UsageError
from mmembed.shards import write_bytes

if TYPE_CHECKING:
    from PIL import Image

SIDE = 256  # of a picture, in pixels
SAMPLE_RATE = 16000  # of a sound, in Hz
_MARGIN = 4  # pixels that stay free at the border
_GAP = 8  # pixels between neighbours of a pattern, before each moves by up to _SHIFT along both axes
_SHIFT = 2
_OVERSAMPLING = 4  # shapes are drawn so much larger and reduced: smooth edges

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Timbre:
    """Partials (frequencies relative to a pitch, amplitudes); attack and decay in seconds."""

    ratios: tuple[float, ...]
    amplitudes: tuple[float, ...]
    attack: float = 0.004
    decay: float = 0.12


@dataclass(frozen=True)
class Shape:
    """An outline within the unit circle, x to the right and y down; a timbre; names in singular and plural."""

    outline: Points
    timbre: Timbre
    words: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Color:
    """A colour, the pitch that stands for it, and its names."""

    rgb: tuple[int, int, int]
    hertz: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Position:
    """Where a pattern lies and how its beats sound.

    Attributes:
        anchor: x and y of the middle of the pattern, as fractions of the side.
        glide: octaves that the pitch moves during a beat.
        gains: one a channel.
        drum: what strikes with each beat, with its partials in Hz.
    """

    anchor: tuple[float, float]
    words: tuple[str, ...]
    glide: float = 0.0
    gains: tuple[float, ...] = (1.0,)
    drum: Timbre | None = None


@dataclass(frozen=True)
class Size:
    """Radius in pixels (from, to); length of a note as a share of its beat; amplitude of the sub-octave."""

    radius: tuple[float, float]
    length: float
    sub_octave: float
    words: tuple[str, ...]


def _polar(radii: tuple[float, ...], start: float = -0.25) -> Points:
    """Points at equal angles; `start` is a share of the full circle, -0.25 is up."""
    angles = (2 * math.pi * (start + i / len(radii)) for i in range(len(radii)))
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def _heart() -> Points:
    """x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, the well-known curve, moved and scaled to fit."""
    curve = []
    for t in np.linspace(0, 2 * math.pi, 72, endpoint=False).tolist():
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((16 * math.sin(t) ** 3 / 17, (-y - 2.5) / 17))
    return tuple(curve)


def _cross() -> Points:
    arm = ((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3))
    left = tuple((y, -x) for x, y in arm)
    return (*arm, *((-y, x) for x, y in arm), *((-x, -y) for x, y in arm), *left)


def _ring() -> Points:
    """The outer circle, then the inner one: filling by the even-odd rule leaves the hole open."""
    outer, inner = _polar((1.0,) * 72), _polar((0.58,) * 72)
    return (*outer, outer[0], *inner, inner[0])


def _crescent() -> Points:
    """The unit disc without a disc of radius 0.8 whose middle is 0.5 to the right, moved to the middle."""
    x, radius, shift = 0.5, 0.8, 0.2
    meet = (1 + x**2 - radius**2) / (2 * x)  # x of the two points that both circles share
    first, second = math.acos(meet), math.acos((meet - x) / radius)
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(first, 2 * math.pi - first, 48).tolist()]
    inner = [
        (x + radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(2 * math.pi - second, second, 48).tolist()
    ]
    return tuple((px + shift, py) for px, py in outer + inner)


def _names(*singulars: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name + ("es" if name.endswith(("x", "s")) else "s")) for name in singulars)


SHAPES: Mapping[str, Shape] = {
    "circle": Shape(_polar((0.92,) * 72), Timbre((1,), (1,)), _names("circle", "disc")),
    "square": Shape(_polar((1.0,) * 4, 0.125), Timbre((1, 3, 5, 7), (1, 0.6, 0.4, 0.3)), _names("square", "box")),
    "triangle": Shape(
        _polar((1.0,) * 3), Timbre((1, 2.756, 5.404), (1, 0.8, 0.5), decay=0.06), _names("triangle", "wedge")
    ),
    "star": Shape(
        _polar((1.0, 0.42) * 5),
        Timbre((1, 2, 2.4, 3, 4.5), (0.6, 0.7, 0.8, 0.5, 0.6), decay=0.09),
        _names("star", "five-pointed star"),
    ),
    "heart": Shape(_heart(), Timbre((1, 2, 3), (1, 0.6, 0.35), 0.03, 0.25), _names("heart", "love heart")),
    "hexagon": Shape(
        _polar((0.97,) * 6, 0.0), Timbre((1, 2, 3, 4, 5, 6), (1,) * 6), _names("hexagon", "six-sided shape")
    ),
    "cross": Shape(_cross(), Timbre((1, 4), (1, 0.8)), _names("cross", "plus sign")),
    "ring": Shape(_ring(), Timbre((1, 1.5, 3.5), (0.8, 0.8, 0.3)), _names("ring", "hoop")),
    "crescent": Shape(
        _crescent(),
        Timbre((1, 2, 3, 4, 5, 6, 7), tuple(1 / n for n in range(1, 8)), 0.06, 0.4),
        _names("crescent", "crescent moon"),
    ),
}
COLORS: Mapping[str, Color] = {
    "red": Color((220, 35, 40), 220.00, ("red", "crimson", "scarlet")),
    "orange": Color((250, 135, 20), 261.63, ("orange", "tangerine")),
    "yellow": Color((242, 205, 15), 329.63, ("yellow", "golden")),
    "green": Color((40, 150, 60), 392.00, ("green", "emerald")),
    "turquoise": Color((40, 195, 190), 440.00, ("turquoise", "teal", "aqua")),
    "blue": Color((40, 85, 215), 523.25, ("blue", "cobalt")),
    "purple": Color((130, 55, 170), 659.26, ("purple", "violet")),
    "pink": Color((245, 120, 180), 783.99, ("pink", "rosy")),
    "brown": Color((125, 75, 35), 880.00, ("brown", "chestnut")),
    "black": Color((35, 35, 40), 1046.50, ("black", "ebony")),
}
POSITIONS: Mapping[str, Position] = {
    "left": Position(
        (0.25, 0.5),
        ("on the left", "on the left side", "at the left", "to the left"),
        gains=(1.0, 0.25),
        drum=Timbre((80, 110), (1.2, 0.8), 0.002, 0.05),
    ),
    "right": Position(
        (0.75, 0.5),
        ("on the right", "on the right side", "at the right", "to the right"),
        gains=(0.25, 1.0),
        drum=Timbre((5230, 5910, 6680, 7340), (0.5, 0.4, 0.4, 0.3), 0.001, 0.02),
    ),
    "top": Position((0.5, 0.25), ("at the top", "in the upper half", "near the top", "up at the top"), glide=0.5),
    "bottom": Position(
        (0.5, 0.75), ("at the bottom", "in the lower half", "near the bottom", "down at the bottom"), glide=-0.5
    ),
    "centre": Position((0.5, 0.5), ("in the centre", "in the middle", "in the center", "right in the middle")),
}
SIZES: Mapping[str, Size] = {
    "small": Size((12, 14), 0.5, 0.0, ("small", "little", "tiny")),
    "large": Size((26, 28), 0.9, 0.7, ("large", "big", "enormous")),
}
# The first is the plain number.
NUMBERS: Mapping[int, tuple[str, ...]] = {
    1: ("one", "a", "a single"),
    2: ("two", "2", "a pair of", "a couple of"),
    3: ("three", "3", "a trio of", "a group of three"),
    4: ("four", "4", "a quartet of", "a group of four"),
    5: ("five", "5", "a set of five", "a group of five"),
}
# {things}: "a trio of tiny red stars"; {plain}: "three tiny red stars"; {every}: "", "both " or "all ".
_TEMPLATES = (
    "{things} {where}",
    "{things}, {where}",
    "{where}: {things}",
    "{where}, {things}",
    "a picture of {things} {where}",
    "a picture with {things} {where}",
    "{things} drawn {where}",
    "{number} {noun} {where}, {every}{color} and {size}",
    "{things} {where} on a pale background",
    "There {be} {plain} {where}.",
    "{where} you can see {things}.",
    "{where} there {be} {plain}.",
    "You can see {things} {where}.",
    "This image shows {things} {where}.",
    "Look {where} for {things}.",
    "Someone put {things} {where}.",
    "The {noun} {where} {be} {color} and {size}, {number} in total.",
)
# Middles of the shapes of a pattern, in steps of their distance; all are at least 1 apart. Each may be mirrored
# and turned on its side.
_PATTERNS: Mapping[int, tuple[Points, ...]] = {
    1: (((0, 0),),),
    2: (((-0.5, 0), (0.5, 0)), ((-0.45, -0.45), (0.45, 0.45))),
    3: (((-1, 0), (0, 0), (1, 0)), ((-0.5, 0.45), (0.5, 0.45), (0, -0.45))),
    4: (
        ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
        ((-1.5, 0), (-0.5, 0), (0.5, 0), (1.5, 0)),
        ((-0.9, 0), (0.9, 0), (0, -0.5), (0, 0.5)),
    ),
    5: (
        ((-0.9, -0.5), (-0.9, 0.5), (0, 0), (0.9, -0.5), (0.9, 0.5)),
        ((-1, -0.45), (0, -0.45), (1, -0.45), (-0.5, 0.45), (0.5, 0.45)),
    ),
}
# Colours of a picture's first and last line; the lines between are blends.
_BACKGROUNDS = (
    ((255, 255, 255), (255, 255, 255)),
    ((255, 252, 240), (252, 240, 222)),
    ((244, 250, 255), (218, 234, 248)),
    ((246, 252, 244), (224, 240, 224)),
    ((252, 246, 255), (234, 226, 246)),
    ((250, 250, 250), (228, 230, 234)),
)


@dataclass(frozen=True)
class Scene:
    """What a record is about; its fields are keys of the tables above, and become metadata."""

    shape: str
    color: str
    count: int
    position: str
    size: str

    def __str__(self) -> str:
        return f"{self.count} {self.size} {self.color} {self.shape} {self.position}"


def write_sample(folder: Path, records: int, seed: int) -> Path:
    """Write pictures, sounds and, last of all, `folder`/manifest.jsonl; return its path.

    Record i depends on `seed` and i alone: a larger set begins with the smaller one, and the same call writes the
    same bytes, or nothing where its manifest is there already. Some records lack their sound (5 %), picture (5 %)
    or caption (3 %).

    Raises:
        UsageError: `records` is below 1, or `folder` can't be made or holds the manifest of something else.
    """
    if records < 1:
        raise UsageError(f"a sample of {records} records: at least 1 is needed")
    manifest = folder / "manifest.jsonl"
    rows = [_row(seed, index) for index in range(records)]
    content = "".join(json.dumps(row) + "\n" for _, row in rows).encode()
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "sounds").mkdir(exist_ok=True)
        present = manifest.read_bytes() if manifest.exists() else b""
    except OSError as error:
        raise UsageError(f"can't write a sample to {folder}: {error.strerror}; choose another folder") from error
    if present == content:
        return manifest
    if present and not present.startswith(b'{"id": "scene-000000", '):
        raise UsageError(f"{manifest} is no manifest of a sample and would be lost: choose another folder")
    manifest.unlink(missing_ok=True)  # a manifest never stands beside media that are not its own
    for index, (scene, row) in enumerate(rows):
        if "image" in row:
            _write(folder / row["image"], _encode_image(draw(scene, _random(seed, index, "image")), row["image"]))
        if "audio" in row:
            _write(folder / row["audio"], _encode_sound(play(scene, _random(seed, index, "audio")), row["audio"]))
    write_bytes(manifest, content)
    return manifest


def describe(scene: Scene, random: Random) -> str:
    """A caption that names all five attributes."""
    single = scene.count == 1
    noun = random.choice(SHAPES[scene.shape].words)[0 if single else 1]
    size, color = random.choice(SIZES[scene.size].words), random.choice(COLORS[scene.color].words)
    number, lead = NUMBERS[scene.count][0], random.choice(NUMBERS[scene.count])
    if lead == "a" and size[0] in "aeiou":
        lead = "an"
    text = random.choice(_TEMPLATES).format(
        things=f"{lead} {size} {color} {noun}",
        plain=f"{number} {size} {color} {noun}",
        number=number,
        size=size,
        color=color,
        noun=noun,
        where=random.choice(POSITIONS[scene.position].words),
        be="is" if single else "are",
        every={1: "", 2: "both "}.get(scene.count, "all "),
    )
    return text[0].upper() + text[1:] if text.endswith(".") else text


def draw(scene: Scene, random: Random) -> Image.Image:
    """A picture in RGB, SIDE x SIDE."""
    picture = _background(random.randrange(len(_BACKGROUNDS))).copy()
    radius = random.uniform(*SIZES[scene.size].radius)
    color = tuple(min(255, max(0, value + random.randint(-10, 10))) for value in COLORS[scene.color].rgb)
    outline = np.array(SHAPES[scene.shape].outline)
    for middle in _middles(scene, radius, random):
        corner = np.floor(middle - radius) - 1
        points = outline @ _rotation(random.uniform(-0.2, 0.2)) * radius + middle - corner
        picture.paste(color, (int(corner[0]), int(corner[1])), _mask(points, math.ceil(2 * radius) + 3))
    return picture


def play(scene: Scene, random: Random) -> NDArray[np.int16]:
    """A sound, (samples,) or (samples, 2) at SAMPLE_RATE, 1 to 1.6 seconds: a beat for each shape, even in time."""
    position, size, timbre = POSITIONS[scene.position], SIZES[scene.size], SHAPES[scene.shape].timbre
    hertz = COLORS[scene.color].hertz * 2 ** random.uniform(-0.015, 0.015)
    period, start, loudness = random.uniform(0.22, 0.27), random.uniform(0.02, 0.08), random.uniform(0.5, 0.9)
    time = np.arange(int(period * size.length * SAMPLE_RATE)) / SAMPLE_RATE
    rate = position.glide * math.log(2) / period  # frequency grows as exp(rate t), so its integral is:
    phase = hertz * (np.expm1(rate * time) / rate if rate else time)
    beat = _tone(timbre.ratios, timbre.amplitudes, phase)
    if size.sub_octave:
        beat += size.sub_octave * _tone((0.5,), (1.0,), phase)
    beat *= _envelope(time, timbre.attack, timbre.decay * (2 if size.sub_octave else 1))
    beat /= np.abs(beat).max()
    if position.drum:
        drum = position.drum
        beat += _tone(drum.ratios, drum.amplitudes, time) * _envelope(time, drum.attack, drum.decay)
    sound = np.zeros(int(max(1.0, start + scene.count * period + 0.1) * SAMPLE_RATE))
    for number in range(scene.count):
        first = int((start + number * period) * SAMPLE_RATE)
        sound[first : first + len(beat)] = beat
    channels = np.outer(sound, position.gains) if len(position.gains) > 1 else sound
    scaled: NDArray[np.float64] = channels * (32767 * loudness / np.abs(sound).max())
    return np.rint(scaled).astype(np.int16)


def _row(seed: int, index: int) -> tuple[Scene, dict[str, Any]]:
    """A record's scene and its line of the manifest."""
    random = _random(seed, index, "scene")
    scene = Scene(
        shape=random.choice(tuple(SHAPES)),
        color=random.choice(tuple(COLORS)),
        count=random.choice(tuple(NUMBERS)),
        position=random.choice(tuple(POSITIONS)),
        size=random.choice(tuple(SIZES)),
    )
    media = {
        "image": f"images/{index:06}.{'png' if random.random() < 0.2 else 'jpg'}",
        "text": describe(scene, _random(seed, index, "text")),
        "audio": f"sounds/{index:06}.{'wav' if random.random() < 0.2 else 'flac'}",
    }
    chance = random.random()
    missing = "audio" if chance < 0.05 else "image" if chance < 0.10 else "text" if chance < 0.13 else ""
    media.pop(missing, None)
    return scene, {"id": f"scene-{index:06}", **media, "scene": str(scene), **asdict(scene)}


def _random(seed: int, index: int, use: str) -> Random:
    """Numbers of their own for each use, so that the manifest is known before any medium is made."""
    return Random(f"{seed}:{index}:{use}")


def _middles(scene: Scene, radius: float, random: Random) -> NDArray[np.float64]:
    """Middles of the shapes in pixels, (count, 2): a pattern that fits around the anchor of the position."""
    step = 2 * radius + _GAP
    anchor = np.array(POSITIONS[scene.position].anchor) * SIDE
    room = np.minimum(anchor, SIDE - anchor) - _MARGIN - radius
    patterns = [np.array(points) * step for points in _PATTERNS[scene.count]]
    patterns += [points[:, ::-1] for points in patterns]
    pattern = random.choice([points for points in patterns if (np.abs(points).max(0) <= room).all()])
    free = np.minimum(room - np.abs(pattern).max(0), 14)
    move = [random.uniform(-limit, limit) for limit in free]
    mirror = [random.choice((-1, 1)) for _ in range(2)]
    shift = [[random.uniform(-_SHIFT, _SHIFT) for _ in range(2)] for _ in range(scene.count)]
    middles: NDArray[np.float64] = anchor + move + pattern * mirror + np.array(shift)
    return middles


def _rotation(angle: float) -> NDArray[np.float64]:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array(((cosine, sine), (-sine, cosine)))


def _mask(points: NDArray[np.float64], side: int) -> Image.Image:
    """Coverage of a polygon, 0 to 255, side x side pixels; points in pixels, (n, 2)."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    ImageDraw.Draw(mask).polygon((points * _OVERSAMPLING).ravel().tolist(), fill=255)
    return mask.reduce(_OVERSAMPLING)


@functools.cache
def _background(number: int) -> Image.Image:
    from PIL import Image

    first, last = np.array(_BACKGROUNDS[number], float)
    lines = first + (last - first) * np.linspace(0, 1, SIDE)[:, None]
    return Image.fromarray(np.repeat(np.rint(lines).astype(np.uint8)[:, None], SIDE, axis=1))


def _tone(ratios: tuple[float, ...], amplitudes: tuple[float, ...], phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sum of sines, (samples,); phase in turns, (samples,)."""
    tone: NDArray[np.float64] = np.array(amplitudes) @ np.sin(2 * np.pi * np.outer(ratios, phase))
    return tone


def _envelope(time: NDArray[np.float64], attack: float, decay: float) -> NDArray[np.float64]:
    """Linear attack, exponential decay, and a linear end of 20 ms, (samples,), at most 1."""
    start, end = np.minimum(time / attack, 1), np.minimum((time[-1] - time) / 0.02, 1)
    envelope: NDArray[np.float64] = start * np.exp(-time / decay) * end
    return envelope


def _encode_image(picture: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    if name.endswith(".png"):
        picture.save(file, "PNG", compress_level=4)
    else:
        picture.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def _encode_sound(sound: NDArray[np.int16], name: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound, SAMPLE_RATE, subtype="PCM_16", format="WAV" if name.endswith(".wav") else "FLAC")
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write beside and rename; without the fsync of `write_bytes`, which would take longer than all the rest."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content)
    os.replace(beside, path)
