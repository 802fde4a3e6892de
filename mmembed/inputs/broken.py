"""Files that can't be read, among others that can: one row each, which is an error."""

from __future__ import annotations

from collections.abc import Iterator

from mmembed.errors import ReadError
from mmembed.inputs.rows import MANIFEST_COLUMNS, Row

COLUMNS = MANIFEST_COLUMNS


def rows(location: str, name: str, place: tuple[str]) -> Iterator[Row]:
    """The one row: why the file, or the rest of it, can't be read."""
    yield name, ReadError(place[0])
