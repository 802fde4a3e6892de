"""JSON Lines: a record a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmembed.errors import ReadError
from mmembed.inputs import parse_records
from mmembed.types import Failure, Record, Unit


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON objects, one a line, in UTF-8. A unit is some lines; its place: first byte, bytes, first line."""

    path: Path

    def units(self, records: int) -> list[Unit]:
        """Units of `records` lines. A unit's fingerprint is that of its lines: appended ones change no earlier unit."""
        units: list[Unit] = []
        start = 0
        with self.path.open("rb") as file:
            while lines := list(islice(file, records)):
                content = b"".join(lines)
                digest = hashlib.sha256(content).hexdigest()
                place = (start, len(content), 1 + len(units) * records)
                units.append(Unit(len(units), sum(not line.isspace() for line in lines), digest, place))
                start += len(content)
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


def _parse(line: bytes) -> Any:
    try:
        # Bytes would be taken as UTF-16, and halves of pairs as text. NaN and Infinity, no JSON, count as missing.
        value = json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None)
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text that can be written
        return value
    except ValueError as error:  # with JSONDecodeError and the errors of Unicode
        return ReadError(f"the line is no JSON in UTF-8: {error}")
    except RecursionError:
        return ReadError("the line is nested too deeply")
