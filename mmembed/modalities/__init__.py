"""Modalities: how a medium is decoded, cut into segments and normalized; one frozen dataclass each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Protocol, runtime_checkable

from mmembed.types import Media, Span


def option(default: Any, help: str, flag: str = "") -> Any:
    """A field of a configuration: its default, what the command line says of it, and its flag where it is not named
    after its place."""
    return field(default=default, metadata={"help": help, "flag": flag})


class Modality(Protocol):
    """What the steps need of a modality. An instance is picklable configuration and holds no state."""

    name: ClassVar[str]
    version: ClassVar[str]
    """Of what is computed: a change of it needs another one, so that features are made anew."""

    @property
    def by_content(self) -> bool:
        """Whether segments depend on the medium alone, and not on the record's metadata too."""

    def decode(self, media: Media) -> Any:
        """The medium in memory, or a stream over it. Raises RecordError if it can't be decoded."""

    def segment(self, decoded: Any, metadata: Mapping[str, Any]) -> Iterator[tuple[Span, Any]]:
        """Cut lazily into pieces with their spans; `metadata` are the record's.

        Raises:
            FilteredError: before the first piece: a filter leaves the medium out. `decode` may raise it too.
            RecordError: a piece can't be decoded.
        """

    def normalize(self, piece: Any) -> Any:
        """One piece in the form that the encoders of this modality take."""

    def parts(self, content: Any) -> list[Span]:
        """Where the parts of a normalized piece lie that explanations tell apart, in its own units, in order."""

    def masked(self, content: Any, spans: Sequence[Span]) -> Any:
        """A normalized piece without some of its parts; empty where nothing is left of a text."""


@runtime_checkable
class Divisible(Protocol):
    """A modality whose longest media are cut in pieces that are worked on apart."""

    name: ClassVar[str]

    def pieces(self, media: Media) -> int:
        """How many; 1 for a medium that is not cut. Raises RecordError if it can't be opened."""

    def piece(self, media: Media, number: int, count: int) -> Iterator[tuple[Span, Any]]:
        """The segments of one of them, lazily, as of `Modality.segment`."""
