"""JSON Lines: a record a line, in UTF-8."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from mmembed.errors import ReadError
from mmembed.inputs import Plan
from mmembed.inputs.lines import blocks, open_lines, read_place, readable
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row

COLUMNS = MANIFEST_COLUMNS

_MAX_DEPTH = 100  # of lists and objects: what is nested deeper breaks those who read or pickle it later


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` lines and, but for a longer line, UNIT_BYTES; place: first byte, bytes, first line.

    A unit's fingerprint is that of its lines: appended ones change no earlier unit that is full.
    """
    start, first = 0, 1
    with open_lines(location) as file:
        for lines in blocks(readable(file, location), records, len):
            content = b"".join(lines)
            digest = hashlib.sha256(content).hexdigest()
            yield sum(not line.isspace() for line in lines), f"{first}:{digest}", (start, len(content), first)
            start += len(content)
            first += len(lines)


def rows(location: str, name: str, place: tuple[int, int, int]) -> Iterator[Row]:
    """The objects of some lines; a broken line is an error that names it."""
    start, size, first = place
    # Lines end where `plan` ended them, at \n alone; \r is a blank of JSON.
    for number, line in enumerate(read_place(location, start, size).split(b"\n"), first):
        if line.strip():
            try:
                yield f"{name}:{number}", parse_json(line)
            except ReadError as error:
                yield f"{name}:{number}", ReadError(f"the line is {error}")


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The metadata in a file or member of an archive that holds one JSON object.

    Raises:
        ReadError: it holds something else.
    """
    try:
        value = parse_json(data)
    except ReadError as error:
        raise ReadError(f"{name} is {error}") from error
    if not isinstance(value, dict):
        raise ReadError(f"{name} is {type(value).__name__}: metadata are an object of keys")
    return value


def parse_json(data: bytes) -> Any:
    """A value of JSON that can be written again.

    Raises:
        ReadError: this is none; the message goes on after "it is".
    """
    try:
        # Bytes would be taken as UTF-16, and halves of pairs as text. NaN and Infinity, no JSON, count as missing.
        value = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None, parse_float=_finite)
        if data.count(b"[") + data.count(b"{") > _MAX_DEPTH and _deeper(value, _MAX_DEPTH):
            raise RecursionError
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text that can be written
        return value
    except ValueError as error:  # with JSONDecodeError and the errors of Unicode
        raise ReadError(f"no JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise ReadError(f"nested more than {_MAX_DEPTH} levels deep") from error


def _finite(text: str) -> float | None:
    """A number; one that is too large for a float is missing, as Infinity is."""
    value = float(text)
    return value if math.isfinite(value) else None


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value has more levels of lists and objects than so many."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(item, levels - 1) for item in inner))
