"""The built-in encoder of sound: statistics over time of log-mel, MFCC, chroma and the shape of the spectrum.

librosa computes the same descriptors, but takes 2 seconds to import, which is more than a whole query takes.
So they are written in numpy here, on one spectrogram a segment, and the tests hold them equal to librosa's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.input import Input, waveform
from mmembed.errors import UsageError
from mmembed.types import Space

Array = NDArray[np.float32]

MELS, CEPSTRA, PITCHES = 40, 20, 12
KNOTS = 4
"""Points in time at which the course of the cepstra is told: no gain beyond 4 (see docs/encoders.md)."""

PAIRED, LAGGED, LAG = 13, 10, 8
"""Correlations: among 13 cepstra at one time, and of 10 with the same 10 after 8 frames (80 ms, about a phone)."""

FLOOR = 1e-5
"""Of a mel band's power, -50 dB: segments come at -20 dBFS, so that only true silence lies below."""

FRAMES = 256
"""Frames transformed at once, 2.6 seconds: their spectra fit the processor's cache, and memory does not grow with the
spectrogram of a long sound."""


RUN = 16
"""Bins of a spectrum that are added first, where a sum is told at each of them."""


@dataclass(frozen=True)
class AudioStatistics:
    """Statistics over time, one frame each 10 ms. The zeros that pad a segment are left out.

    Of 334 numbers, 80 are MFCC at 4 knots in time, 40 the deviations of MFCC and of their deltas, 178 how MFCC move
    together, 24 chroma, 10 the shape of the spectrum, and the last two onsets a second and the log of the duration.

    Attributes:
        sample_rate: Hz of the segments (`modalities.audio.Audio.sample_rate`).

    Raises:
        UsageError: the rate is out of its range.
    """

    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        if not 4_000 <= self.sample_rate <= 192_000:
            raise UsageError(f"sample_rate is {self.sample_rate}, but must be 4000 to 192000 Hz: try 16000")

    @property
    def modality(self) -> str:
        return "audio"

    @property
    def space(self) -> Space:
        return Space(f"audio-statistics-{self.sample_rate}", "2", DIM)

    @property
    def input(self) -> Input:
        """Sounds at its rate."""
        return Input(sample_rate=self.sample_rate)

    def setup(self) -> None:
        """Make the filter banks."""
        filters(self.sample_rate)

    def encode(self, batch: Sequence[Array]) -> Array:
        """Features, float32 (len(batch), space.dim), all finite.

        Args:
            batch: float32 (samples,) each, mono at `sample_rate`; of any lengths.

        Raises:
            EncodeError: a segment holds no samples, or some that are not finite.
        """
        return np.stack([_encode(samples, self.sample_rate) for samples in batch])


