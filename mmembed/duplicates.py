"""Which records are copies of earlier ones: by id, by content, or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed import signatures

Numbers = NDArray[np.int64]
"""Row numbers, or numbers that stand for things, the same for equal ones; int64 (n,)."""

_PAIRS_AT_ONCE = 1 << 16  # of the longest signatures, 256 bytes, they take 32 MB
_FEW_PAIRS = 1 << 23  # so many may all be near, and are held: 128 MB


@dataclass(frozen=True)
class Twin:
    """A record that is left out, because all that is in it is in another one.

    Attributes:
        record: its row.
        of: the row of the one that stays.
        reason: how they are alike, for a person.
    """

    record: int
    of: int
    reason: str


def repeated(ids: pa.ChunkedArray) -> list[tuple[int, int]]:
    """Rows whose id an earlier row has, and the first such row."""
    first = _first_alike(_numbered(ids))
    later = np.flatnonzero(first != np.arange(len(first)))
    return list(zip(later.tolist(), first[later].tolist()))


def exact(media: pa.Table) -> list[Twin]:
    """Records whose media are the same, byte for byte, as those of an earlier one.

    Args:
        media: a row a usable medium: record (int64, ascending), modality, content_hash (both string). Records without
            any are none's copies.
    """
    owner = _owners(media)
    contents = _sets(owner, _contents(media))
    return _twins(media, owner, contents, _first_alike(contents))


def near(media: pa.Table) -> list[Twin]:
    """Records whose media are all the same as some of an earlier one, or near them.

    Records are taken in order: one that stays is what later ones are compared with, and of several that it is near to
    the first counts. Both have as many media of each modality, and for each medium of the later one the earlier has one
    that is near: nothing is lost. A medium without a signature is near to those of the same content alone.

    Args:
        media: as of `exact`, with signature (binary, null where there is none), of one length in each modality.
    """
    owner, modality, content = _owners(media), _numbered(media["modality"]), _contents(media)
    signed = pc.fill_null(pc.greater(pc.binary_length(media["signature"]), 0), False).to_numpy()
    signature = _numbered(media["signature"]) * (modality.max(initial=0) + 1) + modality
    contents = _sets(owner, content)
    of = _first_alike(contents)
    of = _first_alike(_sets(owner, np.where(signed, signature, -1 - content)))[of]
    # Only records of one kind are compared: as many media of each modality, and the same of what is not signed.
    kinds = _sets(owner, np.where(signed, modality, -1 - content))
    originals = np.flatnonzero(of == np.arange(len(of)))
    for rows in _groups(originals, kinds[originals]):
        chosen = signed & np.isin(np.arange(len(of)), rows)[owner]
        if len(rows) > 1 and chosen.any():
            of[rows] = rows[_settled(_Looks.of(media, chosen, len(rows)), len(rows))]
    return _twins(media, owner, contents, of[of])


def _numbered(column: pa.ChunkedArray) -> Numbers:
    """A number for each value, counting up in the order of their first rows; null is a value."""
    coded = column.dictionary_encode("encode")  # one dictionary for all chunks
    parts = [chunk.indices.to_numpy() for chunk in coded.chunks]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _first_alike(numbers: Numbers) -> Numbers:
    """For each row the first one that has its number."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _groups(rows: Numbers, numbers: Numbers) -> list[Numbers]:
    """Rows of equal numbers, each in order."""
    order = np.argsort(numbers, kind="stable")
    borders = np.flatnonzero(np.diff(numbers[order])) + 1
    return np.split(rows[order], borders) if len(rows) else []


def _owners(media: pa.Table) -> Numbers:
    """0, 1, … for the records that have media, by medium."""
    record = media["record"].to_numpy()
    return np.asarray(np.cumsum(np.diff(record, prepend=record[:1]) > 0), np.int64)


def _contents(media: pa.Table) -> Numbers:
    """A number for each medium, the same for equal content in one modality."""
    modality = _numbered(media["modality"])
    numbers: Numbers = _numbered(media["content_hash"]) * (modality.max(initial=0) + 1) + modality
    return numbers


def _sets(owner: Numbers, numbers: Numbers) -> Numbers:
    """A number for each record, the same where its media have the same numbers, in any order."""
    order = np.lexsort((numbers, owner))
    borders = np.searchsorted(owner, np.arange(owner.max(initial=-1) + 2)) * 8
    buffers = [None, pa.py_buffer(borders), pa.py_buffer(numbers[order])]
    joined = pa.Array.from_buffers(pa.large_binary(), len(borders) - 1, buffers)  # the numbers of a record as bytes
    return _numbered(pa.chunked_array([joined]))


def _twins(media: pa.Table, owner: Numbers, contents: Numbers, of: Numbers) -> list[Twin]:
    """The records that another one stands for, in words."""
    names = sorted(media["modality"].unique().to_pylist())
    records = media["record"].to_numpy()[np.searchsorted(owner, np.arange(len(of)))]
    has = np.zeros((len(of), len(names)), bool)
    for number, name in enumerate(names):
        has[owner[pc.equal(media["modality"], name).to_numpy()], number] = True
    return [
        Twin(
            int(records[row]),
            int(records[of[row]]),
            f"{'the same' if contents[row] == contents[of[row]] else 'nearly the same'} "
            + " and ".join(name for name, there in zip(names, has[row]) if there),
        )
        for row in np.flatnonzero(of != np.arange(len(of)))
    ]


