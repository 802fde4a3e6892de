"""Signatures of media: a few bytes by which near duplicates are found, and how near two of them are."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmembed.modalities import Modality
from mmembed.types import Media

if TYPE_CHECKING:
    from mmembed.modalities.audio import Samples
    from mmembed.modalities.image import Picture

VERSION = "1"
"""Of what is computed: a change of it needs another one, so that signatures are made anew."""

PERMUTATIONS = 64
"""Of a text's MinHash: the standard error of a likeness near 0.9 is 0.04."""

SHINGLE = 3
"""Characters of a shingle; a word's borders count as one. Short, so that captions of two words have some."""

FRAMES, BANDS = 17, 17
"""A sound is pooled to FRAMES x BANDS energies, of which 16 x 16 differences give 256 bits."""

_FRAME_SECONDS = 0.032
_FLOOR = 1e-3  # of the strongest energy, -30 dB: below it is what an encoder adds and leaves out
_LOWEST_HZ, _HIGHEST_HZ = 200.0, 3_500.0  # what a narrow channel and a low bit rate leave


def signature(modality: Modality, media: Media) -> bytes:
    """The signature of a medium, of one length for each modality.

    Raises:
        RecordError: it can't be decoded.
    """
    decoded: Any = modality.decode(media)
    if modality.name == "image":
        return of_image(decoded)
    if modality.name == "text":
        return of_text(decoded)
    return of_audio((samples for _, samples in decoded), modality.sample_rate)  # type: ignore[attr-defined]


def of_image(picture: Picture) -> bytes:
    """A perceptual hash and the colours of 4 x 4 fields: 8 + 48 bytes.

    The hash (by ImageHash: signs of the low frequencies of a DCT against their median; Zauner, 2010) knows no colour,
    and of a picture of one colour it is noise: the colours tell those apart.
    """
    import imagehash
    from PIL.Image import Resampling

    bits = imagehash.phash(picture.pixels).hash
    colours = picture.pixels.resize((4, 4), Resampling.BOX)
    return np.packbits(bits).tobytes() + np.asarray(colours, np.uint8).tobytes()


def of_text(text: str) -> bytes:
    """A MinHash (Broder, 1997; by datasketch) of the text's shingles without case and punctuation: 256 bytes."""
    from datasketch import MinHash

    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text.casefold())
    padded = f" {' '.join(kept.split()) or text} "
    shingles = {
        padded[i : i + SHINGLE].encode("utf-8", "surrogatepass") for i in range(max(1, len(padded) - SHINGLE + 1))
    }
    hashed = MinHash(PERMUTATIONS, seed=1, scheme="affine32", permutations=_permutations())
    hashed.update_batch(sorted(shingles))
    values: bytes = hashed.hashvalues.astype("<u4").tobytes()
    return values


@cache
def _permutations() -> Any:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=1, scheme="affine32").permutations


def of_audio(blocks: Iterator[Samples], rate: int) -> bytes:
    """Which energies rise, and how long it is: 32 + 4 bytes.

    The sound is cut into FRAMES equal frames and BANDS bands of equal width in mel; a bit says whether the difference
    between neighbouring bands grows from one frame to the next (Haitsma and Kalker, 2002, equation 1). So neither level
    nor timbre of a channel counts.

    Args:
        blocks: mono, float32 (n,), at `rate` Hz.
    """
    length = max(1, round(_FRAME_SECONDS * rate))
    energies, rest, total = [np.zeros((0, BANDS))], np.zeros(0, np.float32), 0
    bank = _bank(length, rate)
    for block in blocks:
        total += len(block)
        rest = np.concatenate([rest, block])
        count = len(rest) // length
        energies.append(_power(rest[: count * length].reshape(count, length)) @ bank)
        rest = rest[count * length :]
    energies.append(_power(np.pad(rest, (0, length - len(rest)))[np.newaxis]) @ bank)
    pooled = _pool(np.concatenate(energies), FRAMES)
    pooled = np.log(pooled + _FLOOR * pooled.max() + 1e-12)
    bits = np.diff(np.diff(pooled, axis=1), axis=0) > 0
    return np.packbits(bits).tobytes() + np.float32(total / rate).tobytes()


def _power(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1)
    return np.square(np.abs(spectrum)).astype(np.float64)


