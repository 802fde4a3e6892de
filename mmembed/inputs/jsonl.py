"""JSON Lines: a record a line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmembed.errors import ReadError
from mmembed.inputs import UNIT_BYTES, parse_records
from mmembed.types import Failure, Record, Unit

_MAX_DEPTH = 100  # of lists and objects: what is nested deeper breaks those who read or pickle it later


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON objects, one a line, in UTF-8. A unit is some lines; its place: first byte, bytes, first line."""

    path: Path

    def units(self, records: int) -> list[Unit]:
        """Units of at most `records` lines and, but for a longer line, UNIT_BYTES.

        A unit's fingerprint is that of its lines: appended ones change no earlier unit that is full.
        """
        units: list[Unit] = []
        start, first = 0, 1
        with self.path.open("rb") as file:
            for lines in _blocks(file, records):
                content = b"".join(lines)
                digest = hashlib.sha256(content).hexdigest()
                place = (start, len(content), first)
                units.append(Unit(len(units), sum(not line.isspace() for line in lines), digest, place))
                start += len(content)
                first += len(lines)
        return units

    def read(self, unit: Unit) -> tuple[list[Record], list[Failure]]:
        """The records of a unit; a broken line is a failure that names it."""
        start, size, _ = unit.place
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        return parse_records(self._rows(content, unit), str(self.path.parent))

    def _rows(self, content: bytes, unit: Unit) -> Iterator[tuple[str, Any]]:
        # Lines end where `units` ended them, at \n alone; \r is a blank of JSON.
        for number, line in enumerate(content.split(b"\n"), unit.place[2]):
            if line.strip():
                yield f"{self.path.name}:{number}", _parse(line)


def _blocks(lines: Iterable[bytes], count: int) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for line in lines:
        if block and (len(block) == count or size + len(line) > UNIT_BYTES):
            yield block
            block, size = [], 0
        block.append(line)
        size += len(line)
    if block:
        yield block


def _parse(line: bytes) -> Any:
    try:
        # Bytes would be taken as UTF-16, and halves of pairs as text. NaN and Infinity, no JSON, count as missing.
        value = json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None, parse_float=_finite)
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _deeper(value, _MAX_DEPTH):
            raise RecursionError
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text that can be written
        return value
    except ValueError as error:  # with JSONDecodeError and the errors of Unicode
        return ReadError(f"the line is no JSON in UTF-8: {error}")
    except RecursionError:
        return ReadError(f"the line is nested more than {_MAX_DEPTH} levels deep")


def _finite(text: str) -> float | None:
    """A number; one that is too large for a float is missing, as Infinity is."""
    value = float(text)
    return value if math.isfinite(value) else None


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value has more levels of lists and objects than so many."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(item, levels - 1) for item in inner))