def _encode(samples: Array, rate: int) -> Array:
    """One segment's feature, float32 (DIM,)."""
    mel, chroma, shape = descriptors(waveform(samples), rate)
    cepstra = mel @ dct(MELS, CEPSTRA).T
    size, hop = frame_sizes(rate)
    strength = onset_strength(mel)[: -(size // 2 // hop + 1)]  # the frames beyond hear the cut at the end as a click
    return np.concatenate(
        [
            _courses(cepstra),
            cepstra.std(axis=0),
            delta(cepstra).std(axis=0),
            _correlations(cepstra),
            chroma.mean(axis=0),
            chroma.std(axis=0),
            shape.mean(axis=0),
            shape.std(axis=0),
            [len(onsets(strength, rate / hop)) * rate / hop / len(mel), np.log(len(mel))],
        ],
        dtype=np.float32,
    )


def frame_sizes(rate: int) -> tuple[int, int]:
    """Samples of a frame, a power of two of at least 40 ms (1024 at 16 kHz), and from one frame to the next, 10 ms."""
    return 1 << int(np.ceil(np.log2(0.04 * rate))), round(0.01 * rate)


def descriptors(samples: Array, rate: int) -> tuple[Array, Array, Array]:
    """What is told of each frame, all from one short-time Fourier transform (Hann window, zeros beyond the ends).

    Args:
        samples: float32 (n,), n >= 1.

    Returns:
        log-mel in dB, float32 (frames, 40); chroma, its largest pitch 1, float32 (frames, 12); spectral centroid,
        bandwidth and rolloff in parts of the highest frequency, log10 of the flatness, and the share of zero crossings,
        float32 (frames, 5). frames = 1 + n // hop.
    """
    size, hop = frame_sizes(rate)
    padded = _zeros_around(samples, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    parts = [_describe(frames[i : i + FRAMES], rate) for i in range(0, len(frames), FRAMES)]
    mel, chroma, shape = (np.concatenate(column) for column in zip(*parts, strict=True))
    return mel, chroma, np.column_stack([shape, zero_crossings(padded, size, hop)])


def _describe(frames: Array, rate: int) -> tuple[Array, Array, Array]:
    """`descriptors` of some frames, float32 (frames, size), without the zero crossings."""
    mel_filters, chroma_filters, window = filters(rate)
    magnitude = np.abs(np.fft.rfft(frames * window, axis=1))
    power = np.square(magnitude)
    mel = 10 * np.log10(np.maximum(power @ mel_filters.T, FLOOR))
    chroma = power @ chroma_filters.T
    chroma /= np.maximum(chroma.max(axis=1, keepdims=True), FLOOR)
    return mel, chroma, spectral_shape(magnitude, power)


def spectral_shape(magnitude: Array, power: Array) -> Array:
    """Centroid, bandwidth, rolloff, log10 flatness of each frame, float32 (frames, 4).

    The definitions of librosa.feature.spectral_centroid, spectral_bandwidth (p=2), spectral_rolloff (85 %) and
    spectral_flatness (of the power).

    Args:
        magnitude: float32 (frames, bins).
        power: its square.
    """
    position = np.linspace(0, 1, magnitude.shape[1], dtype=np.float32)
    share = magnitude / np.maximum(magnitude.sum(axis=1, keepdims=True), 1e-10)
    centroid = share @ position
    bandwidth = np.sqrt(np.sum(share * np.square(position - centroid[:, None]), axis=1))
    heard = np.maximum(power, 1e-10)
    flatness = np.mean(np.log10(heard), axis=1) - np.log10(np.mean(heard, axis=1))
    return np.stack([centroid, bandwidth, position[_rolloff(share)], flatness], axis=1).astype(np.float32)


def _rolloff(share: Array) -> NDArray[np.int64]:
    """The first bin up to which 85 % of each row lies, int64 (rows,): first by runs of bins, then within one, for sums
    over all bins one after the other take longer than the spectrum."""
    rows, bins = np.arange(len(share)), share.shape[1]
    upto = np.cumsum(share @ _runs(bins), axis=1)
    wanted = np.float32(0.85) * upto[:, -1]
    run = np.argmax(upto >= wanted[:, None], axis=1)
    index = np.minimum(run[:, None] * RUN + np.arange(RUN), bins - 1)
    before = np.where(run > 0, upto[rows, run - 1], np.float32(0))
    within = before[:, None] + np.cumsum(share[rows[:, None], index], axis=1)
    # By other roundings, its last bin may not reach what the run as a whole does.
    return np.asarray(index[rows, np.minimum((within < wanted[:, None]).sum(axis=1), RUN - 1)], np.int64)


@cache
def _runs(bins: int) -> Array:
    """Which bin is in which run, float32 (bins, runs): 1 where it is."""
    return np.asarray(np.arange(bins)[:, None] // RUN == np.arange(-(-bins // RUN)), np.float32)


def zero_crossings(samples: Array, size: int, hop: int) -> Array:
    """The share of neighbours of unlike sign in each frame, float32 (frames,): librosa.feature.zero_crossing_rate."""
    negative = np.signbit(samples)
    upto = np.concatenate([[0], np.cumsum(negative[1:] != negative[:-1])])
    starts = np.arange(0, len(samples) - size + 1, hop)
    return np.asarray((upto[starts + size - 1] - upto[starts]) / (size - 1), np.float32)


@cache
def filters(rate: int) -> tuple[Array, Array, Array]:
    """Mel filters (40, bins), chroma filters (12, bins) and the window (size,) at a rate, float32."""
    size, _ = frame_sizes(rate)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return mel_filters(rate, size), chroma_filters(rate, size), hann.astype(np.float32)


def mel_filters(rate: int, size: int) -> Array:
    """Triangles of equal area on Slaney's mel scale from 0 Hz to rate / 2, float32 (40, size // 2 + 1).

    Source: Slaney, Auditory Toolbox (1998); librosa.filters.mel.
    """
    log_step = np.log(6.4) / 27  # linear below 1 kHz, 15 mel there; 27 mel more for each factor of 6.4
    top = rate / 2
    highest = top * 3 / 200 if top < 1000 else 15 + np.log(top / 1000) / log_step
    mel = np.linspace(0, highest, MELS + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(log_step * (mel - 15)))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.fft.rfftfreq(size, 1 / rate)
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.asarray(np.maximum(triangles, 0) * 2 / (high - low), np.float32)


def chroma_filters(rate: int, size: int) -> Array:
    """The weight of each frequency in each pitch class from C to B, float32 (12, size // 2 + 1); A is 440 Hz.

    Gaussian around each pitch, as wide as a bin where bins are wider than a semitone; octaves far from the fifth weigh
    less. Source: Ellis, Chroma Feature Analysis and Synthesis (2007); librosa.filters.chroma.
    """
    octaves = np.log2(np.arange(1, size) * rate / size / (440 / 16))
    bins = PITCHES * np.concatenate([[octaves[0] - 1.5], octaves])
    widths = np.concatenate([np.maximum(np.diff(bins), 1), [1]])
    away = (bins - np.arange(PITCHES)[:, None] + PITCHES / 2 + 10 * PITCHES) % PITCHES - PITCHES / 2
    weights = np.exp(-0.5 * np.square(2 * away / widths))
    weights /= np.linalg.norm(weights, axis=0)
    weights *= np.exp(-0.5 * np.square((bins / PITCHES - 5) / 2))
    return np.asarray(np.roll(weights, -3, axis=0)[:, : size // 2 + 1], np.float32)


@cache
def dct(bands: int, kept: int) -> Array:
    """The first rows of the orthonormal DCT-II, float32 (kept, bands): log-mel @ dct.T are the MFCC."""
    rows = np.cos(np.pi / bands * np.outer(np.arange(kept), np.arange(bands) + 0.5)) * np.sqrt(2 / bands)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


def delta(track: Array, reach: int = 4) -> Array:
    """The slope of a line through 2 * reach + 1 frames, float32 (frames, n); the ends are repeated.

    Source: Young et al., The HTK Book, equation 5.16; librosa.feature.delta(mode="nearest").
    """
    padded = np.concatenate([np.repeat(track[:1], reach, axis=0), track, np.repeat(track[-1:], reach, axis=0)])
    steps = range(1, reach + 1)
    rises = sum(k * (padded[reach + k :][: len(track)] - padded[reach - k :][: len(track)]) for k in steps)
    return np.asarray(rises / np.float32(2 * sum(k * k for k in steps)), np.float32)


def onset_strength(mel: Array) -> Array:
    """How much louder the bands became since the frame before, in dB, float32 (frames,).

    Source: Böck and Widmer, Maximum Filter Vibrato Suppression (2013) without its filter; librosa.onset.onset_strength.
    """
    return np.concatenate([[0], np.maximum(np.diff(mel, axis=0), 0).mean(axis=1)]).astype(np.float32)


def onsets(strength: Array, frames_a_second: float) -> NDArray[np.int64]:
    """Frames where a sound begins: the strongest within 50 ms on both sides, and 3 dB above the mean of 150 ms."""
    if not len(strength):
        return np.zeros(0, np.int64)
    near, wide = round(0.05 * frames_a_second), round(0.15 * frames_a_second)
    window = np.lib.stride_tricks.sliding_window_view
    strongest = window(_zeros_around(strength, near), 2 * near + 1).max(axis=1)
    mean = window(_zeros_around(strength, wide), 2 * wide + 1).mean(axis=1)
    return np.flatnonzero((strength == strongest) & (strength >= mean + 3))


def _zeros_around(values: Array, count: int) -> Array:
    """With so many zeros before and after; `np.pad` takes longer than what is done with a short sound then."""
    padded = np.zeros(len(values) + 2 * count, values.dtype)
    padded[count : count + len(values)] = values
    return padded


def _courses(track: Array) -> Array:
    """The track at 4 knots from beginning to end, float32 (4 * n,): means under overlapping triangles of time."""
    time = (np.arange(len(track)) + 0.5) / len(track) * (KNOTS - 1)
    hats = np.maximum(0, 1 - np.abs(time - np.arange(KNOTS)[:, None])) + 1e-6
    return np.ravel(np.asarray(hats / hats.sum(axis=1, keepdims=True), np.float32) @ track)


def _correlations(cepstra: Array) -> Array:
    """How the cepstra move together: at one time, and from one time to 80 ms later, float32 (78 + 100,).

    Says which spectra occur, and which follow which, whenever they do; a mean says neither.
    """
    centred = cepstra - cepstra.mean(axis=0)
    moves = centred / (centred.std(axis=0) + np.float32(0.1))  # 0.1 dB: a steady tone's noise is not blown up
    together = moves[:, :PAIRED].T @ moves[:, :PAIRED] / np.float32(len(moves))
    later = moves[:-LAG, :LAGGED].T @ moves[LAG:, :LAGGED] / np.float32(len(moves))
    return np.concatenate([together[np.triu_indices(PAIRED, 1)], later.ravel()])


DIM = (KNOTS + 2) * CEPSTRA + PAIRED * (PAIRED - 1) // 2 + LAGGED**2 + 2 * PITCHES + 2 * 5 + 2
