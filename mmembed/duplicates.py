"""Which records are copies of earlier ones: by id, by content, or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed import signatures

Rows = NDArray[np.int64]
"""Row numbers, or numbers that stand for equal things, int64 (n,)."""

_PAIRS_AT_ONCE = 1 << 16  # of which the longest signatures, 256 bytes, take 32 MB
_FEW = 1024  # so few records are compared with each other at once, however many pairs of them are near


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
    codes = _codes(ids)
    first = _first(codes)[codes]
    later = np.flatnonzero(first != np.arange(len(codes)))
    return list(zip(later.tolist(), first[later].tolist()))


def exact(media: pa.Table) -> list[Twin]:
    """Records whose media are the same, byte for byte, as those of an earlier one.

    Args:
        media: a row a usable medium: record (int64, ascending), modality (string), content_hash (string). Records
            without any are none's copies.
    """
    modality, content = _modalities(media), _contents(media)
    records, groups = _grouped(media["record"].to_numpy(), content)
    return _twins(media, modality, records, groups, _first(groups)[groups])


def near(media: pa.Table) -> list[Twin]:
    """Records whose media are all the same as some of an earlier one, or near them.

    Records are taken in order: one that stays is what later ones are compared with, and of several that it is near to
    the first counts. Both have as many media of each modality, and each medium of the later is like one of the earlier:
    nothing is lost. Media without a signature are like those of the same content.

    Args:
        media: as of `exact`, with signature (binary, null where there is none).
    """
    modality, content, record = _modalities(media), _contents(media), media["record"].to_numpy()
    source = _first(content)[content]  # the same content has one signature, whatever the table says
    lengths = pc.fill_null(pc.binary_length(media["signature"]), 0).to_numpy()[source]
    # Numbers of what looks the same: a content, or the one of the first medium of its modality with that signature.
    looks = content.copy()
    for number in np.unique(modality):
        rows = np.flatnonzero((modality == number) & (lengths > 0))
        signed = _codes(media["signature"].take(pa.array(source[rows])))
        looks[rows] = content[rows][_first(signed)[signed]]
    # Only records of one kind are compared: as many media of each modality, and the same where nothing is signed.
    kind = np.where(lengths > 0, -1 - modality, content)
    records, groups = _grouped(record, content)
    of = _first(same := _grouped(record, looks)[1])[same]
    kinds = _grouped(record, kind)[1]
    originals = np.flatnonzero(of == np.arange(len(of)))
    for rows in _split(originals, kinds[originals]):
        chosen = np.flatnonzero((lengths > 0) & np.isin(record, records[rows]))
        if len(rows) > 1 and len(chosen):
            of[rows] = rows[_near_ones(media.select(["modality", "signature"]), chosen, source[chosen], modality, len(rows))]
    return _twins(media, modality, records, groups, of[of])
