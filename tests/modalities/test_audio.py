# mypy: disable-error-code="no-any-return,func-returns-value,attr-defined"
from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mmembed.modalities.audio as module
from mmembed.errors import DecodeError, FilteredError, ReadError, UsageError
from mmembed.modalities.audio import LEVEL, SILENCE, Audio
from mmembed.types import Media

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}


def noise(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """White noise, float32 (n, channels), of which no sample is silence."""
    values = np.random.default_rng(seed).uniform(0.05, 0.3, (round(seconds * rate), channels))
    return (values * np.random.default_rng(seed + 1).choice([-1, 1], values.shape)).astype(np.float32)


def tone(seconds: float, rate: int, hertz: float = 440) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def media(samples: NDArray[Any], rate: int = 16_000, format: str = "WAV", subtype: str = "FLOAT") -> Media:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return Media(content=file.getvalue(), path=f"sound.{format.lower()}")


def segments(audio: Audio, sound: Media) -> list[tuple[Any, NDArray[np.float32]]]:
    return list(audio.segment(audio.decode(sound)))


@pytest.mark.parametrize("extension", FORMATS)
def test_each_format_is_the_whole_file_read_and_resampled_at_once(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 10_000)
    rate = 48_000 if extension == "opus" else 44_100
    left, right = tone(1.5, rate), tone(1.5, rate, 1200)
    path = tmp_path / f"sound.{extension}"
    container, subtype = FORMATS[extension]
    soundfile.write(path, np.stack([left, right], axis=1), rate, format=container, subtype=subtype)
    [((start, end), piece)] = segments(Audio(window=0), Media(path=path.name, folder=str(tmp_path)))

    samples, read_rate = soundfile.read(path, dtype="float32")
    whole = soxr.resample(samples.mean(axis=1), read_rate, 16_000)
    loud = np.flatnonzero(np.abs(whole) >= SILENCE)
    assert start == pytest.approx(loud[0] / 16_000, abs=1e-3)
    assert end == pytest.approx(loud[-1] / 16_000, abs=1e-3)
    first = round(start * 16_000)
    np.testing.assert_allclose(piece, whole[first : first + len(piece)], atol=1e-4)
    assert len(piece) > 20_000


@settings(deadline=None, max_examples=25)
@given(
    seconds=st.floats(0.05, 3),
    silence=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    window=st.sampled_from([0.1, 0.3, 0.7, 1.0]),
    hop=st.sampled_from([0.0, 0.07, 0.1]),
    block=st.sampled_from([700, 16_000, 1 << 17]),
)
def test_windows_cover_all_but_the_silence_at_the_ends_and_lie_a_hop_apart(
    seconds: float, silence: tuple[int, int], window: float, hop: float, block: int
) -> None:
    sound = noise(seconds)[:, 0]
    padded = np.pad(sound, silence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        pieces = segments(Audio(window=window, hop=hop), media(padded))
    starts = np.array([round(span[0] * 16_000) for span, _ in pieces])
    ends = np.array([round(span[1] * 16_000) for span, _ in pieces])
    length, step = round(window * 16_000), round((hop or window) * 16_000)
    np.testing.assert_array_equal(starts, silence[0] + step * np.arange(len(pieces)))
    np.testing.assert_array_equal(ends, np.minimum(starts + length, silence[0] + len(sound)))
    assert ends[-1] == silence[0] + len(sound)
    assert len(pieces) == 1 or ends[-1] > ends[-2]
    for start, end, (_, piece) in zip(starts, ends, pieces, strict=True):
        np.testing.assert_array_equal(piece, padded[start:end])


@settings(deadline=None, max_examples=10)
@given(block=st.integers(100, 50_000), rate=st.sampled_from([8_000, 11_025, 16_000, 44_100, 96_000]))
def test_the_size_of_a_block_changes_no_span_and_no_sample(block: int, rate: int) -> None:
    sound = media(noise(1.3, rate), rate)
    expected = segments(Audio(window=0.5), sound)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        actual = segments(Audio(window=0.5), sound)
    assert [span for span, _ in actual] == [span for span, _ in expected]
    for (_, one), (_, other) in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_window_of_silence_gives_no_segment_and_silence_at_the_ends_of_a_window_is_cut() -> None:
    gap = np.zeros(5 * 16_000, np.float32)
    sound = np.concatenate([gap[:8_000], noise(0.6)[:, 0], gap, noise(0.2)[:, 0], gap])
    spans = [span for span, _ in segments(Audio(window=1), media(sound))]
    assert spans == [(0.5, 1.1), (6.1, 6.3)]
    overlapping = [span for span, _ in segments(Audio(window=1, hop=0.25), media(sound))]
    assert overlapping == [(0.5, 1.1), (6.1, 6.25), (6.1, 6.3)]


def test_thirty_minutes_take_the_memory_of_a_window_and_some_blocks(tmp_path: Path) -> None:
    rate, minutes = 8_000, 30
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(noise(60, rate))
    whole = 60 * minutes * 16_000 * 4
    audio, count, last = Audio(window=10), 0, 0.0
    segments(audio, media(noise(0.1)))  # so that the imports are not measured
    tracemalloc.start()
    try:
        for (_, end), _piece in audio.segment(audio.decode(Media(path=str(path)))):
            count, last = count + 1, end
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 6 * minutes
    assert last == pytest.approx(60 * minutes, abs=0.01)
    assert peak < whole / 10


def test_half_an_hour_of_silence_before_the_sound_is_counted_but_not_held() -> None:
    rate = 4_000
    sound = media(np.concatenate([np.zeros(30 * 60 * rate, np.float32), noise(1, rate)[:, 0]]), rate, subtype="PCM_16")
    audio = Audio(sample_rate=rate)
    tracemalloc.start()
    try:
        pieces = segments(audio, sound)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [span for span, _ in pieces] == [(1800.0, 1801.0)]
    assert peak < 8 * 2**20


def test_a_taken_segment_does_not_change_when_the_next_is_taken() -> None:
    audio, sound = Audio(window=0.5, hop=0.1), media(noise(2))
    stream = audio.segment(audio.decode(sound))
    first = next(stream)[1]
    before = first.copy()
    list(stream)
    np.testing.assert_array_equal(first, before)
    assert first.base is None


def test_the_file_is_closed_at_the_end_and_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = Media.open
    monkeypatch.setattr(Media, "open", lambda self: opened.append(original(self)) or opened[-1])
    good, bad, silent = (tmp_path / name for name in ("good.wav", "bad.wav", "silent.wav"))
    soundfile.write(good, noise(1), 16_000)
    bad.write_bytes(b"RIFF but no sound")
    soundfile.write(silent, np.zeros(100), 16_000)
    segments(Audio(), Media(path=str(good)))
    for path in (bad, silent):
        with pytest.raises(DecodeError):
            segments(Audio(), Media(path=str(path)))
    assert len(opened) == 3
    assert all(file.closed for file in opened)


def test_eight_channels_at_96_khz_become_one_at_16_khz() -> None:
    sound = np.repeat(tone(1, 96_000)[:, None], 8, axis=1) * np.arange(8, dtype=np.float32) / 3.5
    [(span, piece)] = segments(Audio(), media(sound, 96_000))
    expected = tone(1, 16_000)
    middle = slice(1_000, 15_000)
    first = round(span[0] * 16_000)
    np.testing.assert_allclose(np.pad(piece, (first, 0))[middle], expected[middle], atol=1e-3)


@pytest.mark.parametrize("rate", [5_000, 11_127, 22_254])
def test_rates_without_a_common_divisor_keep_the_time(rate: int) -> None:
    [((start, end), piece)] = segments(Audio(), media(tone(2, rate), rate))
    assert start == pytest.approx(0, abs=2e-3)
    assert end == pytest.approx(2, abs=2e-3)
    spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece))))
    assert np.argmax(spectrum) * 16_000 / len(piece) == pytest.approx(440, abs=1)


