"""What the API takes, and the queries that it becomes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import File, UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.datastructures import UploadFile as StarletteUpload

from mmembed.errors import UsageError
from mmembed.search import ANY, Query
from mmembed.serve.settings import MAX_K, MAX_SECONDS, MAX_TEXT

WITHOUT = "without"
"""The part of a query that is not wanted: a text."""

PARTS = ("text", "image", "audio", "id", WITHOUT)


Value = str | bytes | BinaryIO
"""Of a part: a text, an id, a file's bytes, or an upload, which lies on disk until its turn has come."""


@dataclass(frozen=True)
class Asked:
    """A query as it came.

    Attributes:
        parts: by name, one of PARTS; only those that are given.
        weights: of parts, likewise; 1 where none is given.
    """

    parts: Mapping[str, Value]
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the parts that count.

        Raises:
            UsageError: there is none.
        """
        names = [name for name in self.parts if self.weights.get(name, 1.0)]
        if not names:
            raise UsageError(f"a query needs one of {', '.join(PARTS)}, and a weight of it that is not 0")
        return names

    @property
    def queries(self) -> list[tuple[str, float, Query]]:
        """Each part with its name and its weight, which is negative for what is not wanted; uploads are read.

        Raises:
            UsageError: there is none, or a sound is too long.
        """
        return [(name, self._weight(name), _query(name, self.parts[name])) for name in self.names]

    @property
    def query(self) -> Query:
        """All parts together.

        Raises:
            UsageError: as of `queries`.
        """
        parts = self.queries
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][2]
        return reduce(add, (weight * query for _, weight, query in parts))

    def _weight(self, name: str) -> float:
        weight = self.weights.get(name, 1.0)
        return -weight if name == WITHOUT else weight


def _query(name: str, value: Value) -> Query:
    if not isinstance(value, str | bytes):
        value.seek(0)
        value = value.read()
    if name == "audio" and isinstance(value, bytes):
        check_length(value)
    return medium_query("text" if name == WITHOUT else name, value)


def medium_query(modality: str, value: str | bytes) -> Query:
    """The query that is one medium, or one id."""
    given: dict[str, Any] = {modality: value}
    return Query.of(**given)


def check_length(data: bytes) -> None:
    """Raise UsageError for a sound that is too long to ask with; what is no sound is for the search to refuse."""
    import soundfile

    try:
        seconds = float(soundfile.info(io.BytesIO(data)).duration)
    except (soundfile.LibsndfileError, ZeroDivisionError):
        return
    if seconds > MAX_SECONDS:  # some formats pack hours of silence into a few kilobytes
        raise UsageError(
            f"a sound to ask with has at most {MAX_SECONDS} seconds, not {seconds:,.0f}: send a piece of it"
        )


def _words(description: str, default: str = "", longest: int = MAX_TEXT) -> Any:
    return Field(default, max_length=longest, description=description)


def _weight(part: str) -> Any:
    return Field(1.0, ge=0, le=100, allow_inf_nan=False, description=f"how much {part} counts")


class Options(BaseModel):
    """What is asked for. A name that is none of these is refused, for a misspelt one would be without effect."""

    model_config = ConfigDict(extra="forbid")

    text: str = _words("what resembles this text")
    id: str = _words("what resembles this record of the data set")
    without: str = _words("less of what resembles this text")
    text_weight: float = _weight("text")
    id_weight: float = _weight("id")
    without_weight: float = _weight("without")
    to: str = _words("the modality of the answers, or any", ANY, 100)
    k: int = Field(default=10, ge=1, le=MAX_K, description="how many answers")
    filter: str = _words("a condition on metadata: license = 'cc0' and year > 2019")
    segments: Literal["best", "all"] = Field(default="best", description="of a record only its best segment, or all")
    fold: bool = Field(default=False, description="near duplicates of an answer are folded into it")

    @property
    def asked(self) -> Asked:
        """The query."""
        values = {name: self._value(name) for name in PARTS}
        parts = {name: value for name, value in values.items() if value is not None}
        return Asked(parts, {name: getattr(self, f"{name}_weight") for name in parts})

    def _value(self, name: str) -> Value | None:
        """Of a part; None where it is not given."""
        given = getattr(self, name, None)
        if isinstance(given, StarletteUpload):
            return given.file if given.size else None  # a form's empty field has no bytes
        return given or None


Upload = Annotated[
    UploadFile | None,
    File(),
    BeforeValidator(lambda value: None if value == "" else value),  # what a browser sends where no file was chosen
    WithJsonSchema({"type": "string", "format": "binary"}),
]


class Form(Options):
    """The same with files."""

    image: Upload = Field(default=None, description="what resembles this picture: JPEG, PNG, WebP, …")
    audio: Upload = Field(default=None, description="what resembles this sound: WAV, FLAC, OGG, MP3, …")
    image_weight: float = _weight("image")
    audio_weight: float = _weight("audio")


class ExplainForm(Form):
    """A query, and the record that it found. A page may send what a search takes besides; it has no effect."""

    record: str = Field(min_length=1, max_length=MAX_TEXT, description="the id of the record that matches")
