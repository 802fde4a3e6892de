"""The words of the project as types: frozen, and they check themselves."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

from mmembed import files
from mmembed.errors import ReadError, SpaceError
from mmembed.remote import is_web

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


class Part(NamedTuple):
    """Where a medium lies within another file: a member of an archive.

    Attributes:
        location: of the archive.
        start: its first byte there.
        bytes: how many it has.
    """

    location: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Cut:
    """What a long medium is cut into.

    Attributes:
        name: of the medium, among all that were ever cut: another content, another name.
        count: how many pieces there are.
    """

    name: str
    count: int


@dataclass(frozen=True)
class Media:
    """One medium of one record, not decoded yet: a file, a part of one, or content in memory.

    Attributes:
        path: as outputs show it, "" where there is none: as the user wrote it, but for what was redacted.
        content: a text, or the bytes of a file; None says that `path` is to be read.
        folder: what a relative `path` is relative to; never part of an output.
        part: where it is read, if it is a member of an archive.
        column: the key of the record that it stands under.
        cut: the pieces that it is worked on in (`mmembed.pieces`), if there are several.
        hidden: where it is read, if its path doesn't say so any more; never part of an output.
        blur: boxes of a picture that nobody may see, as JSON; "" for none. They travel with it, so that whoever decodes
            it, for an encoder or for a page, gets it without them.
    """

    path: str = ""
    content: str | bytes | None = None
    folder: str = ""
    part: Part | None = None
    column: str = ""
    cut: Cut | None = None
    hidden: str = ""
    blur: str = ""

    def __post_init__(self) -> None:
        if not self.path and self.content is None:
            raise ValueError("media need a path or a content")

    @property
    def location(self) -> str:
        """The path or URL that can be opened from anywhere on this machine."""
        return self.hidden or files.join(self.folder, self.path)

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL, of the web or of a remote file system, and has not been fetched."""
        return self.content is None and files.is_url(self.part.location if self.part else self.location)

    @property
    def name(self) -> str:
        """What a person is shown: the text itself, or the path."""
        return self.content if isinstance(self.content, str) else self.path

    def open(self) -> BinaryIO:
        """The bytes as a readable, seekable file.

        Raises:
            ReadError: the file is missing, can't be opened, or is none (a folder, a pipe, a device).
        """
        if isinstance(self.content, str):
            return io.BytesIO(self.content.encode("utf-8", "surrogatepass"))  # half a pair is for Text to refuse
        if self.content is not None:
            return io.BytesIO(self.content)
        try:
            return files.open_slice(*self.part) if self.part else files.open_binary(self.location)
        except ReadError as error:  # which names the location: the user knows the path, and outputs hold no folder
            raise ReadError(str(error).replace(self.location, self.path)) from error

    @cached_property
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


def content_id(media: Mapping[str, tuple[Media, ...]]) -> str:
    """A hash of a record's content: the same media, the same id, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for modality, items in sorted(media.items()):
        for item in items:
            digest.update(f"{modality}:{_hash_or_name(item)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _hash_or_name(media: Media) -> str:
    try:
        return media.path if is_web(media.location) else media.content_hash
    except ReadError:
        return media.path


@dataclass(frozen=True)
class Record:
    """What the user has: an id, some media by modality, and metadata.

    Attributes:
        media: by modality at least one; several captions of a picture are several texts.
        source: where it was read, for messages: "stamps.jsonl:17".
    """

    id: str
    media: Mapping[str, tuple[Media, ...]]
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
        number: 0, 1, … within the record and modality, in the order of the media and in each of them.
        span: see `Span`.
        media: what a person is shown: the piece of text, or the path of the file.
        content_hash: of the whole medium (`Media.content_hash`).
        data: what the last step made of it: decoded, then normalized content, then the feature, float32 (dim,).
        medium: 0, 1, …: which of the record's media of this modality it is of.
        encoded: whether `data` is the feature.
        signature: of the whole medium, where near duplicates are looked for.
        source: of its record.
        blur: of the medium: the same file with other boxes hidden is another picture.
    """

    id: str
    number: int
    span: Span
    media: str
    content_hash: str
    data: Any
    medium: int = 0
    encoded: bool = False
    signature: bytes = b""
    source: str = ""
    blur: str = ""


@dataclass(frozen=True)
class Failure:
    """A row of errors/: what could not be used, at which stage, and why.

    Attributes:
        attempts: how often it was tried.
        medium: which of the record's media of this modality it is of; no column of the table.
    """

    id: str
    modality: str
    segment: int | None
    stage: str
    error: str
    message: str
    source: str
    attempts: int = 1
    medium: int = 0


@dataclass(frozen=True)
class Dropped:
    """A row of dropped/: what was left out on purpose.

    Attributes:
        modality: of a medium that a filter left out; "" for a record that is a duplicate, or was kept out.
        kind: "filter", "duplicate" or "require".
        reason: the rule and the value that broke it, or how the two are alike.
        twin: the id of the record that stays in its place, "" for any other.
        medium: as of `Failure`.
    """

    id: str
    modality: str
    kind: str
    reason: str
    twin: str
    source: str
    medium: int = 0


@dataclass(frozen=True)
class Unit:
    """The records of one element: what can be read, retried and resumed alone.

    Attributes:
        number: 0, 1, …; names the unit's files.
        records: how many records (lines, rows) it holds.
        fingerprint: changes when the input's lines or rows change.
        form: of the input that it is read from, see `mmembed.inputs.FORMS`.
        file: the input file, relative to the input's folder.
        place: where in it they are, in the words of the form (bytes of a file, rows of a row group, names).
    """

    number: int
    records: int
    fingerprint: str
    form: str
    file: str
    place: tuple[Any, ...]


@dataclass(frozen=True)
class Batch:
    """What flows between transforms, beside its unit: some segments of one modality, or the unit's records.

    A unit's segments come as several batches, so that memory is bounded by the batch and not by the longest
    sound. They stay in order and in one process; the batch of records comes last and closes the unit.

    Attributes:
        items: segments of `modality`, or records.
        modality: "" for records.
        failures: what could not be used on the way to this batch.
        dropped: what was left out on the way to this batch.
        stamps: with a batch of records, of the files that it was read from and those that its media are in, by
            location.
        redacted: with a batch of records, how many values of which type were taken out of them.
    """

    items: tuple[Any, ...]
    modality: str = ""
    failures: tuple[Failure, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    stamps: Mapping[str, files.Stamp] = field(default_factory=dict)
    redacted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Neighbour:
    """One answer to a query.

    Attributes:
        score: inner product of two L2-normalized embeddings, 1 is best; unbounded with --fit pmi.
        rank: 1, 2, …
        media: the piece of text, or the path of the file.
        twins: ids of records whose segments are nearly the same, and were folded into this one.
    """

    rank: int
    score: float
    modality: str
    id: str
    segment: int
    span: Span
    media: str
    metadata: Mapping[str, Any]
    twins: tuple[str, ...] = ()
