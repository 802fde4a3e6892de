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
from mmembed.files import is_text
from mmembed.inputs import Plan
from mmembed.inputs.lines import blocks, open_lines, read_place, readable
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row

COLUMNS = MANIFEST_COLUMNS

MAX_FIELD = 1 << 20
"""Characters of one field, at most: a quote that is never closed would take the rest of the file for one."""

MAX_LINES = 1000
"""Lines of one row, at most, for the same reason."""


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
            filled = sum(not row.is_blank for row in rows)
            yield filled, f"{rows[0].line}:{digest}:{names}", (start, len(content), rows[0].line, names)
            start += len(content)


def rows(location: str, name: str, place: tuple[int, int, int, tuple[str, ...]]) -> Iterator[Row]:
    """Some rows by the names of their columns, empty fields as None; a row that doesn't fit the header is an error."""
    start, size, line, names = place
    for row in _parse(io.BytesIO(read_place(location, start, size)), _delimiter(location), line):
        if not row.is_blank:
            yield f"{name}:{row.line}", _values(row, names)


@dataclass(frozen=True)
class _Parsed:
    """A row: the bytes that it was read from, the number of its first line, and its fields or why it has none."""

    content: bytes
    line: int
    fields: list[str] | ReadError

    @property
    def is_blank(self) -> bool:
        """Whether it is an empty line, which is no row. (Blanks and tabs are fields.)"""
        return not self.content.strip(b"\r\n")


def _delimiter(location: str) -> str:
    return "\t" if location.lower().removesuffix(".gz").endswith(".tsv") else ","


def _header(location: str, lines: Iterator[bytes]) -> tuple[tuple[str, ...], int, int]:
    """The names of the columns, and the byte and line that follow them."""
    row = next(_parse(lines, _delimiter(location), 1), None)
    if row is None:
        raise ReadError(f"{location} is empty: its first line must name its columns")
    if isinstance(row.fields, ReadError):
        raise ReadError(f"the header of {location} can't be read: {row.fields}")
    names = tuple(field.strip() for field in row.fields)
    if not all(map(is_text, names)):
        raise ReadError(f"{location} is not UTF-8: convert it")
    if not names:
        raise ReadError(f"the first line of {location} is empty: it must name the columns")
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
    wasted, begun = 0, line

    def texts() -> Iterator[str]:
        while (content := back.popleft() if back else next(ahead, None)) is not None:
            taken.append(content)
            if len(taken) > MAX_LINES:
                raise csv.Error(f"a quote is not closed within {MAX_LINES:,} lines")
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
            reason = "it ends its lines with \\r alone: use \\n" if "new-line" in str(error) else error
            fields = ReadError(f"the row is not well quoted: {reason}")
            wasted += len(taken)
            kept = 1 if wasted < 20 * (line - begun) + 10 * MAX_LINES else len(taken)  # else time goes by the square
            back.extendleft(reversed(taken[kept:]))
            for content in taken[: kept - 1]:
                yield _Parsed(content, line, fields)
                line += 1
            taken[:] = taken[kept - 1 : kept]
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
