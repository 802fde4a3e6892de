"""The answers to a query as one page: pictures, sounds that play, texts with the words that fit the query marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmembed.errors import MmembedError
from mmembed.inputs.rows import TEXT_MODALITIES
from mmembed.pages import parts
from mmembed.pages.previews import Piece, show
from mmembed.search import Query, Searcher
from mmembed.types import Media, Neighbour

SHOWN = 60
"""Answers with their media, at most; of more, a table says what they are."""

ENCODINGS = 256
"""Of texts with a word left out, to see which words make a match, at most in one page."""

_METADATA = 8
_MARKS = "Marked in texts: the words that add to the score, the stronger the more."


def gallery(searcher: Searcher, query: Query, neighbours: Sequence[Neighbour]) -> str:
    """The page of a query and its answers.

    Media are read from the input again: what is gone is said in its place. In a text that was found, the words are
    marked that add most to its score, by leaving out each; beyond ENCODINGS, those that a text query has too.
    """
    asked = "".join(_asked(query))
    weights = _weights(searcher, query, neighbours[:SHOWN])
    cards = "".join(_card(searcher, found, weights.get(found.rank, {})) for found in neighbours[:SHOWN])
    kinds = ", ".join(dict.fromkeys(found.modality for found in neighbours))
    title = f"{len(neighbours):,} nearest of {kinds}" if neighbours else "Nothing found"
    body = [
        f"<h1>{parts.escape(title)}</h1>",
        f'<section class="card" style="max-width:560px"><h3>Query</h3>{asked}</section>',
        f'<p class="small soft">{_MARKS}</p>' if any(weights.values()) else "",
        f'<div class="cards">{cards}</div>',
        _table(neighbours[SHOWN:]),
    ]
    return parts.page(f"mmembed: {title}", "\n".join(body))


def _card(searcher: Searcher, found: Neighbour, weights: Mapping[str, float]) -> str:
    def find(name: str) -> Media:
        return searcher.media(found.id, found.modality, name)

    body = show(found.modality, [Piece(found.modality, found.span, found.media)], find, weights)
    twins = ", ".join(parts.isolated(id, 40) for id in found.twins[:5])
    more = f" and {len(found.twins) - 5:,} more" if len(found.twins) > 5 else ""
    same = f'<p class="small soft">Near duplicates: {twins}{more}</p>' if twins else ""
    head = f"<span>{found.rank}. {parts.isolated(found.id, 60)}</span>"
    tag = f"{found.score:.3f} {found.modality}"
    return parts.card(head, tag, f"{body}{same}{parts.facts(found.metadata, _METADATA)}")


def _table(neighbours: Sequence[Neighbour]) -> str:
    rows = [
        [str(n.rank), f"{n.score:.3f}", parts.escape(n.modality), parts.isolated(n.id), parts.isolated(n.media)]
        for n in neighbours
    ]
    return parts.table(["rank", "score", "modality", "id", "text or path"], rows, [0, 1]) if rows else ""


def _asked(query: Query) -> Iterator[str]:
    """What was looked for."""
    for clause in query.clauses:
        if clause.weight != 1:
            yield f'<p class="small soft">{"not wanted, " if clause.weight < 0 else ""}weight {clause.weight:g}:</p>'
        if isinstance(clause.value, Media):
            media, kind = clause.value, clause.kind
            name = media.name if kind in TEXT_MODALITIES else media.name.rsplit("/", 1)[-1]
            yield show(kind, [Piece(kind, (), name)], partial(_given, media))
        elif isinstance(clause.value, str):
            yield f"<p>What resembles the record {parts.isolated(clause.value)}.</p>"
        else:
            yield f"<p>A vector of {len(clause.value):,} values.</p>"


def _given(media: Media, name: str) -> Media:
    """The medium of a query, under whatever name."""
    return media


def _weights(searcher: Searcher, query: Query, neighbours: Sequence[Neighbour]) -> dict[int, dict[str, float]]:
    """By rank, how strongly the words of a text that was found are marked."""
    texts = [found for found in neighbours if found.modality in TEXT_MODALITIES]
    if not texts:
        return {}
    clauses = [clause for clause in query.clauses if clause.kind in TEXT_MODALITIES and clause.weight > 0]
    asked = {word for clause in clauses if isinstance(clause.value, Media) for word in parts.words(clause.value.name)}
    shared = {found.rank: {word: 0.6 for word in parts.words(found.media) if word in asked} for found in texts}
    try:
        return shared | dict(_by_leaving_out(searcher, searcher.embed(query).vector, texts))
    except MmembedError:  # the model of the encoder may be gone, and the page is worth having without it
        return shared


def _by_leaving_out(
    searcher: Searcher, vector: NDArray[np.float32], texts: Sequence[Neighbour]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Of the first texts, by rank, what each word adds to the score with a query (k,), in parts of the most."""
    left = ENCODINGS
    for found in texts:
        cut, encoder = searcher.encoders[found.modality]
        content = cut.normalize(found.media)
        spans = cut.parts(content)
        left -= len(spans) + 1
        if left < 0 or not spans:
            return
        encoder.setup()
        without = [cut.masked(content, [span]) for span in spans]
        there = [place for place, text in enumerate(without) if text]
        linear_map = searcher.map_of(found.modality)
        features = encoder.encode([content, *(without[place] for place in there)])
        scores = linear_map.values(features, encoder.space).astype(np.float64) @ vector
        adds = np.full(len(spans), float(scores[0]))
        adds[there] -= scores[1:]
        most = float(adds.max())
        weights: dict[str, float] = {}
        for (start, end), add in zip(spans, adds, strict=True):
            for word in parts.words(content[int(start) : int(end)]) if add > 0 else ():
                weights[word] = max(weights.get(word, 0.0), float(add) / most)
        yield found.rank, {word: weight for word, weight in weights.items() if weight >= 0.2}
