"""Where raw records come from: one reader a form of input, each giving units that can be read alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mmembed.errors import ReadError, UsageError
from mmembed.types import Failure, Media, Record, Unit

FILE_KEYS = ("image", "audio")
"""Keys of a record that hold a path, or in Parquet a struct {bytes, path}."""

TEXT_KEYS = ("text",)
"""Keys of a record that hold the content itself."""

UNIT_BYTES = 128 << 20
"""Of a unit, at most, as far as single records allow: a worker holds one unit's records and the media within them."""


class Source(Protocol):
    """A readable form of input; picklable, so that workers read their units themselves."""

    def units(self, records: int) -> list[Unit]:
        """All units in order, of at most so many records and UNIT_BYTES each; media are not read."""

    def read(self, unit: Unit) -> tuple[list[Record], list[Failure]]:
        """The records of one unit, and what of it is no record."""


def open_source(path: Path) -> Source:
    """The reader for a manifest, chosen by its name.

    Raises:
        UsageError: there is no such file, or no reader for its form.
    """
    from mmembed.inputs.jsonl import JsonLines
    from mmembed.inputs.parquet import Parquet

    readers: dict[str, type[JsonLines] | type[Parquet]] = {
        ".jsonl": JsonLines,
        ".ndjson": JsonLines,
        ".parquet": Parquet,
    }
    if ":/" in str(path):
        raise UsageError(f"can't read {path}: only files of this machine's file systems are known")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the manifest, a file whose name ends in {', '.join(readers)}")
    if path.suffix not in readers:
        raise UsageError(f"can't tell the form of {path}: a manifest's name ends in {', '.join(readers)}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"can't read the manifest {path}: {error.strerror}") from error
    return readers[path.suffix](path.absolute())  # workers may have another working directory


def parse_records(rows: Iterable[tuple[str, Any]], folder: str) -> tuple[list[Record], list[Failure]]:
    """Records from rows (source, values), and failures for rows or media that are not what they should be.

    Args:
        rows: values is a dictionary, or a ReadError that the reader met.
        folder: what relative media paths are relative to.
    """
    records: list[Record] = []
    failures: list[Failure] = []
    places: dict[str, str] = {}
    for source, values in rows:
        id = ""
        try:
            if isinstance(values, ReadError):
                raise values
            if not isinstance(values, dict):
                raise ReadError(f"a record is an object of keys, not {type(values).__name__}")
            id = _id(values.get("id"))
            if id in places:
                raise ReadError(f"the id {id!r} was used before, at {places[id]}; ids must be unique")
            places[id] = source
            media, wrong = _media(values, folder)
            failures += [_failure(id, source, modality, error) for modality, error in wrong.items()]
            if not media and not wrong:
                raise ReadError(f"the record has none of {', '.join(FILE_KEYS + TEXT_KEYS)}")
        except ReadError as error:
            failures.append(_failure(id, source, "", error))
        else:
            keys = {"id", *FILE_KEYS, *TEXT_KEYS}
            records.append(Record(id, media, {key: values[key] for key in values if key not in keys}, source))
    return records, failures


def _id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ReadError(f"a record needs an id that is a non-empty string, not {value!r}")
    return value


def _media(values: Mapping[str, Any], folder: str) -> tuple[dict[str, Media], dict[str, ReadError]]:
    media: dict[str, Media] = {}
    wrong: dict[str, ReadError] = {}
    for key in FILE_KEYS + TEXT_KEYS:
        value = values.get(key)
        if value is None:
            continue
        try:
            media[key] = _text(value) if key in TEXT_KEYS else _file(value, folder)
        except ReadError as error:
            wrong[key] = error
    return media, wrong


def _text(value: Any) -> Media:
    if not isinstance(value, str):
        raise ReadError(f"a text is a string, not {type(value).__name__}")
    return Media(content=value)


def _file(value: Any, folder: str) -> Media:
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
    if not isinstance(path, str | None) or not isinstance(content, bytes | None):
        raise ReadError(f"a file is a path, or {{bytes, path}}, not {type(value).__name__}")
    if not path and content is None:
        raise ReadError("a file needs a path or bytes; leave the key out, or null, where there is none")
    return Media(path or "", content, folder)


def _failure(id: str, source: str, modality: str, error: ReadError) -> Failure:
    return Failure(id, modality, None, "read", type(error).__name__, str(error), source)
