"""In which order samples are read, and who reads which: functions of the seed and the place, so that any part of an
epoch can be had without what comes before it, and no process holds the order of all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Words = NDArray[np.uint64]

_ROUNDS = 6  # from four on, a Feistel cipher can't be told from chance (Luby and Rackoff 1988),
_LEAST = 8  # but for halves that take few values


def shuffled(positions: Numbers, count: int, seed: int, epoch: int) -> Numbers:
    """The numbers of the samples at some positions (n,) of an epoch's order, a permutation of range(count).

    A generalized Feistel cipher on pairs from Z_a x Z_b with a·b >= count, applied again to what falls outside of
    range(count): Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, sections 3 and 4.
    """
    keys = _keys(_ROUNDS, "order", seed, epoch)
    left_size = max(math.isqrt(count), _LEAST)
    right_size = max(-(-count // left_size), _LEAST)
    found = positions.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] % np.uint64(left_size), found[outside] // np.uint64(left_size)
        for number, key in enumerate(keys):
            if number % 2:
                right = (right + _mixed(left ^ key)) % np.uint64(right_size)
            else:
                left = (left + _mixed(right ^ key)) % np.uint64(left_size)
        found[outside] = left + right * np.uint64(left_size)
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def picked(samples: Numbers, counts: Numbers, seed: int, epoch: int, what: str) -> Numbers:
    """For each sample (n,) one of so many things (n,), at random: 0 to counts - 1; 0 where there is none.

    Args:
        what: they are; picks of different things don't depend on each other.
    """
    [key] = _keys(1, what, seed, epoch)
    return (_mixed(samples.astype(np.uint64) ^ key) % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)


def steps(start: int, count: int, size: int, ranks: int, drop_last: bool) -> Iterator[tuple[int, int]]:
    """The positions that all ranks read at the same time, as (from, to): `size` for each rank.

    What is left at the end is shared evenly. Where it is less than one for each rank, the step before gives it some, so
    that all ranks make the same number of steps as long as `size` is at least 2.

    Args:
        start: the first position.
        drop_last: leave out what does not fill a step.
    """
    whole = size * ranks
    while start < count:
        left = count - start
        if left < whole and drop_last:
            return
        stop = start + min(left, whole)
        if size > 1 and whole < left < whole + ranks and not drop_last:
            stop = start + left - left // 2
        yield start, stop
        start = stop


def share(start: int, stop: int, part: int, parts: int) -> tuple[int, int]:
    """What one of several gets of range(start, stop), as (from, to)."""
    size = stop - start
    return start + size * part // parts, start + size * (part + 1) // parts


def _keys(count: int, *of: Any) -> Words:
    """Words of 64 bits that depend on what they are of, and look like chance."""
    digest = hashlib.blake2b("/".join(map(str, of)).encode(), digest_size=8 * count).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _mixed(words: Words) -> Words:
    """Words (n,) that look like chance: the finalizer of SplitMix64, Steele, Lea and Flood 2014, figure 17."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
