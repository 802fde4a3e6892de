"""The words of the project as types: frozen, and they check themselves."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mmembed.errors import ReadError, SpaceError

Span = tuple[float, ...]
"""Where a segment lies in its medium, in the unit of its modality:
image (left, top, right, bottom) in pixels of the oriented original,
text (start, end) in characters, audio (start, end) in seconds."""


@dataclass(frozen=True)
class Space:
    """Where a vector lives: vectors of two spaces are never compared or multiplied."""

    name: str
    version: str
    dim: int

    def __post_init__(self) -> None:
        if not self.name or not self.version or self.dim < 1:
            raise ValueError(f"a space needs a name, a version and a dimension of at least 1: {self!r}")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}[{self.dim}]"

    def check(self, other: Space, where: str) -> None:
        """Raise SpaceError unless `other` is this space; `where` names what holds `other`."""
        if other != self:
            raise SpaceError(
                f"{where} is of space {other}, but {self} is needed: build it again with one configuration"
            )


@dataclass(frozen=True)
class Media:
    """One modality of one record, not decoded yet: a file, or content in memory.

    Attributes:
        path: as the user wrote it, "" where there is none.
        content: a text, or the bytes of a file; None says that `path` is to be read.
        folder: what a relative `path` is relative to; never part of an output.
    """

    path: str = ""
    content: str | bytes | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.path and self.content is None:
            raise ValueError("media need a path or a content")

    @property
    def location(self) -> str:
        """The path that can be opened from anywhere on this machine."""
        return os.path.join(self.folder, self.path)

    @property
    def name(self) -> str:
        """What a person is shown: the text itself, or the path."""
        return self.content if isinstance(self.content, str) else self.path

    def open(self) -> BinaryIO:
        """The bytes as a readable, seekable file.

        Raises:
            ReadError: the file is missing, can't be opened, or is none (a folder, a pipe, a device, a URL).
        """
        if self.content is not None:
            if isinstance(self.content, str):
                return io.BytesIO(self.content.encode("utf-8", "surrogatepass"))  # half a pair is for Text to refuse
            return io.BytesIO(self.content)
        if "://" in self.path:
            raise ReadError(f"can't open {self.path}: only files are read, no URLs")
        try:
            if not stat.S_ISREG(os.stat(self.location).st_mode):  # a pipe or a device might never end
                raise ReadError(f"can't open {self.path}: it is no regular file")
            return open(self.location, "rb")
        except OSError as error:
            raise ReadError(f"can't open {self.path}: {error.strerror}") from error
        except ValueError as error:  # a NUL in the name, or one that the file system can't encode
            raise ReadError(f"{self.path!r} is no path: {error}") from error

    def content_hash(self) -> str:
        """BLAKE2b-128 of the bytes, 32 hex digits; a file is read in blocks.

        Raises:
            ReadError: the file is missing or can't be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        with self.open() as file:
            try:
                while block := file.read(1 << 20):
                    digest.update(block)
            except OSError as error:
                raise ReadError(f"can't read {self.path}: {error.strerror}") from error
        return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """What the user has: an id, some media by modality, and metadata.

    Attributes:
        source: where it was read, for messages: "stamps.jsonl:17".
    """

    id: str
    media: Mapping[str, Media]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ReadError(f"a record needs an id that is a non-empty string, not {self.id!r}")


@dataclass(frozen=True)
class Segment:
    """A piece of one record in one modality.

    Attributes:
        id: of its record.
        number: 0, 1, … within the record and modality, in the order of the medium.
        span: see `Span`.
        media: what a person is shown: the piece of text, or the path of the file.
        content_hash: of the whole medium (`Media.content_hash`).
        data: what the last step made of it: decoded, then normalized content, then the feature, float32 (dim,).
        source: of its record.
    """

    id: str
    number: int
    span: Span
    media: str
    content_hash: str
    data: Any
    source: str = ""


@dataclass(frozen=True)
class Failure:
    """A row of errors/: what could not be used, at which stage, and why."""

    id: str
    modality: str
    segment: int | None
    stage: str
    error: str
    message: str
    source: str


@dataclass(frozen=True)
class Unit:
    """The records of one element: what can be read, retried and resumed alone.

    Attributes:
        number: 0, 1, …; names the unit's files.
        records: how many records (lines, rows) it holds.
        fingerprint: changes when the input's lines or rows change.
        place: where they are, in the words of the reader that made it (bytes of a file, rows of a row group).
    """

    number: int
    records: int
    fingerprint: str
    place: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """What flows between transforms, beside its unit: some segments of one modality, or the unit's records.

    A unit's segments come as several batches, so that memory is bounded by the batch and not by the longest
    sound. They stay in order and in one process; the batch of records comes last and closes the unit.

    Attributes:
        items: segments of `modality`, or records.
        modality: "" for records.
        failures: what could not be used on the way to this batch.
    """

    items: tuple[Any, ...]
    modality: str = ""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """One answer to a query.

    Attributes:
        score: inner product of two L2-normalized embeddings, 1 is best.
        rank: 1, 2, …
        media: the piece of text, or the path of the file.
    """

    rank: int
    score: float
    modality: str
    id: str
    segment: int
    span: Span
    media: str
    metadata: Mapping[str, Any]
