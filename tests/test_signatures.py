from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw

from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.signatures import AUDIO_BITS, IMAGE_BITS, TEXT_VALUES, keys, near, of_audio, of_text, signature
from mmembed.types import Media

RATE = 16_000


def rows(*signatures: bytes) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(value, np.uint8)[np.newaxis] for value in signatures]


def drawn(seed: int, colour: str = "red") -> pillow.Image:
    """Boxes at random places."""
    random = np.random.default_rng(seed)
    picture = pillow.new("RGB", (200, 160), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = random.integers(0, 140), random.integers(0, 110)
        right, bottom = left + random.integers(10, 60), top + random.integers(10, 50)
        draw.rectangle([float(edge) for edge in (left, top, right, bottom)], fill=colour)
    return picture


def picture(image: pillow.Image, quality: int = 0) -> bytes:
    """The signature of a picture that was saved as PNG, or as JPEG of a quality."""
    file = io.BytesIO()
    if quality:
        image.save(file, "JPEG", quality=quality)
    else:
        image.save(file, "PNG")
    return signature(Image(), Media(content=file.getvalue()))


@pytest.mark.parametrize("seed", range(8))
def test_a_picture_saved_again_is_near_itself(seed: int) -> None:
    image = drawn(seed)
    small = image.resize((150, 120), pillow.Resampling.BICUBIC)
    for other in (picture(image, 60), picture(image, 90), picture(small, 85)):
        assert near("image", *rows(picture(image), other)).all()


def test_other_pictures_and_other_colours_are_not_near() -> None:
    assert not near("image", *rows(picture(drawn(1)), picture(drawn(2)))).any()
    assert not near("image", *rows(picture(drawn(1)), picture(drawn(1, "blue")))).any()
    plain = [pillow.new("RGB", (64, 64), colour) for colour in ("white", "black")]
    assert not near("image", *rows(*map(picture, plain))).any()


@pytest.mark.parametrize("colour", ["white", "black", "gray", "red"])
def test_a_picture_of_one_colour_is_near_itself_alone(colour: str) -> None:
    plain = pillow.new("RGB", (64, 64), colour)
    for other in (picture(plain, 50), picture(plain.resize((90, 40)), 75)):
        assert near("image", *rows(picture(plain), other)).all()
    assert not near("image", *rows(picture(plain), picture(pillow.new("RGB", (64, 64), "navy")))).any()


def test_a_symmetric_picture_saved_again_is_near_itself() -> None:
    ring = pillow.new("RGB", (160, 160), "white")
    ImageDraw.Draw(ring).ellipse((30, 30, 130, 130), outline="black", width=12)
    for quality in (50, 75, 90):
        assert near("image", *rows(picture(ring), picture(ring, quality))).all()


@pytest.mark.parametrize("apart", [IMAGE_BITS, IMAGE_BITS + 1])
def test_bits_are_counted_to_the_last_that_may_differ(apart: int) -> None:
    left, right = bytes(56), ((1 << apart) - 1).to_bytes(8, "big") + bytes(48)
    assert near("image", *rows(left, right)).all() == (apart <= IMAGE_BITS)


@pytest.mark.parametrize("other", ["a frog", "A FROG!", "  a  frog. "])
def test_case_punctuation_and_blanks_make_no_other_text(other: str) -> None:
    assert near("text", *rows(of_text("A frog."), of_text(other))).all()


@pytest.mark.parametrize("other", ["A dog.", "a frog and a dog", "青蛙"])
def test_other_words_make_another_text(other: str) -> None:
    assert not near("text", *rows(of_text("A frog."), of_text(other))).any()


@pytest.mark.parametrize(
    "caption", ["The sign for the number {} in American Sign Language.", "「{}」の もじを あらわす しゅわ"]
)
def test_one_letter_makes_another_caption(caption: str) -> None:
    assert not near("text", *rows(of_text(caption.format("C")), of_text(caption.format("F")))).any()


def test_a_word_in_a_long_text_makes_a_near_one() -> None:
    long = " ".join(f"{number} frogs sat on leaf number {number * 7}" for number in range(30))
    assert near("text", *rows(of_text(long), of_text(long.replace(" 15 frogs", " 15 toads")))).all()
    assert not near("text", *rows(of_text(long), of_text(long.replace("frogs", "toads")))).any()


@pytest.mark.parametrize("text", ["x", "!", "़", "👍🏽", "ไทย"])
def test_any_text_that_shows_something_has_a_signature(text: str) -> None:
    assert len(signature(Text(), Media(content=text))) == 256


def spoken(seed: int, seconds: float = 1.5) -> NDArray[np.float32]:
    """Something like speech: harmonics whose height and timbre wander."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    wander = np.interp(time, np.linspace(0, seconds, 8), random.uniform(100, 300, 8))
    phase = 2 * np.pi * np.cumsum(wander) / RATE
    weights = [np.interp(time, np.linspace(0, seconds, 8), random.uniform(0, 1, 8)) / n for n in range(1, 12)]
    return np.asarray(sum(w * np.sin(n * phase) for n, w in enumerate(weights, 1)) * 0.1, np.float32)


def saved(samples: NDArray[np.float32], format: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=format, subtype=subtype)
    return signature(Audio(), Media(content=file.getvalue()))


@pytest.mark.parametrize("seed", range(6))
def test_a_sound_saved_again_is_near_itself(seed: int) -> None:
    sound = spoken(seed)
    whole = saved(sound, "WAV", "PCM_16")
    for other in (
        saved(sound, "OGG", "VORBIS"),
        saved(sound * 0.3, "WAV", "PCM_16"),
        saved(sound * 0.5, "FLAC", "PCM_16"),
    ):
        assert near("audio", *rows(whole, other)).all()


def test_other_sounds_and_other_lengths_are_not_near() -> None:
    signed = [saved(spoken(seed), "WAV", "PCM_16") for seed in range(8)]
    pairs = [(a, b) for number, a in enumerate(signed) for b in signed[:number]]
    assert not any(near("audio", *rows(a, b)).any() for a, b in pairs)
    assert not near("audio", *rows(signed[0], saved(spoken(0)[:RATE], "WAV", "PCM_16"))).any()


def test_a_sound_has_one_signature_however_it_is_cut_into_blocks() -> None:
    sound = spoken(3)

    def blocks(size: int) -> Iterator[NDArray[np.float32]]:
        return (sound[start : start + size] for start in range(0, len(sound), size))

    assert of_audio(blocks(100), RATE) == of_audio(blocks(7000), RATE) == of_audio(blocks(len(sound)), RATE)
    assert len(of_audio(blocks(5), RATE)) == 36


@pytest.mark.parametrize("apart", [AUDIO_BITS, AUDIO_BITS + 1])
def test_bits_of_sounds_are_counted_likewise(apart: int) -> None:
    left, right = bytes(36), ((1 << apart) - 1).to_bytes(32, "big") + bytes(4)
    assert near("audio", *rows(left, right)).all() == (apart <= AUDIO_BITS)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([("image", IMAGE_BITS, 64, 48), ("text", 64 - TEXT_VALUES, 64, 0), ("audio", 16, 256, 4)]),
    st.data(),
)
def test_near_signatures_share_a_key(case: tuple[str, int, int, int], data: st.DataObject) -> None:
    modality, most, places, rest = case
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    spoilt = random.permutation(places)[: data.draw(st.integers(0, most))]
    unit = 32 if modality == "text" else 1
    bits = random.integers(0, 2, (places, unit), np.uint8)
    other = bits.copy()
    other[spoilt, 0] ^= 1
    left, right = (np.packbits(b.ravel()).tobytes() + bytes(rest) for b in (bits, other))
    assert near(modality, *rows(left, right)).all()
    assert any(a == b for a, b in zip(*(keys(modality, row) for row in rows(left, right))))


def test_other_signatures_seldom_share_a_key() -> None:
    random = np.random.default_rng(0)
    for modality, size in (("image", 56), ("text", 256), ("audio", 36)):
        found = keys(modality, random.integers(0, 256, (2000, size), np.uint8))
        shared = sum(2000 - len(np.unique(table)) for table in found)
        assert shared < 0.01 * 2000 * 2000 / 2  # else a search would be no faster than all pairs
