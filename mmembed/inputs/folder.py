"""A folder of files: those of one name but for its ending are a record; `name.json` beside them is its metadata."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from mmembed import files
from mmembed.errors import ReadError
from mmembed.inputs import Plan
from mmembed.inputs.jsonl import parse_object
from mmembed.inputs.rows import FILE_COLUMNS, SUFFIXES, Row
from mmembed.types import Media

COLUMNS = FILE_COLUMNS

MAX_JSON_BYTES = 16 << 20
"""Of a metadata file, at most."""

_ENDINGS = frozenset(ending for several in SUFFIXES.values() for ending in several) | {"json"}


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` records; place: the names of their files, relative to the folder.

    Files of other endings are left out. The fingerprint is of the names and of the metadata: media are compared by
    size and time.
    """
    groups = _groups(location)
    while block := list(islice(groups, records)):
        yield _plan(location, block)


def rows(location: str, name: str, place: tuple[str, ...]) -> Iterator[Row]:
    """The records of some files: their key, media by ending, the folder that they lie in, and their metadata."""
    for key, names in groupby(place, _key):
        yield key.encode("utf-8", "backslashreplace").decode(), _values(location, key, list(names))


def other_endings(location: str) -> dict[str, int]:
    """Files below a folder that are not read, by their endings."""
    endings = Counter(_ending(name) for name in files.below(location))
    return {f".{ending}" if ending else "(none)": n for ending, n in sorted(endings.items()) if ending not in _ENDINGS}


def _groups(location: str) -> Iterator[tuple[str, ...]]:
    """The files of each record, in the order of folders and of keys within them; all names are held."""
    known = (name for name in files.below(location) if _ending(name) in _ENDINGS)
    for _, names in groupby(sorted(known, key=lambda name: (_parent(name), _key(name), name)), _key):
        yield tuple(names)


def _plan(location: str, block: list[tuple[str, ...]]) -> Plan:
    place = tuple(name for names in block for name in names)
    digest = hashlib.sha256("\0".join(place).encode("utf-8", "surrogateescape"))
    for name in place:
        if _ending(name) == "json":
            digest.update(_metadata_bytes(location, name))
    return len(block), digest.hexdigest(), place


def _values(location: str, key: str, names: list[str]) -> dict[str, Any] | ReadError:
    values: dict[str, Any] = {"__key__": key} | ({"folder": _parent(key)} if _parent(key) else {})
    try:
        for name in names:
            if not files.is_text(name):
                return ReadError(f"the name {name!a} is no UTF-8: rename the file")
            ending = _ending(name)
            if ending != "json":
                before = values.get(ending)
                media = Media(name, folder=location)
                values[ending] = [*(before if isinstance(before, list) else [before]), media] if before else media
        for name in names:
            if _ending(name) == "json":
                values = parse_object(_metadata_bytes(location, name), name) | values
    except ReadError as error:
        return error
    return values


def _metadata_bytes(location: str, name: str) -> bytes:
    """The bytes of a metadata file; of one that can't be read, nothing, which is no JSON."""
    try:
        with files.open_binary(files.join(location, name)) as file:
            return file.read(MAX_JSON_BYTES)
    except (ReadError, OSError):
        return b""


def _ending(name: str) -> str:
    stem, dot, ending = name.rsplit("/", 1)[-1].rpartition(".")
    return ending.lower() if stem and dot else ""


def _key(name: str) -> str:
    return name.rpartition(".")[0]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
