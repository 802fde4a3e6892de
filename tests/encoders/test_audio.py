# mypy: disable-error-code="no-any-return,func-returns-value,attr-defined"
from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import librosa
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmembed.encoders import resolve
from mmembed.encoders.audio import (
    CEPSTRA,
    FLOOR,
    MELS,
    AudioStatistics,
    chroma_filters,
    dct,
    delta,
    descriptors,
    frame_sizes,
    mel_filters,
    onset_strength,
)
from mmembed.errors import EncodeError, UsageError
from mmembed.modalities.audio import Audio

RATE = 16_000
SIZE, HOP = frame_sizes(RATE)
PITCHES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
CHROMA = 80 + 40 + 178
"""Where the means of the chroma begin in a feature."""


def tone(hertz: float, seconds: float = 1.0) -> NDArray[np.float32]:
    return (0.14 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def chirps(seconds: float = 2.0, seed: int = 0) -> NDArray[np.float32]:
    """Something like speech: gliding harmonics that swell and fade, and noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = np.cumsum(150 + 60 * np.sin(2 * np.pi * (1 + seed) * time)) / RATE
    voice = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 20)) * (1.1 + np.sin(2 * np.pi * 3.3 * time))
    hiss = np.random.default_rng(seed).standard_normal(len(time)) * 0.02
    return (0.05 * (voice + hiss)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def load_librosa() -> None:
    """librosa compiles what it has as soon as it is loaded, for half a minute: here the one part that is used."""
    compiled = numba.guvectorize

    def compile(*arguments: Any, **options: Any) -> Any:
        return lambda function: (
            compiled(*arguments, **options)(function) if function.__name__ == "_zc_wrapper" else function
        )

    with patch("numba.guvectorize", compile):
        for name in ("librosa.core.audio", "librosa.core.pitch", "librosa.util.utils"):
            importlib.import_module(name)


@pytest.fixture(scope="module")
def magnitude() -> NDArray[np.float32]:
    """librosa's own, (bins, frames)."""
    return np.abs(librosa.stft(chirps(), n_fft=SIZE, hop_length=HOP, pad_mode="constant"))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_the_filter_banks_are_those_of_librosa(rate: int) -> None:
    size, _ = frame_sizes(rate)
    mel = librosa.filters.mel(sr=rate, n_fft=size, n_mels=MELS)
    np.testing.assert_allclose(mel_filters(rate, size), mel, atol=1e-6)
    chroma = librosa.filters.chroma(sr=rate, n_fft=size)
    np.testing.assert_allclose(chroma_filters(rate, size), chroma, atol=1e-5)


def test_log_mel_and_mfcc_are_those_of_librosa(magnitude: NDArray[np.float32]) -> None:
    mel = descriptors(chirps(), RATE)[0]
    power = librosa.feature.melspectrogram(S=magnitude**2, sr=RATE, n_fft=SIZE, n_mels=MELS)
    expected = librosa.power_to_db(power, amin=FLOOR, top_db=None)
    np.testing.assert_allclose(mel, expected.T, atol=0.01)
    mfcc = librosa.feature.mfcc(S=expected, n_mfcc=CEPSTRA)
    np.testing.assert_allclose(mel @ dct(MELS, CEPSTRA).T, mfcc.T, atol=0.05)


def test_chroma_is_that_of_librosa(magnitude: NDArray[np.float32]) -> None:
    expected = librosa.feature.chroma_stft(S=magnitude**2, sr=RATE, n_fft=SIZE, tuning=0)
    np.testing.assert_allclose(descriptors(chirps(), RATE)[1], expected.T, atol=1e-4)


def test_the_shape_of_the_spectrum_is_that_of_librosa(magnitude: NDArray[np.float32]) -> None:
    centroid, bandwidth, rolloff, flatness, crossings = descriptors(chirps(), RATE)[2].T
    feature = librosa.feature
    top = RATE / 2
    np.testing.assert_allclose(centroid * top, feature.spectral_centroid(S=magnitude, sr=RATE)[0], rtol=1e-3)
    np.testing.assert_allclose(bandwidth * top, feature.spectral_bandwidth(S=magnitude, sr=RATE)[0], rtol=1e-3)
    np.testing.assert_allclose(rolloff * top, feature.spectral_rolloff(S=magnitude, sr=RATE)[0], atol=RATE / SIZE)
    np.testing.assert_allclose(10**flatness, feature.spectral_flatness(S=magnitude)[0], rtol=1e-2)
    padded = np.pad(chirps(), SIZE // 2)
    zeros = librosa.zero_crossings
    expected = zeros(librosa.util.frame(padded, frame_length=SIZE, hop_length=HOP), axis=0, pad=False).mean(axis=0)
    np.testing.assert_allclose(crossings, expected, atol=2 / SIZE)


def test_deltas_are_those_of_librosa() -> None:
    track = descriptors(chirps(), RATE)[0]
    np.testing.assert_allclose(delta(track), librosa.feature.delta(track, axis=0, mode="nearest"), atol=1e-4)


def test_onset_strength_is_that_of_librosa() -> None:
    mel = descriptors(chirps(), RATE)[0]
    expected = librosa.onset.onset_strength(S=mel.T, sr=RATE, hop_length=HOP, center=False)
    np.testing.assert_allclose(onset_strength(mel), expected, atol=1e-3)


def test_a_long_sound_is_described_frame_by_frame_as_a_short_one() -> None:
    long = chirps(13)
    whole, middle = descriptors(long, RATE), descriptors(long[HOP * 900 : HOP * 1200], RATE)
    inner = slice(10, -10)
    for one, other in zip(whole, middle, strict=True):
        np.testing.assert_allclose(one[900:1201][inner], other[inner], atol=1e-3)


@pytest.mark.parametrize("number", range(12))
def test_a_pure_tone_is_loudest_in_its_pitch_class(number: int) -> None:
    for octave in (4, 5, 6):
        feature = AudioStatistics().encode([tone(440 * 2 ** ((number - 9) / 12 + octave - 4))])[0]
        chroma = feature[CHROMA : CHROMA + 12]
        assert PITCHES[int(np.argmax(chroma))] == PITCHES[number]


@pytest.mark.parametrize("rate", [1.0, 2.0, 4.0, 8.0])
def test_the_onset_rate_of_a_click_train_is_the_rate_of_its_clicks(rate: float) -> None:
    sound = np.zeros(10 * RATE, np.float32)
    random = np.random.default_rng(0)
    for at in np.arange(0.3 / rate, 10, 1 / rate):
        start = round(at * RATE)
        click = random.standard_normal(320)[: len(sound) - start] * 0.5
        sound[start : start + len(click)] = click
    sound[-1] = 1e-3  # the end is not padding
    assert AudioStatistics().encode([sound])[0, -2] == pytest.approx(rate, rel=0.06)


def test_a_steady_tone_has_no_onset_where_it_is_cut() -> None:
    assert AudioStatistics().encode([tone(440, 3)])[0, -2] == 0


@settings(deadline=None, max_examples=10)
@given(lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
def test_a_row_alone_and_in_a_batch_has_the_same_bytes(lengths: list[int]) -> None:
    encoder = AudioStatistics()
    batch = [chirps(3, seed)[:length] for seed, length in enumerate(lengths)]
    together = encoder.encode(batch)
    assert together.shape == (len(batch), encoder.space.dim)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    for row, samples in zip(together, batch, strict=True):
        assert row.tobytes() == encoder.encode([samples])[0].tobytes()


def test_the_zeros_that_pad_a_window_change_nothing() -> None:
    audio, encoder = Audio(), AudioStatistics()
    piece = chirps(0.7)
    padded, bare = audio.normalize(piece), Audio(window=0).normalize(piece)
    assert len(padded) > 10 * len(bare)
    assert encoder.encode([padded]).tobytes() == encoder.encode([bare]).tobytes()


def test_the_level_of_the_input_hardly_changes_the_feature() -> None:
    audio, encoder = Audio(), AudioStatistics()
    loud, soft = encoder.encode([audio.normalize(chirps()), audio.normalize(chirps() * np.float32(0.1))])
    np.testing.assert_allclose(soft, loud, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(RATE),
        np.zeros(1),
        np.ones(1),
        np.ones(RATE),
        np.eye(1, RATE)[0],
        np.full(RATE, 1e-30),
        np.full(900, 1e4),
    ],
)
def test_silence_and_other_extremes_give_finite_features(samples: NDArray[np.float64]) -> None:
    assert np.isfinite(AudioStatistics().encode([samples.astype(np.float32)])).all()


def test_different_sounds_have_different_features_and_equal_ones_equal() -> None:
    a, b, c = AudioStatistics().encode([chirps(1, 0), chirps(1, 1), chirps(1, 0)])
    assert a.tobytes() == c.tobytes()
    assert np.abs(a - b).max() > 1


@pytest.mark.parametrize("samples", [np.zeros(0), np.array([0.1, np.nan]), np.array([np.inf]), np.zeros((2, 2))])
def test_what_is_no_sound_is_an_encode_error(samples: NDArray[np.float64]) -> None:
    with pytest.raises(EncodeError, match="finite samples of one channel"):
        AudioStatistics().encode([samples.astype(np.float32)])


def test_each_rate_is_a_space_of_its_own_and_a_wrong_one_is_refused() -> None:
    assert AudioStatistics(8_000).space != AudioStatistics().space
    assert AudioStatistics(44_100).encode([chirps()]).shape == (1, AudioStatistics(44_100).space.dim)
    with pytest.raises(UsageError, match="sample_rate is 10"):
        AudioStatistics(10)


def test_it_is_the_built_in_encoder_and_is_made_without_librosa() -> None:
    assert resolve(Audio(), "builtin") == (Audio(sample_rate=16_000), AudioStatistics())
    program = (
        "import sys, numpy as np\n"
        "from mmembed.encoders.audio import AudioStatistics\n"
        "from mmembed.modalities.audio import Audio\n"
        "AudioStatistics().encode([Audio().normalize(np.ones(100, np.float32))])\n"
        "print(sorted({'librosa', 'numba', 'scipy', 'torch', 'apache_beam', 'soundfile'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
