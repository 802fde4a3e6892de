"""Which records are held out, and which fold a record is in: by a hash of its group, never by chance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

TRAIN, HELD_OUT = "train", "heldout"


def group_of(id: str, record: Mapping[str, Any], group_column: str) -> str:
    """What must stay on one side of a split: the value of a column of the record, or its id without one."""
    value = record.get(group_column) if group_column else None
    return id if value is None else str(value)


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
