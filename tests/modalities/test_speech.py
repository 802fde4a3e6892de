from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter

from mmembed.errors import FilteredError, UsageError
from mmembed.modalities import speech
from mmembed.modalities.audio import Audio
from mmembed.modalities.speech import FRAME, GAP, LEAST, PAD, RATE, Gate, energy_gate, stretches
from mmembed.types import Media

Samples = NDArray[np.float32]


def blocks(sound: Samples, size: int, first: int = 0) -> Iterator[tuple[int, Samples]]:
    return ((first + start, sound[start : start + size]) for start in range(0, len(sound), size))


def loud() -> Gate:
    """Takes for speech what is not zero."""
    return lambda frame: bool(np.any(frame))


def spoken(*pieces: tuple[bool, int]) -> Samples:
    """Frames of sound (their numbers, from 1 on) and of silence."""
    number, parts = 0, []
    for speaks, frames in pieces:
        for _ in range(frames):
            number += 1
            parts.append(np.full(FRAME, number if speaks else 0, np.float32))
    return np.concatenate(parts)


def found(sound: Samples, longest: int = 1000 * FRAME, size: int = 1000, first: int = 0) -> list[tuple[int, int]]:
    """Stretches as (first frame, frames); what they hold is what lies there."""
    result = []
    for start, samples in stretches(blocks(sound, size, first), loud(), longest):
        assert np.array_equal(samples, sound[start - first : start - first + len(samples)])
        result.append(((start - first) // FRAME, len(samples) // FRAME))
    return result


@pytest.mark.parametrize("size", [100, FRAME, 7000])
def test_stretches_are_padded_merged_over_short_gaps_and_dropped_if_too_short(size: int) -> None:
    sound = spoken(
        (False, 20), (True, 10), (False, 5), (True, 10), (False, 30), (True, LEAST - 1), (False, 30), (True, LEAST)
    )
    assert found(sound, size=size) == [(20 - PAD, 25 + 2 * PAD), (112 - PAD, LEAST + PAD)]


def test_a_stretch_that_is_too_long_is_cut_without_a_gap() -> None:
    sound = spoken((False, 10), (True, 50), (False, 20))
    parts = found(sound, longest=20 * FRAME)
    assert all(frames <= 20 for _, frames in parts)
    assert parts[0][0] == 10 - PAD
    assert 50 + 2 * PAD <= sum(frames for _, frames in parts) <= 50 + PAD + GAP
    assert all(a + n == b for (a, n), (b, _) in pairwise(parts))


def test_a_cut_leaves_no_piece_of_padding_alone() -> None:
    assert found(spoken((False, 10), (True, 20 - PAD), (False, 20)), longest=20 * FRAME) == [(10 - PAD, 20)]
    assert found(spoken((False, 10), (True, 21 - PAD), (False, 20)), longest=20 * FRAME) == [(7, 20), (27, 1 + PAD)]


@settings(deadline=None, max_examples=100)
@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1, max_size=8),
    short=st.integers(0, FRAME - 1),
    longest=st.sampled_from([15, 20, 1000]),
    size=st.integers(1, 5000),
)
def test_stretches_lie_apart_within_the_sound_and_hold_all_speech_that_is_long_enough(
    pieces: list[tuple[bool, int]], short: int, longest: int, size: int
) -> None:
    sound = spoken(*pieces)
    sound = sound[: len(sound) - short]
    parts = list(stretches(blocks(sound, size), loud(), longest * FRAME))
    covered = np.zeros(len(sound), bool)
    for start, samples in parts:
        assert 0 < len(samples) <= longest * FRAME
        assert np.array_equal(samples, sound[start : start + len(samples)])
        assert not covered[start : start + len(samples)].any()
        assert samples.any()
        covered[start : start + len(samples)] = True
    place = 0
    for speaks, frames in pieces:
        if speaks and frames >= LEAST:
            assert covered[place : place + frames * FRAME].all()
        place += frames * FRAME


def test_places_count_from_the_sounds_own_beginning() -> None:
    sound = spoken((True, 20), (False, 20))
    [(start, _)] = stretches(blocks(sound, 900, first=12_345), loud(), 1000 * FRAME)
    assert start == 12_345


