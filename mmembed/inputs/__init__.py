"""Where raw records come from: one reader a form of input, each giving units that can be read alone.

A form is a module with a name in `FORMS` and two functions:

    plan(location, records)        the units of a file, in order: (rows, fingerprint, place); media are not read
    rows(location, name, place)    the rows of a unit, as (source, values by column), or why one can't be read

and the `COLUMNS` that hold id and media where the user names none.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol, cast

from mmembed import files
from mmembed.errors import ReadError, UsageError
from mmembed.files import Stamp
from mmembed.forgotten import Forgotten
from mmembed.inputs.rows import Columns, Row, Rows
from mmembed.privacy import Privacy, Read
from mmembed.shards import fingerprint
from mmembed.splits import position
from mmembed.types import Batch, Failure, Record, Unit

UNIT_BYTES = 128 << 20
"""Of a unit, at most, as far as single records allow: a worker holds one unit's records and the media within them."""

FORMS = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "delimited": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "parquet": (".parquet",),
    "webdataset": (".tar",),
    "arrow": (".arrow",),
    "folder": (),
}
"""Forms of input, modules of this package, and how the names of their files end."""

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What makes a folder an `imagefolder` or `audiofolder` of Hugging Face: its rows name the files beside it."""

STAMPED_FORMS = ("parquet", "webdataset", "arrow")
"""Forms whose files are too large to be read for a fingerprint: a change is seen by size and time."""

Plan = tuple[int, str, tuple[Any, ...]]
"""Of a unit: its rows, a fingerprint of them, and its place in the file."""


class Form(Protocol):
    """What a module of a form gives."""

    COLUMNS: Columns

    def plan(self, location: str, records: int) -> Iterator[Plan]:
        """The units of a file, of at most so many records and UNIT_BYTES each."""

    def rows(self, location: str, name: str, place: tuple[Any, ...]) -> Iterator[Row]:
        """The rows of a unit; `name` is what sources call the file."""


@dataclass(frozen=True)
class Choice:
    """What of the input is read, and how; the fields are those of the configuration.

    Attributes:
        id_column: "" for the form's own.
        media_columns: by modality, the columns that the user named.
        allow_outside: whether a manifest's paths may leave its folder.
        limit: the first so many rows; 0 for all.
        sample: a share of the records, by a hash of their ids.
        privacy: what of them may go out.
        blur: the key of boxes of pictures that nobody may see, see `mmembed.modalities.image.Image`; "" for none.
    """

    id_column: str = ""
    media_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allow_outside: bool = False
    limit: int = 0
    sample: float = 1.0
    privacy: Privacy = Privacy()
    blur: str = ""


@dataclass(frozen=True)
class Source:
    """An input of any form; picklable, so that workers read their units themselves.

    Attributes:
        folder: what the names of files are relative to.
        files: (form, name) of each, in order.
        forgotten: records that are left out, as if the input had none of them.
    """

    folder: str
    files: tuple[tuple[str, str], ...]
    choice: Choice = Choice()
    forgotten: Forgotten = Forgotten()

    def units(self, records: int) -> list[Unit]:
        """All units in order, of at most so many records and UNIT_BYTES each; media are not read.

        Raises:
            UsageError: a file can't be read, or is not of its form.
        """
        units: list[Unit] = []
        left = self.choice.limit or math.inf
        for form, name in self.files:
            for read_as, (rows, mark, place) in self._plans(form, name, records):
                taken = int(min(rows, left))
                left -= taken
                mark = fingerprint(read_as, name, mark, taken)
                units.append(Unit(len(units), taken, mark, read_as, name, place))
                if not left:
                    return units
        return units

    def _plans(self, form: str, name: str, records: int) -> Iterator[tuple[str, Plan]]:
        """The plans of a file; one that can't be read, or not to its end, is a broken row where others can."""
        begun = False
        try:
            for plan in _form(form).plan(self._location(name), records):
                begun = True
                yield form, plan
        except ReadError as error:
            if not begun and len(self.files) == 1:
                raise UsageError(str(error)) from error
            yield "broken", (1, str(error), (str(error),))

    def read(self, unit: Unit) -> tuple[list[Record], list[Failure]]:
        """The records of one unit, and what of it is no record, as they may go out."""
        _, shown, _ = self._read_twice(unit)
        return shown.records, shown.failures

    def _read_twice(self, unit: Unit) -> tuple[Read, Read, set[str]]:
        """What one unit holds, as it is in the input and as it may go out, without what is to be forgotten; and the
        sources of that."""
        raw = self.choice.privacy.admitted(self._read(unit))
        shown = self.choice.privacy.veiled(raw)
        if not self.forgotten:
            return raw, shown, set()
        pairs = list(zip(raw.items, shown.items, strict=True))
        veiled = {after.source for _, after in pairs if (after.id or after.source) in self.forgotten}
        gone = {before.source for before, after in pairs if after.source in veiled}
        return raw.without(gone), shown.without(veiled), gone

    def _read(self, unit: Unit) -> Read:
        """What one unit holds, as it is in the input."""
        form, location = _form(unit.form), self._location(unit.file)
        folder = location if unit.form == "folder" else files.parent(location)
        columns = form.COLUMNS.chosen(self.choice.id_column, self.choice.media_columns)
        parser = Rows(
            columns,
            folder,
            self.choice.allow_outside,
            id_needed=bool(self.choice.id_column),
            named_files=unit.file.rsplit("/", 1)[-1] in METADATA_FILES,
            blur=self.choice.blur,
        )
        records, failures = parser.parse(_exactly(unit, form.rows(location, unit.file, unit.place)))
        if self.choice.sample < 1:
            records = [record for record in records if position(record.id, "sample") < self.choice.sample]
            kept = {record.source for record in records}
            failures = [
                failure
                for failure in failures
                if failure.source in kept
                or (not failure.modality and position(failure.id or failure.source, "sample") < self.choice.sample)
            ]
        return Read(records, failures)

    def ignored(self) -> dict[str, int]:
        """Of a folder of media, how many files are of endings that are not read."""
        if ("folder", "") not in self.files:
            return {}
        from mmembed.inputs.folder import other_endings

        return other_endings(self.folder)

    def check(self, unit: Unit) -> None:
        """Raise UsageError for a column that the user named and no row of a unit has, and for what keeps records
        private and can't work; meant for the first unit."""
        privacy = self.choice.privacy
        privacy.check(self._read(unit) if privacy.require else Read([], []))
        others = [(column,) for column in (self.choice.id_column, self.choice.blur) if column]
        named = [*self.choice.media_columns.values(), *others]
        if not any(named):
            return
        found: dict[str, None] = {}
        for _, values in islice(_form(unit.form).rows(self._location(unit.file), unit.file, unit.place), unit.records):
            found |= dict.fromkeys(values) if isinstance(values, dict) else {}
        for column in chain.from_iterable(named):
            if found and column not in found:
                raise UsageError(
                    f"none of the first {unit.records} records has the column {column!r}; they have {', '.join(found)}"
                )

    def read_stamped(self, unit: Unit) -> Batch:
        """The records of one unit, what of it is no record, and the stamps of the files that it is made from, by
        location, taken before they are read. (Of lines, the fingerprint is that of the content.)"""
        before = self._stamps(unit)
        raw, shown, gone = self._read_twice(unit)
        if gone and unit.form == "folder":  # where a source is the name of its files, but for their endings
            location = self._location(unit.file)
            names = (name for name in unit.place if name.rpartition(".")[0] in gone)
            before = {place: before[place] for place in before.keys() - {files.join(location, name) for name in names}}
        return Batch(
            tuple(shown.records),
            failures=tuple(shown.failures),
            dropped=tuple(shown.dropped),
            stamps={**_stamps_of(raw), **before},
            redacted=shown.redacted,
        )

    def stamps(self, unit: Unit) -> dict[str, Stamp]:
        """The stamps of the files that a unit is made from, as they are now, by location."""
        return {**_stamps_of(self._read(unit)), **self._stamps(unit)}

    def _stamps(self, unit: Unit) -> dict[str, Stamp]:
        location = self._location(unit.file)
        if unit.form == "folder":
            places = [files.join(location, name) for name in unit.place if files.is_text(name)]
            return {place: files.stamp(place) for place in places}
        return {location: files.stamp(location)} if unit.form in STAMPED_FORMS else {}

    def _location(self, name: str) -> str:
        return files.join(self.folder, name) if name else self.folder


