"""Sound: decoded in blocks to mono at one rate, cut into windows, trimmed of silence, brought to one level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import DecodeError, FilteredError, RecordError, UsageError
from mmembed.modalities import option, speech
from mmembed.types import Media, Span

if TYPE_CHECKING:
    import soundfile

Samples = NDArray[np.float32]
"""Mono sound, float32 (n,), full scale is 1."""

SILENCE = 10 ** (-60 / 20)
"""Samples below -60 dBFS are silence: above the dither of 16 bits, below the noise of a quiet room."""

LEVEL = 10 ** (-20 / 20)
"""The RMS that every segment is brought to: -20 dBFS leaves room for the peaks of speech and music."""

BLOCK = 1 << 17
"""Samples read at once, all channels together: 3 seconds of mono at 44.1 kHz, 512 KiB."""

RATE = 16_000
"""Hz, where neither the user nor the encoder says: speech keeps what tells its sounds apart."""

RATES = (1_000, 1_000_000)
"""Hz. A damaged header can claim 1 Hz, and a block would become an hour of sound."""

LONGEST_WHOLE = 3600
"""Seconds of a sound that may be one segment: 230 MB at 16 kHz."""

_UNKNOWN_FRAMES = 1 << 62
"""What libsndfile says where a header doesn't tell is beyond it."""

LOUDEST = 1e10
"""Float files may hold integers up to 2^31; what is beyond (or NaN, or infinite) is no sound."""


LONG = 1800.0
"""Seconds from which on a sound is cut in pieces of PIECE seconds that are worked on apart."""

PIECE = 600.0

LONGEST_KNOWN = 360_000.0
"""Seconds; a header that says more is not believed."""

_WARM_SECONDS = 1.0  # a resampler that begins in mid-sound is as it would be after all before it

STRETCHES = 24
"""Most parts of a sound that explanations tell apart."""


