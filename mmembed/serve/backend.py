"""What the routes do, without HTTP: asked in several threads at once."""

from __future__ import annotations

import io
import time
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as pillow

import mmembed
from mmembed.errors import DatasetError, MmembedError, UsageError
from mmembed.explain import explain
from mmembed.search import Clause, Query, Searcher
from mmembed.serve import media
from mmembed.serve.answers import Answer, Hit, Info, Key, Match, Matches, Sample
from mmembed.serve.questions import Asked, Options, medium_query
from mmembed.serve.settings import MAX_K
from mmembed.types import Media, Span

SAMPLES = 12
"""Records of each modality that the page begins with."""

EXAMPLES = 12
"""Values of a metadata key that are shown; a key with more different ones shows none."""

THUMBNAILS = 4096
"""That are kept: some 50 MB."""


class Backend:
    """Answers questions about one data set."""

    def __init__(self, searcher: Searcher, max_upload: int) -> None:
        self.searcher, self._max_upload = searcher, max_upload
        self.thumbnail = lru_cache(THUMBNAILS)(self._thumbnail)

    @property
    def rows(self) -> dict[str, int]:
        """Segments by modality."""
        return dict(self.searcher.dataset.stage("project").summary["segments"])

    def warm(self) -> None:
        """Ask once with each modality, and for a medium: models are loaded, indexes opened and the input looked through
        before the first user comes."""
        picture, sound = io.BytesIO(), io.BytesIO()
        pillow.effect_noise((64, 64), 64).save(picture, "PNG")
        with wave.open(sound, "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(range(256)) * 125)
        parts: dict[str, str | bytes] = {"text": "a", "image": picture.getvalue(), "audio": sound.getvalue()}
        for modality in self.searcher.targets[:1]:
            if (head := self._head(modality)) is not None:
                with suppress(MmembedError):  # the input may be gone: then there are answers, but no media
                    self._media(head["id"][0].as_py(), modality)  # its units are counted at the first look
        for modality in self.searcher.askable:
            with suppress(UsageError):  # a filter of the data set may refuse such a query
                self.searcher.search(medium_query(modality, parts[modality]), k=1)

    def search(self, questions: Sequence[Options]) -> list[Answer | Exception]:
        """For each of some questions what it finds, or its error; those that ask for the same are searched together."""
        answers: dict[int, Answer | Exception] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, one in enumerate(questions):
            groups.setdefault((one.to, one.k, one.filter, one.segments, one.fold), []).append(place)
        for group in groups.values():
            answers.update(zip(group, self._together([questions[place] for place in group])))
        return [answers[place] for place in range(len(questions))]

    def _together(self, questions: Sequence[Options]) -> Sequence[Answer | Exception]:
        """Questions that ask for the same."""
        start, first = time.perf_counter(), questions[0]
        try:
            found = self.searcher.search_many(
                [question.asked.query for question in questions],
                to=first.to,
                k=first.k,
                filter=first.filter,
                segments=first.segments,
                fold=first.fold,
            )
        except Exception as error:  # of one of them: which, only each alone tells
            return [error] if len(questions) == 1 else [self._together([one])[0] for one in questions]
        milliseconds = 1000 * (time.perf_counter() - start)
        return [Answer(hits=[Hit.of(hit) for hit in hits], milliseconds=milliseconds) for hits in found]

    def explain(self, asked: Asked, record: str, to: str) -> Matches:
        """Why a query and a record match, by each part of the query.

        Raises:
            UsageError: as of `explain`.
        """
        found = [
            (name, weight, explain(self.searcher, self._medium(asked, name, query, to), record, to, anywhere=False))
            for name, weight, query in asked.queries
        ]
        return Matches(matches=[Match.of(*match) for match in found])

    def _medium(self, asked: Asked, name: str, query: Query, to: str) -> Query:
        """A query that is a medium: of a record, its medium of the modality that is looked at, or else its first."""
        if name != "id":
            return query
        id = str(asked.parts["id"])
        for modality in sorted(self.searcher.askable, key=lambda modality: modality != to):
            with suppress(UsageError):
                return Query((Clause(modality, self._media(id, modality)),))
        raise UsageError(f"the record {id!r} has no medium that can be explained")

    def _media(self, id: str, modality: str, name: str = "") -> Media:
        """A medium of a record, where the build found it: for one that is gone no request reads the whole input.

        Raises:
            UsageError: there is none.
        """
        return self.searcher.media(id, modality, name, anywhere=False)

    def text(self, id: str, name: str = "") -> str:
        """A text of a record, whole.

        Raises:
            UsageError: there is none.
            RecordError: it can't be read or decoded.
        """
        return str(self.searcher.encoders["text"][0].decode(self._media(id, "text", name)))

    def served(self, modality: str, id: str, name: str, wanted: str) -> media.Served:
        """A picture or a sound of a record, see `media.serve`.

        Raises:
            UsageError: there is none.
            RecordError: it can't be read or decoded.
            RangeError: it ends before what is asked for.
        """
        return media.serve(self._media(id, modality, name), modality, wanted)

    def _thumbnail(self, modality: str, id: str, name: str, span: Span) -> bytes:
        """A small picture of a picture or a sound of a record.

        Raises:
            UsageError: there is none.
            RecordError: it can't be read or decoded.
        """
        found = self._media(id, modality, name)
        return media.thumbnail(found, span) if modality == "image" else media.wave(found)

    def info(self) -> Info:
        """What is served, made once."""
        dataset = self.searcher.dataset
        rows = self.rows
        heads = {modality: head for modality in self.searcher.targets if (head := self._head(modality)) is not None}
        return Info(
            name=dataset.root.resolve().name,
            version=mmembed.__version__,
            records=dataset.stage("extract").summary["records"],
            rows=rows,
            targets=self.searcher.targets,
            askable=self.searcher.askable,
            chunked=bool(self.searcher.config.extract.text.words),
            keys=self._keys(heads),
            samples=[sample for modality, head in heads.items() for sample in _samples(modality, head)],
            max_k=MAX_K,
            max_upload=self._max_upload,
        )

    def _head(self, modality: str) -> pa.Table | None:
        """The first file of embeddings/<modality>, without the embeddings."""
        paths = self.searcher.dataset.below(f"embeddings/{modality}")
        for path, file in paths.items():
            if file.rows:
                try:
                    with (
                        (self.searcher.dataset.root / path).open("rb") as content,
                        pq.ParquetFile(content) as opened,
                    ):
                        names = [name for name in ("id", "media", "metadata") if name in opened.schema_arrow.names]
                        return opened.read(names, use_threads=False)
                except (OSError, pa.ArrowException) as error:
                    raise DatasetError(f"can't read {path} ({error}): build the data set again") from error
        return None

    def _keys(self, heads: Mapping[str, pa.Table]) -> list[Key]:
        """The keys of the metadata, with values that some first rows have more than once."""
        kinds: Mapping[str, str] = self.searcher.dataset.stage("project").summary["kinds"]
        found: dict[str, Counter[Any]] = {name: Counter() for name in kinds}
        for head in heads.values():
            if "metadata" in head.column_names:
                for row in head["metadata"].to_pylist():
                    for name, value in (row or {}).items():
                        if value is not None and isinstance(value, str | int | float) and kinds.get(name) != "json":
                            found[name][value] += 1
        return [Key(name=name, kind=kind, examples=_common(found[name])) for name, kind in kinds.items()]


def _common(counts: Counter[Any]) -> list[Any]:
    """The values of a key, if they are few and come again."""
    few = len(counts) <= EXAMPLES and counts.total() > len(counts)
    return sorted(counts, key=lambda value: (-counts[value], str(value))) if few else []


def _samples(modality: str, head: pa.Table) -> list[Sample]:
    ids = head["id"].to_pylist()
    first = {id: place for place, id in reversed(list(enumerate(ids)))}
    names = head["media"].to_pylist()
    distinct = list(first)[::-1]
    chosen = distinct[:: max(1, len(distinct) // SAMPLES)][:SAMPLES]
    return [Sample(modality=modality, id=id, media=names[first[id]][:300]) for id in chosen]