def open_source(location: str, choice: Choice = Choice()) -> Source:
    """The input at a path or URL: a file, a folder, or a pattern with *, ?, [..], ** and {00..99}.

    Raises:
        UsageError: there is no such file, or no reader for its form.
    """
    from mmembed.inputs.discover import discover

    try:
        folder, found = discover(location)
    except ReadError as error:
        raise UsageError(str(error)) from error
    return Source(folder, tuple(found), choice)


def _stamps_of(read: Read) -> dict[str, Stamp]:
    """The stamps of the files that media are in, by location."""
    media = [item for record in read.records for items in record.media.values() for item in items]
    places = {item.part.location if item.part else item.location for item in media if item.content is None}
    return {place: files.stamp(place) for place in places}


def form_of(name: str) -> str | None:
    """The form of a file by its name."""
    return next((form for form, endings in FORMS.items() if name.lower().endswith(endings or "\0")), None)


def _exactly(unit: Unit, rows: Iterator[Row]) -> Iterator[Row]:
    """As many rows as were planned: where some are missing, the file has changed, or holds less than it says."""
    count = 0
    for row in islice(rows, unit.records):
        count += 1
        yield row
    missing = ReadError(f"{unit.file} holds fewer rows than it says, or has changed while it was read")
    yield from ((f"{unit.file}:row {row} of its unit", missing) for row in range(count, unit.records))


def _form(name: str) -> Form:
    return cast(Form, importlib.import_module(f"mmembed.inputs.{name}"))
