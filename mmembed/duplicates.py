"""Which records are copies of earlier ones: by id, by content, or nearly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed import signatures

_PAIRS_AT_ONCE = 1 << 22


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
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]  # codes count up in the order of their first row
    later = np.flatnonzero(first[codes] != np.arange(len(codes)))
    return [(int(row), int(first[codes[row]])) for row in later]


def exact(media: pa.Table) -> list[Twin]:
    """Records whose media are the same, byte for byte, as those of an earlier one.

    Args:
        media: a row a usable medium: record (int64, ascending), modality, content_hash. Records without any are none's
            copies.
    """
    records, groups, kinds = _records(media)
    first = np.unique(groups, return_index=True)[1]
    return [
        Twin(int(records[row]), int(records[first[groups[row]]]), f"the same {_listed(kinds[row])}")
        for row in np.flatnonzero(first[groups] != np.arange(len(groups)))
    ]


def near(media: pa.Table) -> list[Twin]:
    """Records whose media are all the same as those of an earlier one, or near them.

    Records are taken in order: one that stays is what later ones are compared with, and of several that it is near to
    the first counts. Where a record has several media of one modality, those must be the same.

    Args:
        media: as of `exact`, with signature (binary, null where there is none).
    """
    twins = {twin.record: twin for twin in exact(media)}
    left = media.filter(pa.array(~np.isin(media["record"].to_numpy(), list(twins))))
    records, _, kinds = _records(left)
    later, earlier = _near_pairs(left, records, kinds)
    stays = np.ones(len(records), bool)
    starts = np.flatnonzero(np.diff(later, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(later)]):
        row, near = later[start], earlier[start:end]
        if len(near := near[stays[near]]):
            stays[row] = False
            reason = f"nearly the same {_listed(kinds[row])}"
            twins[int(records[row])] = Twin(int(records[row]), int(records[near.min()]), reason)
    return [twins[record] for record in sorted(twins)]


def _listed(kinds: str) -> str:
    return " and ".join(dict.fromkeys(kinds.split(",")))


def _records(media: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """The records that have media: their rows, a number for what is in each (the same for the same media, counting up
    in order), and the modalities of its media."""
    record = media["record"].to_numpy()
    if not len(record):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.str_)
    modality = np.asarray(media["modality"].to_pylist())
    hashes = [bytes.fromhex(value) for value in media["content_hash"].to_pylist()]
    order = np.lexsort((np.asarray(hashes, "S16"), modality, record))
    starts = np.flatnonzero(np.diff(record[order], prepend=-1))
    ends = [*starts[1:], len(order)]
    contents, kinds = [], []
    for start, end in zip(starts, ends):
        rows = order[start:end]
        kinds.append(",".join(modality[rows]))
        contents.append(hashlib.blake2b(b"".join([kinds[-1].encode(), *(hashes[row] for row in rows)])).digest()[:16])
    groups = pa.array(contents, pa.binary(16)).dictionary_encode().indices.to_numpy()
    return record[order][starts], groups.astype(np.int64), np.asarray(kinds)


def _near_pairs(
    media: pa.Table, records: NDArray[np.int64], kinds: NDArray[np.str_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (later, earlier) of rows of `records` that are near, or the same, in all modalities; each once, sorted."""
    keys = [np.zeros(0, np.int64)]
    for kind in np.unique(kinds):  # records that have the same modalities
        rows = np.flatnonzero(kinds == kind)
        of_kind = media.filter(pa.array(np.isin(media["record"].to_numpy(), records[rows])))
        for later, earlier in _pairs_of_kind(of_kind, kind.split(",")):
            keys.append(np.unique(rows[later] * len(records) + rows[earlier]))
    later, earlier = np.divmod(np.unique(np.concatenate(keys)), max(1, len(records)))
    return later, earlier


def _pairs_of_kind(media: pa.Table, names: list[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """As `_near_pairs`, for records of the same modalities, by their number among these; some come more than once."""
    tables = {name: media.filter(pc.equal(media["modality"], name)) for name in sorted(set(names))}
    record = np.unique(media["record"].to_numpy())
    classes, bytes_of = {}, {}
    for name, table in tables.items():
        single = names.count(name) == 1 and not table["signature"].null_count
        classes[name] = _contents(table, names.count(name))
        if single:
            bytes_of[name] = np.frombuffer(b"".join(table["signature"].to_pylist()), np.uint8).reshape(len(record), -1)
    if not bytes_of:
        return
    # What has the fewest equal keys gives the fewest candidates; near or same in all modalities is then checked.
    lead = max(bytes_of, key=lambda name: len(np.unique(classes[name])))
    for later, earlier in _candidates(signatures.keys(lead, bytes_of[lead]), classes[lead]):
        alike = np.ones(len(later), bool)
        for name in tables:
            same = classes[name][later] == classes[name][earlier]
            if name in bytes_of:
                same |= signatures.near(name, bytes_of[name][later], bytes_of[name][earlier])
            alike &= same
        yield later[alike], earlier[alike]


def _contents(table: pa.Table, count: int) -> NDArray[np.int64]:
    """A number for the content of each record in one modality, of which it has `count` media."""
    hashes = np.asarray(table["content_hash"].to_pylist()).reshape(-1, count)
    joined = [" ".join(sorted(row)) for row in hashes]
    classes: NDArray[np.int64] = pa.array(joined).dictionary_encode().indices.to_numpy().astype(np.int64)
    return classes


def _candidates(
    keys: NDArray[np.uint64], classes: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of pairs (later, earlier) of rows that share a key in any table, or a class; some come more than once."""
    columns = [*keys.T, classes.astype(np.uint64)]
    for column in columns:
        order = np.argsort(column, kind="stable")  # within a key, rows ascend
        sorted_keys = column[order]
        ends = np.searchsorted(sorted_keys, sorted_keys, side="right")
        counts = ends - np.arange(len(order)) - 1  # of later rows with the same key
        total = np.concatenate([[0], np.cumsum(counts)])
        start = 0
        while start < len(order):
            stop = max(start + 1, int(np.searchsorted(total, total[start] + _PAIRS_AT_ONCE, side="right")) - 1)
            rows = np.arange(start, stop)
            repeats = counts[rows]
            earlier = np.repeat(rows, repeats)
            later = earlier + 1 + np.arange(len(earlier)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            if len(earlier):
                yield order[later], order[earlier]
            start = stop
