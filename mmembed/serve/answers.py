"""What the API gives."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from pydantic import BaseModel, Field

from mmembed.explain import Explanation, Side
from mmembed.serve import media
from mmembed.serve.questions import PARTS
from mmembed.serve.settings import MAX_NAME
from mmembed.types import Neighbour


class Hit(BaseModel):
    """A segment that was found."""

    rank: int = Field(description="1 is the best")
    score: float = Field(description="inner product of L2-normalized embeddings; unbounded with --fit pmi")
    modality: str
    id: str = Field(description="of the record")
    segment: int = Field(description="which of the segments of the record's modality")
    span: list[float] = Field(description="pixels (left, top, right, bottom), characters, or seconds")
    media: str = Field(description="the text of the segment, or the name of the file")
    metadata: dict[str, Any]
    twins: list[str] = Field(description="ids of near duplicates that this hit stands for, with fold")
    media_url: str = Field(description="where its medium is")
    thumbnail_url: str = Field(description='where a small picture of it is; "" for texts')

    @classmethod
    def of(cls, found: Neighbour) -> Hit:
        """As JSON has it."""
        url = f"{found.modality}/{quote(found.id, safe='')}"
        name = urlencode({"name": found.media[:MAX_NAME]})
        box = "&" + urlencode({"span": ",".join(f"{value:g}" for value in found.span)})
        small = f"/thumbnail/{url}?{name}{box if found.modality == 'image' else ''}"
        return cls(
            rank=found.rank,
            score=found.score,
            modality=found.modality,
            id=found.id,
            segment=found.segment,
            span=list(found.span),
            media=found.media,
            metadata=dict(found.metadata),
            twins=list(found.twins),
            media_url=f"/media/{url}?{name}",
            thumbnail_url="" if found.modality == "text" else small,
        )


class Answer(BaseModel):
    """What a query found, best first."""

    hits: list[Hit]
    milliseconds: float = Field(description="of the search, without the network")


class PartOfSide(BaseModel):
    """A word, a cell of a picture or a stretch of a sound."""

    span: list[float] = Field(description="of the content: characters, pixels, seconds")
    label: str = Field(description='the word; "" where it is none')
    adds: float = Field(description="to the score")


class Content(BaseModel):
    """What an encoder got of a medium."""

    text: str = ""
    picture: str = Field(default="", description="a data URL")
    width: int = Field(default=0, description="pixels")
    height: int = Field(default=0, description="pixels")
    peaks: list[float] = Field(default=[], description="of a sound, 0 to 1, equally spaced")
    seconds: float = 0.0


class OneSide(BaseModel):
    """One of the two media of a match."""

    what: str = Field(description='"query", or the id of the record')
    modality: str
    media: str
    rest: float = Field(description="the score with all parts masked: score = sum of what the parts add + rest")
    parts: list[PartOfSide]
    content: Content

    @classmethod
    def of(cls, side: Side) -> OneSide:
        """As JSON has it."""
        parts = [PartOfSide(span=list(part.span), label=part.label, adds=part.adds) for part in side.parts]
        return cls(
            what=side.what,
            modality=side.modality,
            media=side.media,
            rest=side.rest,
            parts=parts,
            content=_content(side),
        )


class Match(BaseModel):
    """Why one part of a query and a record match."""

    part: str = Field(description=f"of the query: {', '.join(PARTS)}")
    weight: float = Field(description="of the part; negative for what is not wanted")
    score: float
    query: OneSide
    record: OneSide

    @classmethod
    def of(cls, part: str, weight: float, found: Explanation) -> Match:
        """As JSON has it."""
        query, record = OneSide.of(found.query), OneSide.of(found.record)
        return cls(part=part, weight=weight, score=found.score, query=query, record=record)


class Matches(BaseModel):
    """Why a query and a record match, part by part."""

    matches: list[Match]


class Key(BaseModel):
    """A key of the metadata, to filter by."""

    name: str
    kind: str = Field(description="of its values, in words of Arrow; json: they are mixed")
    examples: list[Any] = Field(description="some of its values, if they come again and again")


class Sample(BaseModel):
    """A record to begin with."""

    modality: str
    id: str
    media: str


class Info(BaseModel):
    """What is served."""

    name: str = Field(description="of the data set")
    version: str = Field(description="of mmembed")
    records: int
    rows: dict[str, int] = Field(description="segments by modality")
    targets: list[str] = Field(description="modalities of answers")
    askable: list[str] = Field(description="modalities of queries")
    chunked: bool = Field(description="whether a hit may be a piece of a longer text")
    keys: list[Key]
    samples: list[Sample]
    max_k: int
    max_upload: int = Field(description="bytes of a request")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


def _content(side: Side) -> Content:
    content, end = side.content, max((part.span[1] for part in side.parts), default=0.0)
    if isinstance(content, str):
        return Content(text=content)
    if content.ndim == 3:
        data = base64.b64encode(media.webp(np.asarray(content, np.uint8))).decode()
        return Content(picture=f"data:image/webp;base64,{data}", width=content.shape[1], height=content.shape[0])
    sound = np.flatnonzero(content)
    return Content(peaks=media.peaks(content[: int(sound[-1]) + 1 if sound.size else None], 240), seconds=end)
