"""Which records a data set has forgotten: hashes of their ids, and never the ids themselves."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Forgotten:
    """What of the input is left out for good, because somebody asked for it. `id in forgotten` says whether it is.

    Whoever has the hashes and their salt can tell whether an id that he knows is among them, and nothing else.

    Attributes:
        salt: hex digits, chosen at random once: in each data set an id has another hash. "" where none was forgotten.
        ids: hashes of ids.
        pending: those of them whose rows may still be on disk.
        again: stages that are to be done again without them.
    """

    salt: str = ""
    ids: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    again: tuple[str, ...] = ()

    def __contains__(self, id: object) -> bool:
        return bool(self.ids) and isinstance(id, str) and self._hash(id) in self.ids

    def __bool__(self) -> bool:
        return bool(self.ids)

    def is_pending(self, id: str) -> bool:
        """Whether rows of it may still be on disk."""
        return bool(self.pending) and self._hash(id) in self.pending

    def with_pending(self, ids: Iterable[str], again: Sequence[str]) -> Forgotten:
        """These and others, of which rows are on disk."""
        salted = self if self.salt else replace(self, salt=secrets.token_hex(16))
        hashes = frozenset(map(salted._hash, ids))
        return replace(salted, ids=self.ids | hashes, pending=self.pending | hashes, again=tuple(again))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        lists = {"ids": sorted(self.ids), "pending": sorted(self.pending), "again": list(self.again)}
        return {"salt": self.salt, **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Forgotten:
        """What `to_json` gave; nothing of no values."""
        if not values:
            return cls()
        return cls(values["salt"], frozenset(values["ids"]), frozenset(values["pending"]), tuple(values["again"]))

    def _hash(self, id: str) -> str:
        key = bytes.fromhex(self.salt)
        return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16, key=key).hexdigest()


NOTHING = Forgotten()