@dataclass(frozen=True)
class Audio:
    """Whatever libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, …) in windows of one length.

    The windows lie on a grid that begins with the first sample that is not silence. Each is trimmed of the silence
    at its ends, and one that then holds nothing new (all is silence, or lies in the window before) gives no segment.

    Attributes:
        sample_rate: Hz of the segments; 0: RATE, unless an encoder decides (`encoders.resolve`).
        window: seconds of a segment, 0: the whole sound is one segment (and is held in memory).
        hop: seconds from the start of a window to that of the next, 0: as long as the window.
        speech: "energy" or "silero": segments are the stretches of speech (`modalities.speech`), cut at the window's
            length; "": the whole sound is cut.
        min_seconds: a shorter sound is left out.
        max_seconds: a longer sound is left out; 0: none is.

    Raises:
        UsageError: a value is out of its range.
    """

    name: ClassVar[str] = "audio"
    version: ClassVar[str] = "1"
    sample_rate: int = option(0, "Hz of the segments; 0: as the encoder takes them, built-in 16000")
    window: float = option(10.0, "seconds of a segment; 0: the whole sound is one segment, held in memory")
    hop: float = option(0.0, "seconds from the start of a window to that of the next; 0: as long as the window")
    speech: str = option("", "segments are stretches of speech: energy, or silero (a model, of two more packages)")
    min_seconds: float = option(0.0, "leave out shorter sounds")
    max_seconds: float = option(0.0, "leave out longer sounds; 0: none")

    def __post_init__(self) -> None:
        if self.sample_rate and not 4_000 <= self.sample_rate <= 192_000:
            raise UsageError(f"sample_rate is {self.sample_rate}, but must be 4000 to 192000 Hz: try 16000")
        if self.window != 0 and not 0.1 <= self.window < math.inf:
            raise UsageError(
                f"window is {self.window}, but must be at least 0.1 seconds: try 10, or 0 for the whole sound"
            )
        if self.hop != 0 and not 0.01 <= self.hop <= self.window:
            raise UsageError(
                f"hop is {self.hop}, but must be 0.01 seconds to the window, {self.window}: "
                f"try {self.window / 2}, or 0 for windows side by side"
            )
        if self.speech:
            speech.check_gate(self.speech)
            if self.rate != speech.RATE or self.hop or self.window < speech.SHORTEST:
                raise UsageError(
                    f"speech = {self.speech!r} is told at {speech.RATE} Hz and cut at the window's length: "
                    f"leave sample_rate and hop as they are, and window at {speech.SHORTEST} seconds or more"
                )
        if not 0 <= self.min_seconds < math.inf or not 0 <= self.max_seconds < math.inf:
            raise UsageError(f"min_seconds and max_seconds are {self.min_seconds} and {self.max_seconds}: 0 or more")

    @property
    def rate(self) -> int:
        """Of the segments, in Hz."""
        return self.sample_rate or RATE

    @property
    def by_content(self) -> bool:
        """Segments depend on the medium alone."""
        return True

    def decode(self, media: Media) -> Iterator[tuple[int, Samples]]:
        """Blocks of sound from the first sample that is not silence, each with its position in the whole, in samples.

        The file is read as the blocks are taken and is closed after the last one.

        Raises:
            ReadError: the file can't be opened.
            DecodeError: it is no sound that libsndfile reads. The blocks raise it too: damaged data, no samples,
                a sample that is not finite, nothing but silence.
            FilteredError: it is shorter or longer than what is wanted, by its header, or by its samples where they
                tell (they are read twice then).
        """
        label, binary = media.path or "a sound", media.open()
        try:
            file = _open(binary, label)
            if self.min_seconds or self.max_seconds:
                self._filter(_seconds(file, media, label))
        except RecordError:
            binary.close()
            raise
        return _without_leading_silence(_blocks(file, binary, self.rate, label), label)

    def segment(
        self, decoded: Iterator[tuple[int, Samples]], metadata: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[tuple[Span, Samples]]:
        """Windows with (start, end) in seconds of the original file, leading silence counted.

        Memory is bounded by a window and a block. The last window may be short.

        Raises:
            DecodeError: as the blocks of `decode`; or it is longer than LONGEST_WHOLE and the window 0.
            FilteredError: nobody speaks in it, where speech is looked for.
        """
        length = round(self.window * self.rate)
        if self.speech:
            covered = 0
            for start, samples in speech.stretches(decoded, speech.GATES[self.speech](), length):
                yield (start / self.rate, (start + len(samples)) / self.rate), samples
                covered = start + len(samples)
            if not covered:
                raise FilteredError("no speech found")
            return
        windows = _windows(decoded, length, self._hop) if length else [_whole(decoded, LONGEST_WHOLE * self.rate)]
        yield from (segment for _, segment in self._loud(windows))

    def pieces(self, media: Media) -> int:
        """How many pieces a sound is cut into that are worked on apart; 1 for one that is not.

        Sounds whose header doesn't say how long they are, that are one segment, in which speech is looked for, or that
        are too long for `max_seconds`, are never cut.

        Raises:
            ReadError: the file can't be opened.
            DecodeError: it is no sound that libsndfile reads.
        """
        if self.speech or not self.window:
            return 1
        with media.open() as binary:
            file = _open(binary, media.path or "a sound")
            frames, rate = file.frames, file.samplerate
        known = RATES[0] <= rate <= RATES[1] and frames < _UNKNOWN_FRAMES
        seconds = frames / rate if known else 0.0
        is_long = LONG <= seconds < LONGEST_KNOWN and not (self.max_seconds and seconds > self.max_seconds)
        return math.ceil(seconds / PIECE) if is_long else 1

    def piece(self, media: Media, number: int, count: int) -> Iterator[tuple[Span, Samples]]:
        """The segments of one of the pieces of a sound: those of all of them, in order, are those of the whole.

        (But for the last bits of their samples, where the sound is resampled.)

        Raises:
            RecordError: as of `decode` and `segment`.
        """
        length, hop = round(self.window * self.rate), self._hop
        windows_each = max(1, round(PIECE * self.rate / hop))
        first = number * windows_each
        before = min(first, math.ceil(length / hop) - 1)  # windows that reach into this one, and say what is covered
        begin, _ = next(self.decode(media))
        blocks = self._from(media, begin + (first - before) * hop)
        ahead = next(blocks, None)
        if ahead is None:  # the header promised more
            return
        windows: Iterator[tuple[int, Samples]] = _windows(chain([ahead], blocks), length, hop)
        if number < count - 1:
            windows = islice(windows, before + windows_each)
        yield from (segment for place, segment in self._loud(windows) if place >= before)

    def _loud(self, windows: Iterable[tuple[int, Samples]]) -> Iterator[tuple[int, tuple[Span, Samples]]]:
        """Windows without the silence at their ends, each with its place among all; but for those with nothing new."""
        covered = 0
        for place, (start, samples) in enumerate(windows):
            loud = np.flatnonzero(np.abs(samples) >= SILENCE)
            if loud.size and start + loud[-1] >= covered:
                first, end = int(loud[0]), int(loud[-1]) + 1
                covered = start + end
                yield place, (((start + first) / self.rate, covered / self.rate), samples[first:end].copy())

    def _from(self, media: Media, start: int) -> Iterator[tuple[int, Samples]]:
        """Blocks from a sample on, with their positions; none where the sound ends before."""
        label, binary = media.path or "a sound", media.open()
        try:
            file = _open(binary, label)
            common = math.gcd(file.samplerate, self.rate)
            steps = max(0, start - round(_WARM_SECONDS * self.rate)) * common // self.rate  # that both rates share
            if (frame := steps * file.samplerate // common) >= file.frames:  # windows may reach far
                binary.close()
                return
            _skip(file, frame, label)
        except RecordError:
            binary.close()
            raise
        position = steps * self.rate // common
        for block in _blocks(file, binary, self.rate, label):
            skip = max(0, start - position)
            if len(block) > skip:
                yield position + skip, block[skip:]
            position += len(block)

    def normalize(self, piece: Samples) -> Samples:
        """The piece at -20 dBFS RMS, or as near as its peaks allow within full scale; zeros pad it to a whole window.

        Returns:
            float32 (window * rate,), or as long as the piece where the window is 0. The zeros are exact:
            an encoder that averages over time can leave them out (`encoders.audio.AudioStatistics` does).
        """
        rms, peak = float(np.sqrt(np.mean(np.square(piece, dtype=np.float64)))), float(np.abs(piece).max())
        level = min(LEVEL / rms, 1 / peak) if peak else 0.0
        return np.pad(piece * np.float32(level), (0, max(0, round(self.window * self.rate) - len(piece))))

    def parts(self, content: Samples) -> list[tuple[float, ...]]:
        """At most 24 equal stretches of a normalized sound, of 50 ms or more, in seconds; without the padding."""
        sound = np.flatnonzero(content)
        seconds = (int(sound[-1]) + 1 if sound.size else len(content)) / self.rate
        count = max(1, min(STRETCHES, int(seconds / 0.05)))
        edges = np.linspace(0, seconds, count + 1)
        return [(float(start), float(end)) for start, end in pairwise(edges)]

    def masked(self, content: Samples, spans: Sequence[tuple[float, ...]]) -> Samples:
        """With silence in some stretches."""
        samples = content.copy()
        for start, end in spans:
            samples[round(start * self.rate) : round(end * self.rate)] = 0
        return samples

    def _filter(self, seconds: float) -> None:
        """Raise FilteredError for a sound of a length that is not wanted; none at all is told where it is read."""
        if 0 < seconds < self.min_seconds:
            raise FilteredError(f"{seconds:.2f} seconds are below min_seconds = {self.min_seconds:g}")
        if self.max_seconds and seconds > self.max_seconds:
            raise FilteredError(f"{seconds:.2f} seconds are above max_seconds = {self.max_seconds:g}")

    @property
    def _hop(self) -> int:
        return round((self.hop or self.window) * self.rate)


class _Source:
    """A binary file as libsndfile needs it.

    It has no name, so that the content alone says what the format is. And a damaged header can send it to before its
    beginning: it stays where it is then and libsndfile finds out, for an exception in a callback would reach no one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        with suppress(OSError, ValueError):
            self._seek(offset, whence)
        return self.tell()


def open_sound(media: Media) -> tuple[BinaryIO, soundfile.SoundFile, int]:
    """A file, the sound in it from its first frame on, and how many frames it has. Whoever takes them closes both.

    Raises:
        ReadError: the file can't be opened.
        DecodeError: it is no sound that libsndfile reads.
    """
    label, binary = media.path or "a sound", media.open()
    try:
        file = _open(binary, label)
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise DecodeError(f"{label}: a rate of {file.samplerate} Hz is outside {RATES[0]} to {RATES[1]} Hz")
        frames = file.frames
        if frames >= LONGEST_KNOWN * file.samplerate:
            with media.open() as again:
                frames = sum(map(len, _blocks(_open(again, label), again, file.samplerate, label)))
    except RecordError:
        binary.close()
        raise
    return binary, file, frames


def _open(binary: BinaryIO, label: str) -> soundfile.SoundFile:
    """Raises DecodeError if it is no sound."""
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
        """Read from beginning to end: after each block SoundFile seeks to where it is, and an MP3 then clicks."""

        def seekable(self) -> bool:
            return False

    try:
        return Forward(_Source(binary))
    except soundfile.LibsndfileError as error:
        raise DecodeError(f"can't decode {label}: {error.error_string}") from error


def _blocks(file: soundfile.SoundFile, binary: BinaryIO, rate: int, label: str) -> Iterator[Samples]:
    """The whole sound in blocks, mono at `rate` Hz; closes both files.

    Raises:
        DecodeError: see `Audio.decode`.
    """
    import soundfile
    import soxr

    with binary, closing(file):
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise DecodeError(f"{label}: a rate of {file.samplerate} Hz is outside {RATES[0]} to {RATES[1]} Hz")
        resampler = soxr.ResampleStream(file.samplerate, rate, 1) if file.samplerate != rate else None
        frames, last = max(1, BLOCK // file.channels), False
        while not last:
            try:
                block = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DecodeError(f"can't decode {label}: {error.error_string}") from error
            usable = np.abs(block) <= LOUDEST
            if not usable.all():
                raise DecodeError(f"{label}: a sample is {block[~usable][0]:g}, which is no sound")
            last, mono = len(block) < frames, block.mean(axis=1)
            yield resampler.resample_chunk(mono, last=last) if resampler else mono


def _skip(file: soundfile.SoundFile, frames: int, label: str) -> None:
    """Go to a frame. In an MP3, whose frames lean on those before, by decoding what lies before.

    Raises:
        DecodeError: the data are damaged, or end before.
    """
    import soundfile

    try:
        if file.format != "MP3":
            file.seek(frames)
        while frames and file.format == "MP3":
            frames -= len(file.read(min(frames, BLOCK), dtype="float32", always_2d=True)) or frames
    except soundfile.LibsndfileError as error:
        raise DecodeError(f"can't decode {label}: {error.error_string}") from error


def _without_leading_silence(blocks: Iterator[Samples], label: str) -> Iterator[tuple[int, Samples]]:
    """From the first sample that is not silence on: (position, block).

    Raises:
        DecodeError: there is no sample, or nothing but silence.
    """
    position, peak, begun = 0, 0.0, False
    for block in blocks:
        skip = 0
        if not begun and len(block):
            loud = np.abs(block) >= SILENCE
            begun, skip = bool(loud.any()), int(loud.argmax())
            peak = max(peak, float(np.abs(block).max()))
        if begun and len(block):
            yield position + skip, block[skip:]
        position += len(block)
    if not position:
        raise DecodeError(f"{label} holds no samples")
    if not begun:
        peak_db = f"its peak is {20 * math.log10(peak):.0f} dBFS" if peak else "all samples are 0"
        raise DecodeError(f"{label} is nothing but silence: {peak_db}, and silence ends at -60 dBFS")


def _seconds(file: soundfile.SoundFile, media: Media, label: str) -> float:
    """How long a sound is by its header; by its samples where that doesn't tell (FLAC from a pipe)."""
    if not RATES[0] <= file.samplerate <= RATES[1]:
        return 0.0  # told where it is read
    if file.frames < _UNKNOWN_FRAMES:
        return float(file.frames / file.samplerate)
    with media.open() as binary:
        samples = sum(map(len, _blocks(_open(binary, label), binary, file.samplerate, label)))
    return float(samples / file.samplerate)


def _whole(blocks: Iterator[tuple[int, Samples]], longest: int) -> tuple[int, Samples]:
    """(position, samples) of all blocks together; a header may lie, so they are counted as they come.

    Raises:
        DecodeError: they have more than `longest` samples.
    """
    start, held, count = 0, [], 0
    for position, block in blocks:
        start, count = position - count, count + len(block)
        held.append(block)
        if count > longest:
            raise DecodeError(
                f"the sound is longer than {LONGEST_WHOLE:,} seconds, too long for one segment: set --audio-window"
            )
    return start, np.concatenate(held)


def _windows(blocks: Iterator[tuple[int, Samples]], length: int, hop: int) -> Iterator[tuple[int, Samples]]:
    """(position, samples) of windows of `length` samples, `hop` samples apart; the last is short or empty."""
    start, first = next(blocks)
    sound = chain([first], (block for _, block in blocks))
    buffer = first[:0]
    for block in sound:
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= length:
            yield start, buffer[:length]
            start, buffer = start + hop, buffer[hop:]
    yield start, buffer
