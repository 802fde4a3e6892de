"""The built-in picture features equal slow references, and tell pictures apart by colour, shape and texture."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw

from mmembed.encoders import image as module
from mmembed.encoders.image import ImageStatistics
from mmembed.errors import EncodeError

ENCODER = ImageStatistics()


def noise(seed: int = 0, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def drawing(
    shape: str = "ellipse", colour: str = "red", box: tuple[int, int, int, int] = (10, 20, 50, 44)
) -> NDArray[np.uint8]:
    image = pillow.new("RGB", (64, 64), "white")
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return np.asarray(image)


def slow_edges(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The definition, pixel by pixel."""
    height, width, _ = picture.shape
    values = picture.astype(float)
    cells = np.zeros((8, 8, 8))
    for y in range(height):
        for x in range(width):
            gradients = []
            for c in range(3):
                across = values[y, x + 1, c] - values[y, x - 1, c] if 0 < x < width - 1 else 0.0
                down = values[y + 1, x, c] - values[y - 1, x, c] if 0 < y < height - 1 else 0.0
                gradients.append((across**2 + down**2, -c, across, down))
            _, _, across, down = max(gradients)
            position = math.atan2(down, across) % math.pi / math.pi * 8
            share = position - math.floor(position)
            cell = cells[y * 8 // height, x * 8 // width]
            cell[math.floor(position) % 8] += math.hypot(across, down) * (1 - share)
            cell[(math.floor(position) + 1) % 8] += math.hypot(across, down) * share
    cells *= 64 / (height * width)
    cells /= np.sqrt((cells**2).sum(2, keepdims=True)) + 0.2
    out = np.zeros((8, 4, 8))
    for row in range(8):
        for column in range(4):
            for b in range(8):
                out[row, column, b] = (cells[row, column, b] + cells[row, 7 - column, (8 - b) % 8]) / 2
    return out.ravel()


@pytest.mark.parametrize("picture", [noise(), noise(1, 33, 50), drawing(), drawing("rectangle", "blue")])
def test_edges_equal_a_slow_reference(picture: NDArray[np.uint8]) -> None:
    assert np.abs(module.edges(picture) - slow_edges(picture)).max() < 1e-5


@pytest.mark.parametrize(("angle", "expected"), [(0, 0), (45, 2), (90, 4), (135, 6)])
def test_a_ramp_falls_into_the_bin_of_its_direction(angle: int, expected: int) -> None:
    y, x = np.mgrid[:64, :64]
    ramp = 128 + 1.4 * ((x - 32) * math.cos(math.radians(angle)) + (y - 32) * math.sin(math.radians(angle)))
    cells = module.edges(np.repeat(ramp.round().astype(np.uint8)[..., None], 3, 2)).reshape(8, 4, 8)
    strongest = set(np.argsort(cells[3, 2])[-1 if angle in (0, 90) else -2 :])
    assert strongest == ({expected} if angle in (0, 90) else {2, 6})  # a mirrored ramp counts as well


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_binary_patterns_equal_a_slow_reference(radius: int) -> None:
    gray = noise(3)[..., 0]
    gray[5:20, 5:20] //= 50  # near-equal values, where the threshold matters
    gray[20:30, 5:20] |= 0xFC  # and the top of the range
    got = module.binary_pattern(gray, radius)
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for y in range(radius, gray.shape[0] - radius):
        for x in range(radius, gray.shape[1] - radius):
            bits = [int(gray[y + radius * i, x + radius * j]) > int(gray[y, x]) + 2 for i, j in ring]
            assert got[y - radius, x - radius] == sum(bit << k for k, bit in enumerate(bits))


def test_a_pattern_shares_its_class_with_its_mirror_image_alone_or_is_not_uniform() -> None:
    classes = module.pattern_classes()
    groups = [np.flatnonzero(classes == c) for c in range(classes.max() + 1)]
    sizes = sorted(len(group) for group in groups)
    assert sizes[-1] == 256 - 58 and sizes[-2] <= 2  # 58 uniform patterns of eight neighbours (Ojala et al., 2002)
    assert classes[0b1] == classes[0b100] and classes[0b1] != classes[0b10]


def test_colours_count_what_is_not_white() -> None:
    half = np.full((32, 32, 3), 255, np.uint8)
    half[:, :8] = (255, 0, 0)
    half[:, 8:16] = (0, 0, 255)
    hsv = np.asarray(pillow.fromarray(half).convert("HSV"))
    histogram = module.colours(hsv, half.min(2) < module.WHITE)
    red, blue = 0 * 9 + 2 * 3 + 2, 170 * 12 // 256 * 9 + 2 * 3 + 2
    assert np.flatnonzero(histogram).tolist() == [red, blue]
    assert histogram[[red, blue]] == pytest.approx([0.5**0.5] * 2)


def test_outline_measures_the_object() -> None:
    drawn = np.zeros((40, 50), bool)
    drawn[10:20, 5:30] = True
    aspect = math.log(0.27 / 0.52)
    assert module.outline(drawn) == pytest.approx([0.125, 0.25, 0.5, aspect, 1.0], rel=1e-5)


def test_the_space_says_what_encode_gives() -> None:
    features = ENCODER.encode([noise(), noise(1)])
    assert features.shape == (2, ENCODER.space.dim) and features.dtype == np.float32
    assert ENCODER.modality == "image" and (ENCODER.space.name, ENCODER.space.version) == ("image-statistics", "1")
    assert ENCODER.space.dim == 675


def test_equal_input_gives_equal_bytes_alone_in_a_batch_and_in_a_copy_of_the_encoder() -> None:
    batch = [noise(i, 64, 64) for i in range(5)] + [drawing()]
    together = pickle.loads(pickle.dumps(ENCODER)).encode(np.stack(batch))
    for picture, row in zip(batch, together, strict=True):
        assert ENCODER.encode([picture])[0].tobytes() == row.tobytes()
        assert ENCODER.encode([np.asfortranarray(picture)])[0].tobytes() == row.tobytes()


@settings(deadline=None, max_examples=30)
@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3), height=st.integers(16, 80), width=st.integers(16, 80),
    seed=st.none() | st.integers(0, 1000),
)  # fmt: skip
def test_features_are_finite_and_bounded(
    colour: tuple[int, int, int], height: int, width: int, seed: int | None
) -> None:
    picture = np.full((height, width, 3), colour, np.uint8) if seed is None else noise(seed, height, width)
    features = ENCODER.encode([picture])
    assert np.isfinite(features).all() and np.abs(features).max() <= 5


