"""Why a query and a record match: what each word, picture cell or stretch of time adds to their score.

With the lengths of both embeddings held, a score <W_q x_q + b_q, W_t x_t + b_t> is linear in the feature of either
side, and splits into what the parts of its medium add. Encoders are black boxes, so parts are masked: what a part adds
is its Shapley value in the game "score of the medium with some of its parts", estimated over random orders of the parts
(Castro, Gómez, Tejada 2009). In each order the additions sum up to the score of the whole medium less that of the one
with everything masked; so they do on average, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders import Encoder
from mmembed.errors import RecordError, UsageError
from mmembed.index import scoring_of
from mmembed.linear import LinearMap, Scoring
from mmembed.search import ANY, Query, Searcher
from mmembed.shards import write_bytes
from mmembed.steps import normalize_segments, segment_records
from mmembed.types import Batch, Record, Segment, Span

EVALUATIONS, CHARACTERS = 512, 1 << 20
"""As many orders of the parts are tried as encode a medium at most 512 times, of a text at most 2^20 characters, but at
least one and its reverse: 8 or more of 64 parts."""

_BATCH = 64  # contents encoded at once
_SHADES = " ░▒▓█"
_BAR = 24
_LABEL = 64  # characters of a part that are shown: a word; of a long text a part is many


@dataclass(frozen=True)
class Part:
    """A part of a medium and what it adds to the score.

    Attributes:
        span: of the normalized content: characters, pixels (left, top, right, bottom), seconds.
        label: the word, "" where it is none.
    """

    span: Span
    label: str
    adds: float


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two media of a match.

    Attributes:
        what: "query", or the id of the record.
        parts: in the order of their spans.
        rest: the score of the medium with all its parts masked, the candidate's own term (of --fit pmi) held:
            score = sum of what the parts add + rest.
        content: of the segment, normalized.
    """

    what: str
    modality: str
    media: str
    parts: Sequence[Part]
    rest: float
    content: Any