@settings(deadline=None, max_examples=20)
@given(seconds=st.floats(0.001, 1.5), gain=st.floats(0.01, 3))
def test_a_normalized_piece_has_the_level_and_the_length_of_a_window(seconds: float, gain: float) -> None:
    piece = noise(seconds)[:, 0] * np.float32(gain)
    result = Audio(window=1).normalize(piece)
    assert result.dtype == np.float32
    assert len(result) == max(16_000, len(piece))
    kept = result[: len(piece)]
    assert np.sqrt(np.mean(np.square(kept, dtype=np.float64))) == pytest.approx(LEVEL, rel=1e-4)
    np.testing.assert_array_equal(result[len(piece) :], 0)
    assert np.all(np.sign(kept) == np.sign(piece))


def test_the_peak_of_a_click_stays_within_full_scale() -> None:
    click = np.zeros(16_000, np.float32)
    click[8_000] = 0.01
    assert np.abs(Audio().normalize(click)).max() == pytest.approx(1)


def test_the_gain_of_the_file_does_not_matter_after_normalize() -> None:
    sound, audio = noise(1), Audio()
    [(_, loud)], [(_, soft)] = segments(audio, media(sound)), segments(audio, media(sound * np.float32(0.1)))
    np.testing.assert_allclose(audio.normalize(soft), audio.normalize(loud), atol=1e-6)


def test_without_windows_the_piece_keeps_its_length() -> None:
    assert len(Audio(window=0).normalize(noise(0.3)[:, 0])) == 4_800


def test_silence_and_emptiness_are_errors_that_say_so() -> None:
    with pytest.raises(DecodeError, match="holds no samples"):
        segments(Audio(), media(np.zeros(0, np.float32)))
    with pytest.raises(DecodeError, match="nothing but silence: all samples are 0"):
        segments(Audio(), media(np.zeros(1_000, np.float32)))
    with pytest.raises(DecodeError, match=r"nothing but silence: its peak is -80 dBFS.*-60 dBFS"):
        segments(Audio(), media(np.full(1_000, 1e-4, np.float32)))


@pytest.mark.parametrize(("value", "named"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "1e\\+30")])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_sample_that_is_no_sound_is_an_error_that_names_it(value: float, named: str, rate: int) -> None:
    samples = noise(1)
    samples[5_000] = value
    with pytest.raises(DecodeError, match=f"sound.wav: a sample is {named}"):
        segments(Audio(), media(samples, rate))