@cache
def _bank(length: int, rate: int) -> NDArray[np.float64]:
    """Which of the bins of a frame are in which band, (bins, BANDS)."""
    hz = np.fft.rfftfreq(length, 1 / rate)
    mel = 2595 * np.log10(1 + hz / 700)
    lowest, highest = (2595 * math.log10(1 + border / 700) for border in (_LOWEST_HZ, _HIGHEST_HZ))
    edges = np.linspace(lowest, highest, BANDS + 1)
    band = np.searchsorted(edges, mel, side="right") - 1
    bank: NDArray[np.float64] = (band[:, np.newaxis] == np.arange(BANDS)).astype(np.float64)
    return bank


def _pool(energies: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """Means over so many equal stretches of time; frames are shared out where a stretch begins or ends within one."""
    summed = np.concatenate([np.zeros((1, energies.shape[1])), np.cumsum(energies, axis=0)])
    places = np.linspace(0, len(energies), frames + 1)
    whole = places.astype(int)
    following = np.minimum(whole + 1, len(energies))
    at = summed[whole] + (places - whole)[:, np.newaxis] * (summed[following] - summed[whole])
    pooled: NDArray[np.float64] = np.diff(at, axis=0) * frames / len(energies)
    return pooled


IMAGE_BITS, IMAGE_COLOUR = 4, 20
"""Two pictures are near with at most so many of 64 bits, and so many of 255 levels in each field, apart. Of 934 drawn
stamps, saved again as JPEG of quality 50 to 85, also at half size, 91 to 94 in 100 find themselves; of their 435,711
pairs, 2 are taken for the same: one picture in two folders, and two that differ in one letter."""

TEXT_SHARE = 0.8
"""Two texts are near where so much of their shingles, by their MinHash, is the same."""

AUDIO_BITS, AUDIO_SECONDS = 32, 0.1
"""Two sounds are near with at most so many of 256 bits and so many seconds apart. Of 300 spoken names, saved again as
OGG, MP3 and at another level, 97 in 100 find themselves; no two of them come nearer than 80 bits, but equal ones."""


def near(modality: str, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pairs of signatures are of near duplicates.

    Args:
        left: signatures as rows of bytes, uint8 (n, bytes).
        right: the other of each pair, likewise.
    """
    if modality == "text":
        equal = left.reshape(-1, PERMUTATIONS, 4) == right.reshape(-1, PERMUTATIONS, 4)
        return np.asarray(equal.all(axis=2).mean(axis=1) >= TEXT_SHARE)
    if modality == "image":
        colours = np.abs(left[:, 8:].astype(np.int16) - right[:, 8:]).max(axis=1, initial=0)
        return np.asarray((_bits_apart(left[:, :8], right[:, :8]) <= IMAGE_BITS) & (colours <= IMAGE_COLOUR))
    seconds = np.abs(_seconds(left) - _seconds(right))
    return np.asarray((_bits_apart(left[:, :32], right[:, :32]) <= AUDIO_BITS) & (seconds <= AUDIO_SECONDS))


def keys(modality: str, signatures: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Keys of signatures, (n, tables): near ones share one of theirs, with a probability that the modality says.

    image: one of 5 parts of the hash in each table, of which 4 bits can spoil no more than 4 (pigeonhole): sure.
    text: 4 values of the MinHash in each of 16 tables (Leskovec et al., Mining of Massive Datasets, 3.4): 0.9998 at the
    least likeness, 0.8. audio: 12 of 256 bits, drawn once, in each of 24 tables: 0.995 at the most distance, 32.
    """
    if modality == "text":
        return _hashed(signatures.reshape(len(signatures), 16, 16))
    bits = np.unpackbits(signatures[:, : 8 if modality == "image" else 32], axis=1)
    if modality == "image":
        parts = np.array_split(np.arange(64), IMAGE_BITS + 1)
    else:
        random = np.random.Generator(np.random.PCG64(1))
        parts = [np.sort(random.permutation(256)[:12]) for _ in range(24)]
    columns = [bits[:, part] @ (1 << np.arange(len(part), dtype=np.uint64)) for part in parts]
    return np.stack(columns, axis=1)


def _hashed(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits of rows of 16 bytes, (n, tables, 16) -> (n, tables)."""
    words = np.ascontiguousarray(rows).view("<u8")
    return np.asarray(words[..., 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[..., 1])


def _bits_apart(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int64]:
    bits: NDArray[np.int64] = np.bitwise_count(left ^ right).sum(axis=1, dtype=np.int64)
    return bits


def _seconds(signatures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(signatures[:, 32:36]).view("<f4")[:, 0]