@pytest.mark.parametrize("picture", [noise(0, 64, 64), drawing(), drawing("rectangle", "green", (2, 3, 30, 60))])
def test_a_mirrored_picture_has_the_same_features(picture: NDArray[np.uint8]) -> None:
    assert np.abs(ENCODER.encode([picture]) - ENCODER.encode([picture[:, ::-1]])).max() < 1e-5


def part(name: str, features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = {"edges": 256, "layout": 96, "colours": 108, "texture": 210, "outline": 5}
    start = sum(length for key, length in lengths.items() if list(lengths).index(key) < list(lengths).index(name))
    return features[start : start + lengths[name]]


@pytest.mark.parametrize(
    ("other", "differs", "agrees"),
    [
        (drawing(colour="blue"), "colours", "outline"),
        (drawing(shape="rectangle"), "edges", "colours"),
        (drawing(box=(20, 4, 44, 60)), "outline", "colours"),
    ],
    ids=["colour", "shape", "pose"],
)
def test_pictures_differ_where_they_differ(other: NDArray[np.uint8], differs: str, agrees: str) -> None:
    one, two = ENCODER.encode([drawing(), other])
    assert np.abs(part(differs, one) - part(differs, two)).max() > 0.2
    assert np.abs(part(agrees, one) - part(agrees, two)).max() < 1e-6


def test_a_striped_and_a_plain_picture_differ_in_texture() -> None:
    plain = np.full((64, 64, 3), 120, np.uint8)
    stripes = plain.copy()
    stripes[::4] = 180
    one, two = ENCODER.encode([plain, stripes])
    assert np.abs(part("texture", one) - part("texture", two)).max() > 0.3


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((8, 64, 3), np.uint8),
        np.zeros((64, 64, 3)),
    ],
)
def test_another_form_is_refused_with_what_it_is(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(EncodeError, match=r"must be uint8 \(height, width, 3\)"):
        ENCODER.encode([picture])