def test_a_header_with_an_absurd_rate_is_an_error() -> None:
    for rate in (1, 2_000_000):
        with pytest.raises(DecodeError, match=f"a rate of {rate} Hz"):
            segments(Audio(), media(noise(0.1), rate))


def flac(samples: NDArray[Any], claimed: int) -> Media:
    """A FLAC file whose header claims so many samples; 0, as encoders that write to a pipe have it: unknown."""
    content = media(samples, format="FLAC", subtype="PCM_16").content
    assert isinstance(content, bytes)
    fields = int.from_bytes(content[18:26], "big")  # of STREAMINFO: rate, channels, bits, and 36 bits of samples
    return Media("a.flac", content[:18] + ((fields >> 36 << 36) | claimed).to_bytes(8, "big") + content[26:])


def test_a_length_that_the_header_does_not_tell_is_that_of_the_samples() -> None:
    sound = flac(noise(1.5), 0)
    assert [span for span, _ in segments(Audio(min_seconds=1, max_seconds=2), sound)] == [(0, 1.5)]
    with pytest.raises(FilteredError, match="1.50 seconds are above max_seconds = 1"):
        Audio(max_seconds=1).decode(sound)
    with pytest.raises(FilteredError, match="1.50 seconds are below min_seconds = 2"):
        Audio(min_seconds=2).decode(sound)


@pytest.mark.parametrize("claimed", [0, 3600 * 16_000 * 9, 24_000])
def test_a_sound_is_too_long_for_one_segment_by_its_samples_and_not_by_its_header(
    claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = flac(np.concatenate([np.zeros((500, 1), np.float32), noise(1.5)]), claimed)
    [((start, end), piece)] = segments(Audio(window=0), sound)
    assert start == 500 / 16_000 and len(piece) == round((end - start) * 16_000) >= 23_500
    monkeypatch.setattr(module, "LONGEST_WHOLE", 1)
    with pytest.raises(DecodeError, match="longer than 1 seconds, too long for one segment: set --audio-window"):
        segments(Audio(window=0), sound)


def test_a_missing_file_and_a_file_without_sound_are_errors_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.wav"):
        Audio().decode(Media(path="none.wav", folder=str(tmp_path)))
    (tmp_path / "text.wav").write_text("this is a text")
    with pytest.raises(DecodeError, match=r"can't decode text\.wav"):
        Audio().decode(Media(path="text.wav", folder=str(tmp_path)))
    with pytest.raises(DecodeError, match="can't decode a sound"):
        Audio().decode(Media(content=b""))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample_rate": 10}, "sample_rate is 10, but must be 4000 to 192000"),
        ({"window": -1.0}, "window is -1.0, but must be at least 0.1"),
        ({"window": float("nan")}, "window is nan"),
        ({"window": float("inf")}, "window is inf"),
        ({"window": 5.0, "hop": 6.0}, "hop is 6.0, but must be 0.01 seconds to the window, 5.0: try 2.5"),
        ({"window": 0.0, "hop": 1.0}, "hop is 1.0"),
        ({"hop": float("nan")}, "hop is nan"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Audio(**values)


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.floats(4.0, 9.0),
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100]),
    window=st.floats(0.2, 3.0),
    overlap=st.floats(0.3, 1.0),
    quiet=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 2)), max_size=4),
    extension=st.sampled_from(["wav", "flac", "mp3"]),
)
def test_the_pieces_of_a_long_sound_are_the_whole(
    seconds: float, rate: int, window: float, overlap: float, quiet: list[tuple[float, float]], extension: str
) -> None:
    samples = noise(seconds, rate)
    for start, length in quiet:
        samples[round(start * rate) : round((start + length) * rate)] = 0
    audio = Audio(sample_rate=16_000, window=window, hop=max(0.1, window * overlap))
    sound = media(samples, rate, *FORMATS[extension])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONG", 3.0)
        patch.setattr(module, "PIECE", 1.3)
        patch.setattr(module, "BLOCK", 10_000)
        count = audio.pieces(sound)
        try:
            whole = segments(audio, sound)
        except DecodeError as error:  # nothing but silence
            with pytest.raises(DecodeError, match=str(error)):
                list(audio.piece(sound, 0, count))
            return
        parts = [segment for number in range(count) for segment in audio.piece(sound, number, count)]
    assert count >= 3
    assert [span for span, _ in parts] == [span for span, _ in whole]
    for (_, found), (_, expected) in zip(parts, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_is_short_or_can_not_be_cut_is_one_piece() -> None:
    sound = media(noise(5), 16_000)
    assert Audio().pieces(sound) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONG", 3.0)
        assert Audio().pieces(sound) == 1 == Audio(window=0).pieces(sound) == Audio(speech="energy").pieces(sound)
        patch.setattr(module, "PIECE", 1.0)
        assert Audio().pieces(sound) == 5
        assert Audio(window=0).pieces(sound) == 1 == Audio(speech="energy").pieces(sound)
        assert Audio(max_seconds=4).pieces(sound) == 1
