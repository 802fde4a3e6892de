"""The longest media of an input in pieces, which several workers take at once: a sound of three hours holds nobody up.

A unit that has such a medium waits until the features of its pieces lie in OUT/scratch/pieces/, and is then done as any
other. Which media are cut, and where, depends on them alone. Media inside a file of rows are never cut: they would have
to go from worker to worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from mmembed.types import Cut, Media, Record, Segment, Span, Unit

LEAST_BYTES = 4 << 20
"""A smaller file is not looked into: half an hour of sound in so few is hardly to be found."""


@dataclass(frozen=True)
class Piece:
    """One of the pieces of a medium; what crosses a shuffle.

    Attributes:
        unit: the number of the unit that waits for it.
        fingerprint: of that unit.
        source: of the record.
        cut: what the medium is cut into.
        number: 0 … cut.count - 1.
    """

    unit: int
    fingerprint: str
    id: str
    source: str
    modality: str
    media: Media
    cut: Cut
    number: int


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

    def divided(self, records: Sequence[Record], modalities: Mapping[str, Modality]) -> tuple[Record, ...]:
        """Records whose longest media say what they are cut into."""
        jobs = [
            (place, number, modality, media)
            for modality in modalities.values()
            if isinstance(modality, Divisible)
            for place, record in enumerate(records)
            for number, media in enumerate(record.media.get(modality.name, ()))
            if media.content is None and not self.scratch.death(record.source, modality.name, "segment")
        ]
        # Remote files are asked for by several threads.
        where = files.place(jobs[0][3].location) if jobs else Path()
        cuts = several(lambda job: self._cut(job[3], job[2]), jobs, where)
        found = list(records)
        for (place, number, modality, media), cut in zip(jobs, cuts):
            if cut:
                record = found[place]
                of_modality = list(record.media[modality.name])
                of_modality[number] = replace(media, cut=cut)
                found[place] = replace(record, media={**record.media, modality.name: tuple(of_modality)})
        return tuple(found)

    def missing(self, unit: Unit, records: Sequence[Record]) -> list[Piece]:
        """The pieces of a unit's media that are not done; its records are those of `divided`."""
        pieces = [
            Piece(unit.number, unit.fingerprint, record.id, record.source, modality, media, media.cut, number)
            for record in records
            for modality, of_modality in record.media.items()
            for media in of_modality
            if media.cut and not self._is_left(media, modality)
            for number in range(media.cut.count)
            if read_footer(self._path(media.cut, number)) is None
        ]
        return list({(piece.cut.name, piece.number): piece for piece in pieces}.values())  # a medium may be named twice

    def _is_left(self, media: Media, modality: str) -> bool:
        """Whether an earlier run left the features of a medium."""
        known = self.scratch.content_hash(media)
        return known is not None and self.scratch.features(modality, known) is not None

    def encoded(self, media: Media) -> Encoded | None:
        """A medium whose pieces are done; None for one that is not cut, or whose pieces are not all there."""
        if media.cut is None:
            return None
        footers = [read_footer(self._path(media.cut, number)) for number in range(media.cut.count)]
        if None in footers:
            return None
        failures: dict[str, str] = {}  # of each kind the first: a file that breaks off fails in all pieces that follow
        for kind, message in (failure for footer in footers if footer for failure in footer["failures"]):
            failures.setdefault(kind, message)
        return Encoded(self._segments(media.cut), list(failures.items()))

    def write(self, piece: Piece, segments: Sequence[Segment], dim: int, failures: Sequence[tuple[str, str]]) -> None:
        """Write what a piece gave.

        Args:
            segments: encoded, with features of so many dimensions.
            failures: kinds and messages of what can't be used of it.
        """
        write_table(self._path(piece.cut, piece.number), features_table(segments, dim), {"failures": failures})

    def _segments(self, cut: Cut) -> Iterator[tuple[Span, NDArray[np.float32]]]:
        for number in range(cut.count):
            table = read_table(self._path(cut, number).read_bytes(), ["span", "feature"])
            yield from zip(map(tuple, table["span"].to_pylist()), vectors_from_arrow(table["feature"]), strict=True)

    def _cut(self, media: Media, modality: Divisible) -> Cut | None:
        """What a medium is cut into, None if it is not."""
        location = media.part.location if media.part else media.location
        if is_web(location):
            return None
        try:
            found = RemotePath(location).found() if files.is_url(location) else files.stamp(location)
            if not found or (media.part or found).bytes < LEAST_BYTES:
                return None
            count = modality.pieces(media)
        except (RecordError, OSError):  # told where it is decoded
            return None
        where = (self.scratch.name_of(location), found[-2:], media.part and media.part[1:])
        return Cut(fingerprint(self.marks[modality.name], where, count), count) if count > 1 else None

    def _path(self, cut: Cut, number: int) -> Place:
        return self.scratch.folder / "pieces" / f"{cut.name}-{number:04d}.parquet"