@dataclass(frozen=True, eq=False)
class _Looks:
    """How the media of n records look, each with k of a modality.

    Attributes:
        signatures: by modality, uint8 (n, k, bytes).
        keys: by modality and table, uint32 (n, k).
    """

    signatures: dict[str, NDArray[np.uint8]]
    keys: dict[str, list[NDArray[np.uint32]]]

    @classmethod
    def of(cls, media: pa.Table, chosen: NDArray[np.bool_], count: int) -> _Looks:
        """Of `count` records, all of whose signed media are chosen."""
        signed, keys = {}, {}
        for name in sorted(media["modality"].filter(pa.array(chosen)).unique().to_pylist()):
            wanted = chosen & pc.equal(media["modality"], name).to_numpy()
            chunks = media["signature"].filter(pa.array(wanted)).chunks
            rows = np.concatenate([_bytes(chunk) for chunk in chunks]).reshape(int(wanted.sum()), -1)
            signed[name] = rows.reshape(count, -1, rows.shape[1])
            keys[name] = [table.reshape(count, -1) for table in signatures.keys(name, rows)]
        return cls(signed, keys)

    def near(self, later: Numbers, earlier: Numbers) -> NDArray[np.bool_]:
        """Which pairs of records are near in all modalities."""
        left = np.arange(len(later))
        for name, signed in self.signatures.items():
            for medium in range(signed.shape[1]):
                one, like = signed[later[left], medium], np.zeros(len(left), bool)
                for other in range(signed.shape[1]):
                    like |= signatures.near(name, one, signed[earlier[left], other])
                left = left[like]
        return np.isin(np.arange(len(later)), left)


def _settled(looks: _Looks, count: int) -> Numbers:
    """For each of `count` records, in order, the first that stays and is near to it, or itself."""
    of = np.arange(count)
    _settle(looks, of, of.copy())
    return of


def _bytes(values: pa.BinaryArray) -> NDArray[np.uint8]:
    """Values one after the other, none of them null."""
    if not len(values):
        return np.zeros(0, np.uint8)
    _, offsets, data = values.buffers()
    borders = np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset)
    return np.frombuffer(data, np.uint8)[borders[0] : borders[-1]]


def _settle(looks: _Looks, of: Numbers, rows: Numbers) -> None:
    """Set of[row] for rows that no earlier one is near to, by halves where many pairs may be near.

    So many records that look alike cost little more than few: those of the second half are compared with the ones of
    the first that stay, and what is near to them drops out before it is compared with its like.
    """
    leads, pairs = _leads(looks, rows, 0)
    if pairs <= _FEW_PAIRS:
        found = [later * len(of) + earlier for later, earlier in _near_pairs(looks, rows, 0, leads)]
        for pair in np.unique(np.concatenate([rows[:0], *found])).tolist():
            later, earlier = divmod(pair, len(of))
            if of[later] == later and of[earlier] == earlier:
                of[later] = earlier
        return
    first, second = np.split(rows, [len(rows) // 2])
    _settle(looks, of, first)
    stay = first[of[first] == first]
    both = np.concatenate([stay, second])
    leads, _ = _leads(looks, both, len(stay))
    for later, earlier in _near_pairs(looks, both, len(stay), leads):
        np.minimum.at(of, later, earlier)
    _settle(looks, of, second[of[second] == second])


def _leads(looks: _Looks, rows: Numbers, settled: int) -> tuple[Numbers, int]:
    """By which modality, as a number, the candidates of each row are the fewest (-1: there are none), and how many
    there are of all rows. Near records share a key in each modality, so that one is enough to find them by: of a
    thousand pages with one logo those that also share a text.
    """
    counts = np.zeros((len(looks.keys), len(rows)), np.int64)
    for count, tables in zip(counts, looks.keys.values()):
        for table in tables:
            found = _candidates(table[rows], settled)
            count[found.row] += found.end - found.start
    fewest = counts.min(axis=0)
    return np.where(fewest > 0, counts.argmin(axis=0), -1), int(fewest.sum())


def _near_pairs(looks: _Looks, rows: Numbers, settled: int, leads: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Blocks of pairs (later, earlier) that are near, some more than once; see `_candidates`."""
    for number, tables in enumerate(looks.keys.values()):
        for table in tables if (leads == number).any() else ():
            found = _candidates(table[rows], settled)
            led = leads[found.row] == number
            row, start, end = found.row[led], found.start[led], found.end[led]
            total = np.concatenate([[0], np.cumsum(end - start)])
            for first in range(0, int(total[-1]), _PAIRS_AT_ONCE):
                pair = np.arange(first, min(first + _PAIRS_AT_ONCE, total[-1]))
                which = np.searchsorted(total, pair, side="right") - 1
                later, earlier = rows[row[which]], rows[found.order[start[which] + pair - total[which]]]
                alike = looks.near(later, earlier)
                yield later[alike], earlier[alike]


class _Candidates(NamedTuple):
    """Rows, and the ranges order[start:end] of those that share a key with them."""

    order: Numbers
    row: Numbers
    start: Numbers
    end: Numbers


def _candidates(keys: NDArray[np.uint32], settled: int) -> _Candidates:
    """The earlier rows with the key of a row's first medium, among their own media.

    Args:
        keys: (n, k), of rows in order.
        settled: the first so many rows are compared with those after them, and no others; 0: all with all.
    """
    media = keys.shape[1]
    packed = np.sort((keys.ravel().astype(np.uint64) << np.uint64(32)) | np.arange(keys.size, dtype=np.uint64))
    key, place = packed >> np.uint64(32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = place // media
    fresh = np.concatenate([np.ones(min(1, len(key)), bool), key[1:] != key[:-1]])
    begins = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]  # of the run of a key, in which rows ascend
    wanted = order < settled if settled else np.ones(len(order), bool)
    before = np.cumsum(wanted) - wanted
    asking = np.flatnonzero((place % media == 0) & (order >= settled))
    asking = asking[before[asking] > before[begins[asking]]]
    start = begins[asking]
    return _Candidates(order, order[asking], start, start + before[asking] - before[start])
