"""CSV and TSV: a header, then a record a row, in UTF-8; quoted fields may hold line breaks."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmembed.errors import ReadError
from mmembed.inputs import Plan
from mmembed.inputs.lines import blocks, open_lines, read_place, readable
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row

COLUMNS = MANIFEST_COLUMNS

MAX_FIELD = 1 << 20
"""Characters of one field, at most: a quote that is never closed would take the rest of the file for one."""


def plan(location: str, records: int) -> Iterator[Plan]:
    """Units of at most `records` rows and, but for a longer row, UNIT_BYTES; place: first byte, bytes, first line, and
    the columns' names.

    A unit's fingerprint is that of its rows and of the header: appended rows change no earlier unit that is full.

    Raises:
        ReadError: there is no usable header.
    """
    with open_lines(location) as file:
        lines = readable(file, location)
        names, start, line = _header(location, lines)
        for rows in blocks(_parse(lines, _delimiter(location), line), records, lambda row: len(row.content)):
            content = b"".join(row.content for row in rows)
            digest = hashlib.sha256(content).hexdigest()
            filled = sum(bool(row.content.strip()) for row in rows)
            yield filled, f"{rows[0].line}:{digest}:{names}", (start, len(content), rows[0].line, names)
            start += len(content)


def rows(location: str, name: str, place: tuple[int, int, int, tuple[str, ...]]) -> Iterator[Row]:
    """Some rows by the names of their columns, empty fields as None; a row that doesn't fit the header is an error."""
    start, size, line, names = place
    for row in _parse(io.BytesIO(read_place(location, start, size)), _delimiter(location), line):
        if row.content.strip():
            yield f"{name}:{row.line}", _values(row, names)


@dataclass(frozen=True)
class _Parsed:
    """A row: the bytes that it was read from, the number of its first line, and its fields or why it has none."""

    content: bytes
    line: int
    fields: list[str] | ReadError


def _delimiter(location: str) -> str:
    return "\t" if location.removesuffix(".gz").lower().endswith(".tsv") else ","


def _header(location: str, lines: Iterator[bytes]) -> tuple[tuple[str, ...], int, int]:
    """The names of the columns, and the byte and line that follow them."""
    row = next(_parse(lines, _delimiter(location), 1), None)
    if row is None:
        raise ReadError(f"{location} is empty: its first line must name its columns")
    if isinstance(row.fields, ReadError):
        raise ReadError(f"the header of {location} can't be read: {row.fields}")
    names = tuple(field.strip() for field in row.fields)
    wrong = [name for place, name in enumerate(names) if not name or name in names[:place]]
    if wrong:
        raise ReadError(f"the header of {location} names a column twice, or not at all: {wrong[0]!r}")
    return names, len(row.content), 1 + row.content.count(b"\n")


def _parse(lines: Iterable[bytes], delimiter: str, line: int) -> Iterator[_Parsed]:
    """Rows of physical lines. Each row takes as many lines as its quoted fields have, and no line more is read.

    Of a row that is broken only the first line is given up: a stray quote has taken in the good ones after it.
    """
    csv.field_size_limit(MAX_FIELD)
    ahead, back, taken = iter(lines), deque[bytes](), list[bytes]()

    def texts() -> Iterator[str]:
        while (content := back.popleft() if back else next(ahead, None)) is not None:
            taken.append(content)
            text = content.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if line == 1 and len(taken) == 1 else text

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        fields: list[str] | ReadError
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = ReadError(f"the row is not well quoted: {error}")
            back.extendleft(reversed(taken[1:]))
            del taken[1:]
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)
        content = b"".join(taken)
        yield _Parsed(content, line, fields)
        line += content.count(b"\n")
        taken.clear()


def _values(row: _Parsed, names: tuple[str, ...]) -> dict[str, Any] | ReadError:
    if isinstance(row.fields, ReadError):
        return row.fields
    if len(row.fields) != len(names):
        return ReadError(f"the row has {len(row.fields)} fields, but the header names {len(names)} columns")
    try:
        row.content.decode("utf-8")
    except UnicodeDecodeError as error:
        return ReadError(f"the row is no UTF-8 at its byte {error.start}: {error.reason}; convert the file")
    return {name: field or None for name, field in zip(names, row.fields)}