@dataclass(frozen=True, eq=False)
class Explanation:
    """A match between a query and the segment of a record that is nearest to it.

    Attributes:
        score: as a query's, but without the correction of hubs, which no part of the two media makes.
    """

    score: float
    query: Side
    record: Side

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without contents."""
        sides = {
            name: {
                "what": side.what,
                "modality": side.modality,
                "media": side.media,
                "rest": side.rest,
                "parts": [vars(part) for part in side.parts],
            }
            for name, side in (("query", self.query), ("record", self.record))
        }
        return {"score": self.score, **sides}


def shapley(
    value: Callable[[NDArray[np.bool_]], NDArray[np.float64]], parts: int, orders: int, seed: int = 0
) -> tuple[NDArray[np.float64], float]:
    """What each part adds, float64 (parts,), and the value of none of them; together the value of all, exactly.

    Args:
        value: of some of the parts, (m, parts) bool -> (m,).
        orders: random orders, each followed by its reverse; at least 2.
    """
    random = np.random.default_rng(seed)
    half = [random.permutation(parts) for _ in range(max(1, orders // 2))]
    adds = np.zeros(parts)
    nothing = float(value(np.zeros((1, parts), bool))[0])
    for order in (each for pair in half for each in (pair, pair[::-1])):
        places = np.empty(parts, np.intp)
        places[order] = np.arange(parts)
        kept = places[np.newaxis] <= np.arange(parts)[:, np.newaxis]  # row i: the first i + 1 of the order
        adds[order] += np.diff(value(kept), prepend=nothing)
    return adds / (2 * len(half)), nothing


def explain(searcher: Searcher, query: Query, id: str, to: str = ANY, *, anywhere: bool = True) -> Explanation:
    """Why a query and a record match, by the segment of the record that is nearest to it. The query is a medium; of
    several segments, its first counts.

    Args:
        to: the modality of the record that is looked at; "any": the nearest of those that are not the query's, or the
            query's own where the record has no other.
        anywhere: whether the whole input is looked through for the record, as of `Searcher.record`.

    Raises:
        UsageError: the query can't be used, there is no such record or modality, or its input is gone.
    """
    modality, media = query.medium()
    record = searcher.record(id, anywhere=anywhere)
    targets = [name for name in record.media if name != modality] or list(record.media) if to == ANY else [to]
    if not set(targets) <= record.media.keys():
        raise UsageError(f"the record {id!r} has no {to}, but {', '.join(record.media)}")
    (first, *_) = _segments(searcher, Record("query", {modality: (media,)}), modality)
    asked = _embed(searcher, modality, searcher.map_of(modality), [first.data])[0]
    scoring = scoring_of(searcher.dataset)
    candidates = []
    for target in targets:
        linear_map = searcher.map_of(target)
        for segment in _segments(searcher, record, target):
            found = _embed(searcher, target, linear_map, [segment.data])[0]
            score = float(asked.astype(np.float64) @ found.astype(np.float64)) + _term(scoring, found)
            candidates.append((score, found, segment, target, linear_map))
    if not candidates:
        raise UsageError(f"nothing of the record {id!r} can be embedded: see `mmembed errors`")
    # The first of those that score the same.
    score, found, segment, target, linear_map = max(candidates, key=lambda candidate: candidate[0])
    term = _term(scoring, found)
    return Explanation(
        score,
        _side(searcher, first, modality, "query", searcher.map_of(modality), found, term),
        _side(searcher, segment, target, id, linear_map, asked, term),
    )


def _side(
    searcher: Searcher,
    segment: Segment,
    modality: str,
    what: str,
    linear_map: LinearMap,
    other: NDArray[np.float32],
    term: float,
) -> Side:
    """What the parts of a segment add to its score with the other side's embedding, to which `term` is added."""
    cut = searcher.encoders[modality][0]
    spans = cut.parts(segment.data)
    plain = _values(searcher, modality, linear_map, [segment.data])[0]
    length = float(np.linalg.norm(plain)) if linear_map.scoring.spectrum is None else 1.0

    def value(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        scores = np.zeros(len(kept))
        contents = [cut.masked(segment.data, [spans[i] for i in np.flatnonzero(~row)]) for row in kept]
        # Nothing left of a text is no input of an encoder; the average record scores 0.
        there = [place for place, content in enumerate(contents) if len(content)]
        for start in range(0, len(there), _BATCH):
            some = there[start : start + _BATCH]
            values = _values(searcher, modality, linear_map, [contents[place] for place in some])
            scores[some] = values.astype(np.float64) @ other.astype(np.float64) / max(length, 1e-12)
        return scores

    most = CHARACTERS // max(len(segment.data), 1) if isinstance(segment.data, str) else EVALUATIONS
    orders = max(2, min(EVALUATIONS, most) // max(len(spans), 1) // 2 * 2)
    adds, nothing = shapley(value, len(spans), orders)
    words = [segment.data[int(a) : int(b)] if isinstance(segment.data, str) else "" for a, b, *_ in spans]
    parts = [Part(span, word, float(add)) for span, word, add in zip(spans, words, adds, strict=True)]
    return Side(what, modality, segment.media, parts, nothing + term, segment.data)


def _values(searcher: Searcher, modality: str, linear_map: LinearMap, contents: Sequence[Any]) -> NDArray[np.float32]:
    """z = Wx + b of contents, float32 (n, k), of whatever length."""
    encoder: Encoder = searcher.encoders[modality][1]
    encoder.setup()
    try:
        features = encoder.encode(contents)
    except RecordError as error:
        raise UsageError(f"the {modality} encoder can't encode the medium with some parts masked: {error}") from error
    return linear_map.values(features, encoder.space)


def _embed(searcher: Searcher, modality: str, linear_map: LinearMap, contents: Sequence[Any]) -> NDArray[np.float32]:
    return linear_map.scoring.embeddings(_values(searcher, modality, linear_map, contents))


def _term(scoring: Scoring, candidate: NDArray[np.float32]) -> float:
    """What a candidate's score has beside the inner product."""
    terms = scoring.terms(candidate[np.newaxis])
    return 0.0 if terms is None else float(terms[0])


def _segments(searcher: Searcher, record: Record, modality: str) -> list[Segment]:
    """The normalized segments of one modality of a record."""
    cut = {modality: searcher.encoders[modality][0]}
    only = Record(record.id, {modality: record.media[modality]}, record.metadata, record.source)
    batches = [normalize_segments(batch, cut) for batch in segment_records(Batch((only,)), cut)]
    found = [segment for batch in batches if batch.modality for segment in batch.items]
    reasons = [failure.message for batch in batches for failure in batch.failures]
    reasons += [dropped.reason for batch in batches for dropped in batch.dropped]
    if not found and reasons:
        raise UsageError(f"the {modality} of {record.id!r} can't be used: {reasons[0]}")
    return found


def render(explanation: Explanation) -> str:
    """An explanation for the screen."""
    lines = [f"score {explanation.score:.3f}: {explanation.query.media} and {explanation.record.what}"]
    for side in (explanation.query, explanation.record):
        total = sum(part.adds for part in side.parts)
        lines += [
            "",
            f"{side.what} ({side.modality}): its parts add {total:+.3f}, without them it scores {side.rest:+.3f}",
            *(_grid(side.parts) if _is_grid(side.parts) else _bars(side.parts)),
        ]
    return "\n".join(lines)


def _is_grid(parts: Sequence[Part]) -> bool:
    return bool(parts) and len(parts[0].span) == 4


def _grid(parts: Sequence[Part]) -> list[str]:
    """Cells row by row: sign, and a shade by magnitude."""
    most = max(max(abs(part.adds) for part in parts), 1e-12)
    rows: dict[float, list[str]] = {}
    for part in parts:
        shade = _SHADES[round((len(_SHADES) - 1) * abs(part.adds) / most)]
        rows.setdefault(part.span[1], []).append(f"{'-' if part.adds < 0 and shade != ' ' else ' '}{shade * 2}")
    return [f"  |{''.join(cells)} |" for cells in rows.values()]


def _bars(parts: Sequence[Part]) -> list[str]:
    most = max((abs(part.adds) for part in parts), default=1) or 1
    names = [_shown(part.label) or f"{part.span[0]:.2f}-{part.span[1]:.2f} s" for part in parts]
    width = max(map(len, names), default=0)
    return [
        f"  {name:<{width}}  {part.adds:+.3f}  {('+' if part.adds >= 0 else '-') * round(_BAR * abs(part.adds) / most)}"
        for name, part in zip(names, parts, strict=True)
    ]


def _shown(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def write_overlay(explanation: Explanation, path: Path) -> None:
    """The pictures of a match with their cells tinted, red where they raise the score and blue where they lower it,
    side by side as a PNG.

    Raises:
        UsageError: neither side is a picture.
    """
    import io

    from PIL import Image

    tinted = [_tinted(side) for side in (explanation.query, explanation.record) if _is_grid(side.parts)]
    if not tinted:
        raise UsageError("--overlay draws on pictures, and neither the query nor the record's nearest segment is one")
    data = io.BytesIO()
    Image.fromarray(np.concatenate(tinted, axis=1)).save(data, "PNG")
    write_bytes(path, data.getvalue())


def _tinted(side: Side) -> NDArray[np.uint8]:
    """A picture (height, width, 3) with its cells tinted."""
    most = max(max(abs(part.adds) for part in side.parts), 1e-12)
    picture = side.content.astype(np.float32)
    for part in side.parts:
        left, top, right, bottom = map(int, part.span)
        strength = 0.7 * abs(part.adds) / most
        colour = np.array([255, 0, 0] if part.adds > 0 else [0, 0, 255], np.float32)
        picture[top:bottom, left:right] += strength * (colour - picture[top:bottom, left:right])
    return np.asarray(picture.round(), np.uint8)
