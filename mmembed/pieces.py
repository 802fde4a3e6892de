"""The longest media of an input in pieces, which several workers take at once: a sound of three hours holds nobody up.

A unit that has such a medium waits until the features of its pieces lie in OUT/scratch/pieces/, and is then done as any
other. Which media are cut, and where, depends on them alone. Media inside a file of rows are never cut: they would have
to go from worker to worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmembed import files
from mmembed.errors import RecordError
from mmembed.files import Place
from mmembed.modalities import Divisible, Modality
from mmembed.remote import RemotePath, is_web
from mmembed.scratch import Scratch
from mmembed.shards import fingerprint, read_footer, read_table, several, write_table
from mmembed.tables import features_table, vectors_from_arrow
from mmembed.types import Media, Record, Segment, Span, Unit

LEAST_BYTES = 4 << 20
"""A smaller file is not looked into: half an hour of sound in so few is hardly to be found."""


@dataclass(frozen=True)
class Piece:
    """One of the pieces of a medium; what crosses a shuffle.

    Attributes:
        unit: the number of the unit that waits for it.
        fingerprint: of that unit.
        source: of the record.
        name: of the medium, among all that were ever cut: another content, another name.
        number: 0 … count - 1.
    """

    unit: int
    fingerprint: str
    id: str
    source: str
    modality: str
    media: Media
    name: str
    number: int
    count: int


class Encoded(NamedTuple):
    """A medium whose pieces are all done: its segments' spans and features, and what can't be used of it, and why."""

    segments: Iterator[tuple[Span, NDArray[np.float32]]]
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Pieces:
    """Where pieces lie, and what they are marked with; a picklable value, used on workers.

    Attributes:
        marks: by modality, of how its features are made.
    """

    scratch: Scratch
    marks: Mapping[str, str]

    def missing(self, unit: Unit, records: Sequence[Record], modalities: Mapping[str, Modality]) -> list[Piece]:
        """The pieces of a unit's media that are not done."""
        jobs = [
            (record, modality, media)
            for modality in modalities.values()
            if isinstance(modality, Divisible)
            for record in records
            for media in record.media.get(modality.name, ())
            if media.content is None and not self.scratch.death(record.source, modality.name, "segment")
        ]
        named = several(lambda job: self._named(job[2], job[1]), jobs, self._place(jobs))
        pieces = [
            Piece(unit.number, unit.fingerprint, record.id, record.source, modality.name, media, name, number, count)
            for (record, modality, media), (name, count) in zip(jobs, named)
            if count > 1 and not self._is_left(media, modality)
            for number in range(count)
            if read_footer(self._path(name, number)) is None
        ]
        return list({(piece.name, piece.number): piece for piece in pieces}.values())  # a medium may be named twice

    def _is_left(self, media: Media, modality: Modality) -> bool:
        """Whether an earlier run left the features of a medium."""
        known = self.scratch.content_hash(media)
        return known is not None and self.scratch.features(modality.name, known) is not None

    def encoded(self, media: Media, modality: Modality) -> Encoded | None:
        """A medium whose pieces are done; None for one that is not cut, or whose pieces are not all there."""
        name, count = self._named(media, modality)
        footers = [read_footer(self._path(name, number)) for number in range(count)] if count > 1 else [None]
        if None in footers:
            return None
        failures: dict[str, str] = {}  # of each kind the first: a file that breaks off fails in all pieces that follow
        for kind, message in (failure for footer in footers if footer for failure in footer["failures"]):
            failures.setdefault(kind, message)
        return Encoded(self._segments(name, count), list(failures.items()))

    def write(self, piece: Piece, segments: Sequence[Segment], dim: int, failures: Sequence[tuple[str, str]]) -> None:
        """Write what a piece gave.

        Args:
            segments: encoded, with features of so many dimensions.
            failures: kinds and messages of what can't be used of it.
        """
        write_table(self._path(piece.name, piece.number), features_table(segments, dim), {"failures": failures})

    def _segments(self, name: str, count: int) -> Iterator[tuple[Span, NDArray[np.float32]]]:
        for number in range(count):
            table = read_table(self._path(name, number).read_bytes(), ["span", "feature"])
            yield from zip(map(tuple, table["span"].to_pylist()), vectors_from_arrow(table["feature"]), strict=True)

    def _named(self, media: Media, modality: Modality) -> tuple[str, int]:
        """The name of a medium, and how many pieces it has."""
        location = media.part.location if media.part else media.location
        if not isinstance(modality, Divisible) or media.content is not None or is_web(location):
            return "", 1
        try:
            found = RemotePath(location).found() if files.is_url(location) else files.stamp(location)
            if not found or (media.part or found).bytes < LEAST_BYTES:
                return "", 1
            count = modality.pieces(media)
        except (RecordError, OSError):  # told where it is decoded
            return "", 1
        where = (self.scratch.name_of(location), found[-2:], media.part and media.part[1:])
        return fingerprint(self.marks[modality.name], where, count), count

    def _path(self, name: str, number: int) -> Place:
        return self.scratch.folder / "pieces" / f"{name}-{number:04d}.parquet"

    @staticmethod
    def _place(jobs: Sequence[tuple[Record, Modality, Media]]) -> Place:
        """Where the first of some media lies: whether files are best asked for by several threads."""
        return files.place(jobs[0][2].location) if jobs else files.place("")
