"""What several tests of readers do: read all of an input, unit by unit."""

from __future__ import annotations

from pathlib import Path

from mmembed.inputs import Choice, open_source
from mmembed.types import Failure, Record

WHOLE = Choice()


def read_all(location: object, records: int = 2, choice: Choice = WHOLE) -> tuple[list[Record], list[Failure]]:
    """The records and failures of all units; each row has one fate, whatever the order in which units are read."""
    source = open_source(str(location), choice)
    units = source.units(records)
    assert [unit.number for unit in units] == list(range(len(units)))
    backwards = {unit.number: source.read(unit) for unit in reversed(units)}
    parts = [source.read(unit) for unit in units]
    assert parts == [backwards[unit.number] for unit in units]
    for unit, (found, failures) in zip(units, parts):
        assert unit.records <= records
        if choice.sample == 1:
            assert len(found) + sum(not failure.modality for failure in failures) == unit.records
    return [record for found, _ in parts for record in found], [f for _, failures in parts for f in failures]


def texts(record: Record) -> list[object]:
    return [media.content for media in record.media.get("text", ())]


def contents(record: Record, modality: str) -> list[bytes]:
    """The bytes of a record's media."""
    found = []
    for media in record.media.get(modality, ()):
        with media.open() as file:
            found.append(file.read())
    return found


def write(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