def test_the_energy_gate_hears_what_stands_out_of_any_floor() -> None:
    random = np.random.default_rng(0)
    for floor in (0.0005, 0.01):
        noise = random.normal(scale=floor, size=RATE * 4).astype(np.float32)
        time = np.arange(RATE) / RATE
        noise[RATE : 2 * RATE] += (8 * floor * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
        [(start, samples)] = stretches(blocks(noise, 5000), energy_gate(), 100 * RATE)
        assert abs(start / RATE - 0.9) < 0.1 and abs(len(samples) / RATE - 1.2) < 0.15


def wav(samples: Samples) -> Media:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return Media(content=file.getvalue())


def test_segments_of_speech_lie_where_it_is_in_the_file() -> None:
    random = np.random.default_rng(1)
    sound = random.normal(scale=0.002, size=RATE * 6).astype(np.float32)
    sound[2 * RATE : 3 * RATE] *= 40
    audio = Audio(speech="energy", window=0.5)
    spans = [span for span, _ in audio.segment(audio.decode(wav(sound)))]
    assert abs(spans[0][0] - 1.9) < 0.1 and abs(spans[-1][1] - 3.1) < 0.1
    assert all(end - start <= 0.5 for start, end in spans)
    for (start, end), piece in audio.segment(audio.decode(wav(sound))):
        assert len(piece) == round((end - start) * RATE)


def test_a_sound_without_speech_is_left_out() -> None:
    audio = Audio(speech="energy")
    with pytest.raises(FilteredError, match="no speech found"):
        list(audio.segment(audio.decode(wav(np.full(RATE, 0.1, np.float32)))))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"speech": "loud"}, "it must be energy, silero, or nothing"),
        ({"speech": "energy", "sample_rate": 8000}, "is told at 16000 Hz"),
        ({"speech": "energy", "hop": 5.0}, "cut at the window's length"),
        ({"speech": "energy", "window": 0.4}, "window at 0.5 seconds or more"),
        ({"speech": "energy", "window": 0.0}, "window at 0.5 seconds or more"),
        ({"min_seconds": -1.0}, "0 or more"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Audio(**values)  # type: ignore[arg-type]


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install onnxruntime.*pip install --no-deps silero-vad"):
        Audio(speech="silero")


def test_the_model_sees_each_frame_after_the_end_of_the_one_before_and_its_own_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As silero-vad's own wrapper feeds it: 64 samples of context, float32 (1, 576), and a state (2, 1, 128)."""
    seen: list[dict[str, NDArray[Any]]] = []

    class Session:
        def run(self, outputs: None, inputs: dict[str, NDArray[Any]]) -> tuple[Samples, Samples]:
            seen.append(inputs)
            probability = [0.4, 0.6, 0.4, 0.3, 0.4][len(seen) - 1]
            return np.full((1, 1), probability, np.float32), inputs["state"] + 1

    monkeypatch.setattr(speech, "_session", Session)
    sound = np.arange(5 * FRAME, dtype=np.float32)
    gate = speech.silero_gate()
    assert [gate(frame) for frame in sound.reshape(5, FRAME)] == [False, True, True, False, False]
    padded = np.pad(sound, (64, 0))
    for number, inputs in enumerate(seen):
        assert np.array_equal(inputs["input"], padded[np.newaxis, number * FRAME : (number + 1) * FRAME + 64])
        assert inputs["state"].shape == (2, 1, 128) and (inputs["state"] == number).all()
        assert inputs["sr"] == 16_000 and inputs["input"].dtype == inputs["state"].dtype == np.float32


needs_model = pytest.mark.skipif(
    speech._model() is None or importlib.util.find_spec("onnxruntime") is None,
    reason="silero-vad and onnxruntime, which a user installs for this gate alone, are not there",
)


@needs_model
def test_the_model_takes_neither_noise_nor_a_tone_for_speech() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.05, size=RATE * 3).astype(np.float32)
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(RATE * 3) / RATE)).astype(np.float32)
    for sound in (noise, tone):
        assert list(stretches(blocks(sound, 5000), speech.silero_gate(), 10 * RATE)) == []


def voice(seconds: float) -> Samples:
    """Vowels, a new one each 0.22 s: pulses of a voice's pitch through three resonances each (Klatt, 1980)."""
    time = np.arange(round(seconds * RATE)) / RATE
    pulses = np.diff(np.floor(np.cumsum(120 + 15 * np.sin(2 * np.pi * 1.3 * time)) / RATE), prepend=0.0)
    formants = [(700, 1200, 2600), (300, 2300, 3000), (400, 800, 2600), (500, 1800, 2500)]
    length, vowels = round(0.22 * RATE), []
    for number, start in enumerate(range(0, len(time), length)):
        vowel = pulses[start : start + length]
        for hertz, width in zip(formants[number % 4], (80, 100, 140)):
            radius = np.exp(-np.pi * width / RATE)
            vowel = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hertz / RATE), radius**2], vowel)
        vowels.append(vowel * np.hanning(len(vowel)))
    sound = np.concatenate(vowels)
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)


@needs_model
def test_the_model_hears_a_voice_where_it_is_in_each_sound_anew() -> None:
    """A second sound is heard as the first was: the model's state goes on within a sound, and no farther."""
    sound = np.random.default_rng(0).normal(scale=0.001, size=4 * RATE).astype(np.float32)
    sound[RATE : 3 * RATE] += voice(2)
    for _ in range(2):
        [(start, samples)] = stretches(blocks(sound, 5000), speech.silero_gate(), 10 * RATE)
        assert abs(start / RATE - 0.9) < 0.1 and abs((start + len(samples)) / RATE - 3.1) < 0.2


@pytest.mark.parametrize(
    "option, seconds, message",
    [
        ({"min_seconds": 2.0}, 1.5, "1.50 seconds are below min_seconds = 2"),
        ({"max_seconds": 1.0}, 1.5, "1.50 seconds are above max_seconds = 1"),
    ],
)
def test_sounds_of_other_lengths_are_left_out(option: dict[str, float], seconds: float, message: str) -> None:
    sound = wav(np.random.default_rng(0).normal(scale=0.1, size=round(RATE * seconds)).astype(np.float32))
    with pytest.raises(FilteredError, match=message):
        Audio(**option).decode(sound)  # type: ignore[arg-type]
    assert list(Audio(min_seconds=1.0, max_seconds=2.0).decode(sound))
