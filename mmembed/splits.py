"""Which records are held out, and which fold a record is in: by a hash of its group, never by chance."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN, HELD_OUT = "train", "heldout"

_LABEL_RECORDS, _LABEL_SHARE = 20, 0.01
"""A medium that more records have, and a larger share of all, is a label and no sign of twins."""


@dataclass(frozen=True)
class Groups:
    """What must stay on one side of a split.

    Attributes:
        column: the key of the records whose equal values make a group; "": each record is its own.
        twins: groups that share a medium, each with the first of those it is one with.
    """

    column: str = ""
    twins: Mapping[str, str] = field(default_factory=dict)

    def of(self, id: str, record: Mapping[str, Any]) -> str:
        """The group of a record."""
        group = group_of(id, record, self.column)
        return self.twins.get(group, group)


def group_of(id: str, record: Mapping[str, Any], group_column: str) -> str:
    """The value of a column of the record, or its id without one."""
    value = record.get(group_column) if group_column else None
    return id if value is None else str(value)


def twins(media: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Groups that are linked by media which they share, each with the first in the alphabet of those it is one with.

    Args:
        media: a group and a medium's content hash, for each medium of each record. In memory are the groups' names and
            two numbers a medium.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    edges = array("Q")
    for group, medium in media:
        edges.extend((numbers.setdefault(group, len(numbers)), _number(medium)))
    if not edges:
        return {}
    group_of_edge, hashes = np.frombuffer(edges, np.uint64).reshape(-1, 2).T
    _, medium_of_edge, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    binding = counts[medium_of_edge] <= max(_LABEL_RECORDS, _LABEL_SHARE * len(numbers))
    links = (group_of_edge[binding].astype(np.int64), len(numbers) + medium_of_edge[binding])
    size = len(numbers) + len(counts)
    _, component = connected_components(coo_matrix((np.ones(binding.sum(), bool), links), (size, size)), directed=False)
    mine = component[: len(numbers)]
    shared = np.flatnonzero(np.bincount(mine)[mine] > 1)
    names = list(numbers)
    first: dict[int, str] = {}
    for number in shared:
        first[mine[number]] = min(first.get(mine[number], names[number]), names[number])
    return {names[number]: first[mine[number]] for number in shared if names[number] != first[mine[number]]}


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def position(group: str, salt: str) -> float:
    """A number in [0, 1) that depends on the group and the salt alone."""
    digest = hashlib.blake2b(group.encode(), digest_size=8, person=salt.encode())
    return int.from_bytes(digest.digest(), "big") / 2.0**64


def split_of(group: str, holdout: float) -> str:
    """HELD_OUT for a share `holdout` of the groups, TRAIN for the others."""
    return HELD_OUT if position(group, "holdout") < holdout else TRAIN


def fold_of(group: str, folds: int) -> int:
    """The fold of a training record in cross-validation, 0 … folds - 1; independent of `split_of`."""
    return int(position(group, "fold") * folds)
