"""Which records are held out, and which fold a record is in: by a hash of its group, never by chance."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAIN, HELD_OUT = "train", "heldout"

_LABEL_RECORDS, _LABEL_SHARE = 20, 0.01
"""A medium that more groups have, and a larger share of all, is a label and no sign of twins."""

_CHAIN_SHARE = 0.05
"""Groups that are one may be 20, or this share of all."""


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

    def without(self, forgotten: Container[str], holdout: float) -> Groups:
        """These groups without the names of some; those that they stood for stay on their side of the split."""

        def name(first: str) -> str:
            if first not in forgotten:
                return first
            side = split_of(first, holdout)
            return next(name for name in map(str, count()) if split_of(name, holdout) == side)

        return replace(self, twins={g: name(first) for g, first in self.twins.items() if g not in forgotten})


def group_of(id: str, record: Mapping[str, Any], group_column: str) -> str:
    """The value of a column of the record, or its id without one."""
    value = record.get(group_column) if group_column else None
    return id if value is None else str(value)


def twins(media: Iterable[tuple[str, str]]) -> tuple[dict[str, str], int]:
    """Groups that are linked by media which they share, each with the first in the alphabet of those it is one with.

    Chains of links may hold a whole data set together (each picture has several captions, each caption several
    pictures), so that nothing could be held out: where one is too long, the media that most groups have bind no more,
    until it falls apart.

    Args:
        media: a group and a medium's content hash, for each medium of each record. In memory are the groups' names and
            two numbers a medium.

    Returns:
        The groups that are one with another, and how many were in a chain that was cut.
    """
    import numpy as np

    numbers: dict[str, int] = {}
    ends = array("Q")
    for group, medium in media:
        ends.extend((numbers.setdefault(group, len(numbers)), number_of(medium)))
    if not ends:
        return {}, 0
    edges = np.unique(np.frombuffer(ends, np.uint64).reshape(-1, 2), axis=0)  # a group may have a medium many times
    group_of_edge = edges[:, 0].astype(np.int64)
    _, medium_of_edge, counts = np.unique(edges[:, 1], return_inverse=True, return_counts=True)
    common = counts[medium_of_edge]  # how many groups have the medium of an edge
    limit = int(max(_LABEL_RECORDS, _LABEL_SHARE * len(numbers)))
    binding = common <= limit
    cut = np.zeros(len(numbers), bool)
    while True:
        chain = _components(group_of_edge[binding], medium_of_edge[binding], len(numbers), len(counts))
        long = np.bincount(chain)[chain] > max(_LABEL_RECORDS, _CHAIN_SHARE * len(numbers))
        if not long.any():
            break
        cut |= long
        limit //= 2
        binding &= ~(long[group_of_edge] & (common > limit))
    shared = np.flatnonzero(np.bincount(chain)[chain] > 1)
    names = list(numbers)
    first: dict[int, str] = {}
    for number in shared:
        first[chain[number]] = min(first.get(chain[number], names[number]), names[number])
    linked = {names[number]: first[chain[number]] for number in shared if names[number] != first[chain[number]]}
    return linked, int(cut.sum())


def _components(
    groups: NDArray[np.int64], media: NDArray[np.int64], group_count: int, medium_count: int
) -> NDArray[np.int32]:
    """The number of each group's connected component, (group_count,), by edges between groups and media."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = group_count + medium_count
    graph = coo_matrix((np.ones(len(groups), bool), (groups, group_count + media)), (size, size))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1][:group_count]
    return numbers


def number_of(name: str, salt: str = "") -> int:
    """A number of 64 bits that depends on a name and the salt alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=salt.encode())
    return int.from_bytes(digest.digest(), "big")


def position(group: str, salt: str) -> float:
    """A number in [0, 1) that depends on the group and the salt alone."""
    return number_of(group, salt) / 2.0**64


def split_of(group: str, holdout: float) -> str:
    """HELD_OUT for a share `holdout` of the groups, TRAIN for the others."""
    return HELD_OUT if position(group, "holdout") < holdout else TRAIN


def fold_of(group: str, folds: int) -> int:
    """The fold of a training record in cross-validation, 0 … folds - 1; independent of `split_of`."""
    return int(position(group, "fold") * folds)
