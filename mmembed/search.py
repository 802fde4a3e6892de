"""Search: texts, pictures, sounds or records of the data set in; the nearest segments of any modality out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

import mmembed.config
from mmembed import files
from mmembed.dataset import Dataset
from mmembed.encoders import Encoder
from mmembed.errors import SpaceError, UsageError
from mmembed.files import Place
from mmembed.filters import Filter, kept_by
from mmembed.index import Index, open_modality, query_rows, scoring_of
from mmembed.inputs import Source, open_source
from mmembed.linear import LinearMap, Scoring, normalize_rows
from mmembed.modalities import Modality
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.types import Batch, Media, Neighbour, Record, Space, Unit

ANY = "any"
"""In place of a target modality: all of them."""

BEST, ALL = "best", "all"
"""Which segments of a record are answers: the best of each modality, or all."""

SAME = 0.99
"""Inner product of two embeddings, as unit vectors, from which on they are near duplicates."""

_ID, _VECTOR = "id", "vector"
_FILTERS_KEPT = 32
_DEEPEST = 4096  # rows that are looked at where near duplicates are folded
_UNITS_KEPT = 4  # of the input: each holds as many records, with the media within them, as a worker of the build does
_GROWTH = 4  # how many times more is asked for where too much of what was found can't be an answer

Vector = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Clause:
    """One of the things that a query asks with.

    Attributes:
        kind: a modality, "id" or "vector".
        value: a medium, the id of a record of the data set, or an embedding, float32 (k,).
        weight: of its embedding in the query's; negative for what is not wanted.
    """

    kind: str
    value: Media | str | Vector
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Query:
    """What is looked for: what resembles media, records of the data set, embeddings, or several of them together.

    Queries can be added and weighted: `Query.of(image="street.jpg") + 0.5 * Query.of(text="at night")`; what is
    subtracted is not wanted.
    """

    clauses: tuple[Clause, ...]

    @classmethod
    def of(
        cls,
        *,
        text: str | None = None,
        image: Path | str | bytes | None = None,
        audio: Path | str | bytes | None = None,
        id: str | None = None,
        vector: Vector | None = None,
    ) -> Query:
        """The query of all that is given, with equal weights.

        Args:
            image, audio: the path of a file, or its content.
            id: of a record of the data set; it is not among its own answers.
            vector: an embedding of the data set's space, (k,).

        Raises:
            UsageError: nothing is given.
        """
        given = {
            "text": None if text is None else Media(content=text),
            "image": _file(image),
            "audio": _file(audio),
            _ID: id,
            _VECTOR: vector,
        }
        clauses = tuple(Clause(kind, value) for kind, value in given.items() if value is not None)
        if not clauses:
            raise UsageError("a query needs a text, an image, an audio, an id or a vector")
        return cls(clauses)

    def __add__(self, other: Query) -> Query:
        return Query((*self.clauses, *other.clauses))

    def __sub__(self, other: Query) -> Query:
        return self + -other

    def __neg__(self) -> Query:
        return -1 * self

    def __mul__(self, weight: float) -> Query:
        return Query(tuple(replace(clause, weight=weight * clause.weight) for clause in self.clauses))

    __rmul__ = __mul__

    @property
    def ids(self) -> list[str]:
        """Of the records that it asks with."""
        return [str(clause.value) for clause in self.clauses if clause.kind == _ID]

    def medium(self) -> tuple[str, Media]:
        """The modality and the medium of a query that is one medium.

        Raises:
            UsageError: it is something else.
        """
        if len(self.clauses) == 1 and isinstance(self.clauses[0].value, Media):
            return self.clauses[0].kind, self.clauses[0].value
        raise UsageError("this takes a query that is one text, image or audio")


def _file(value: Path | str | bytes | None) -> Media | None:
    if value is None:
        return None
    return Media(content=value) if isinstance(value, bytes) else Media(path=str(Path(value)))


@dataclass(frozen=True, eq=False)
class Embedded:
    """A query in the shared space.

    Attributes:
        vector: float32 (k,).
        shares: how much of it is of each modality, 1 in all; less where it is of vectors.
    """

    vector: Vector
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Searcher:
    """Answers queries about one data set. Indexes, maps and models are opened at their first use and kept; several
    threads may ask at once.

    Attributes:
        encoders: by modality, how a query becomes a feature; they must be those that the data set was made with.
        config: that the data set was made with.
    """

    dataset: Dataset
    encoders: Mapping[str, tuple[Modality, Encoder]]
    config: mmembed.config.Config = mmembed.config.Config()
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, root: Place | str) -> Searcher:
        """A searcher with the data set's own configuration.

        Raises:
            UsageError: there is no data set, or its configuration names an encoder that can't be had.
            DatasetError: its manifest is damaged.
        """
        dataset = Dataset.open(files.place(root))
        config = mmembed.config.from_json(mmembed.config.Config(), dict(dataset.config))
        return cls(dataset, mmembed.config.Parts(config.extract), config)

    def search(
        self,
        query: Query | None = None,
        to: str = ANY,
        k: int = 10,
        *,
        text: str | None = None,
        image: Path | str | bytes | None = None,
        audio: Path | str | bytes | None = None,
        id: str | None = None,
        vector: Vector | None = None,
        filter: Filter = "",
        segments: str = BEST,
        fold: bool = False,
    ) -> list[Neighbour]:
        """The k segments nearest to a query, best first; fewer where there are fewer.

        Scores are exact inner products, with the candidate's own term where the data set has one. With to="any" those
        of all modalities are merged as they are: segments of the query's own modality tend to score higher than equally
        fitting ones of another (the "modality gap"), so ask for one modality to see its best.

        Args:
            query: or the parts of one: text, image, audio, id, vector, as of `Query.of`.
            to: the modality of the answers, or "any". A record that is asked with is not among its own answers.
            filter: an SQL condition over the metadata, or an expression of pyarrow, see `mmembed.filters`.
            segments: "best": of each record's segments of a modality, the best alone; "all".
            fold: answers that are nearly the same as a better one (see SAME) are named there as its twins.

        Raises:
            UsageError: k, the modality, the filter or the id is unknown or out of range, the query can't be read or
                decoded, or a stage that is needed has not been run.
            DatasetError: a file of the data set is damaged, or its index is not of its embeddings.
        """
        parts = {"text": text, "image": image, "audio": audio, "id": id, "vector": vector}
        if query is None or any(part is not None for part in parts.values()):
            given = Query.of(text=text, image=image, audio=audio, id=id, vector=vector)
            query = given if query is None else query + given
        return self.search_many([query], to, k, filter=filter, segments=segments, fold=fold)[0]

    def search_many(
        self,
        queries: Sequence[Query],
        to: str = ANY,
        k: int = 10,
        *,
        filter: Filter = "",
        segments: str = BEST,
        fold: bool = False,
    ) -> list[list[Neighbour]]:
        """The answers to several queries, which are searched together; as of `search`."""
        if k < 1:
            raise UsageError(f"k = {k}: must be at least 1")
        if segments not in (BEST, ALL):
            raise UsageError(f"segments = {segments!r}: must be {BEST} or {ALL}")
        targets = self._targets(to)
        asked = [self.embed(query) for query in queries]
        without = [set(query.ids) for query in queries]
        hits: list[list[_Hit]] = [[] for _ in queries]
        for modality in targets if queries else []:
            index = self.index(modality)
            is_best = segments == BEST and index.has_several_a_record
            wanted = _Wanted(k, self._filter(filter, modality), is_best, fold)
            rows = np.concatenate([query_rows(one.vector[np.newaxis], one.shares, index.columns) for one in asked])
            for found, more in zip(hits, wanted.best(index, modality, rows, without)):
                found += more
        if len(targets) > 1:
            hits = [sorted(found, key=_Hit.order)[:k] for found in hits]
        return [self._neighbours(found) for found in hits]

    def _neighbours(self, hits: Sequence[_Hit]) -> list[Neighbour]:
        """Hits with what their rows say."""
        rows: dict[str, list[int]] = {}
        for hit in hits:
            rows.setdefault(hit.modality, []).append(hit.row)
        said = {modality: iter(self.index(modality).answers_at(found)) for modality, found in rows.items()}
        found = []
        for rank, hit in enumerate(hits, 1):
            id, segment, span, media, metadata = next(said[hit.modality])
            neighbour = Neighbour(rank, hit.score, hit.modality, id, segment, tuple(span), media, metadata, hit.twins)
            found.append(neighbour)
        return found

    @cached_property
    def targets(self) -> list[str]:
        """The modalities that answers can be of."""
        segments: Mapping[str, int] = self.dataset.stage("project").summary["segments"]
        return [modality for modality, count in segments.items() if count]

    @property
    def askable(self) -> list[str]:
        """The modalities that queries can be of."""
        return [name for name in self.dataset.modalities("fit") if name in self.dataset.modalities("extract")]

    def index(self, modality: str) -> Index:
        """The index of a modality, opened at its first use.

        Raises: as of `mmembed.index.open_modality`.
        """
        return self._keep(("index", modality), lambda: open_modality(self.dataset, modality))

    def _keep(self, key: Any, make: Callable[[], T]) -> T:
        """What was made at the first use."""
        if key not in self._kept:
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = make()
        found: T = self._kept[key]
        return found

    @cached_property
    def _space(self) -> Space:
        """The one space of all embeddings."""
        spaces = self.dataset.modalities("project")
        if not spaces:
            raise UsageError(f"{self.dataset.root} has no embeddings to search: see its errors/ and build it again")
        first = next(iter(spaces.values()))
        for modality, space in spaces.items():
            first.check(space, f"embeddings/{modality}")
        return first

    @cached_property
    def _scoring(self) -> Scoring:
        return scoring_of(self.dataset)

    def _targets(self, to: str) -> list[str]:
        _ = self._space
        known = self.targets
        if to not in (ANY, *known):
            raise UsageError(f"{self.dataset.root} has no embeddings of {to!r}: ask for {', '.join([*known, ANY])}")
        return known if to == ANY else [to]

    def embed(self, query: Query) -> Embedded:
        """The embedding of a query: the weighted mean over its clauses, those of media and records the means over their
        segments.

        Raises:
            UsageError: a medium can't be read, decoded or mapped, an id is unknown, a vector is of another space, or
                the clauses cancel each other out.
        """
        if not isinstance(query, Query):
            raise UsageError(f"{query!r} is no query: make one, as by Query.of(text=…), or give it by name, as text=…")
        if not query.clauses:
            raise UsageError("a query needs a text, an image, an audio, an id or a vector")
        embedded = [self._embed(clause) for clause in query.clauses]
        if len(embedded) == 1 and query.clauses[0].weight == 1:
            return embedded[0]
        weights = np.array([clause.weight for clause in query.clauses], np.float64)
        if not np.isfinite(weights).all():
            raise UsageError(f"the weights of a query must be finite numbers, not {weights.tolist()}")
        weights /= np.abs(weights).max() or 1.0  # first, for the sum of large ones would overflow
        weights /= np.abs(weights).sum() or 1.0
        vector = weights.astype(np.float32) @ np.stack([one.vector for one in embedded])
        if np.linalg.norm(vector) < 1e-6:
            raise UsageError("the parts of the query cancel each other out: change their weights")
        shares: dict[str, float] = {}
        for one, weight in zip(embedded, np.abs(weights)):
            for name, share in one.shares.items():
                shares[name] = shares.get(name, 0.0) + float(weight) * share
        return Embedded(self._scoring.embeddings(vector[np.newaxis])[0], shares)

    def _embed(self, clause: Clause) -> Embedded:
        if isinstance(clause.value, Media):
            linear_map = self.map_of(clause.kind)
            features = self._features(clause.kind, clause.value)
            embeddings = linear_map.apply(features, self.encoders[clause.kind][1].space)
            return Embedded(self._mean(embeddings), {clause.kind: 1.0})
        if isinstance(clause.value, str):
            return self._of_record(clause.value)
        vector = np.asarray(clause.value, np.float32)
        if vector.shape != (self._space.dim,) or not np.isfinite(vector).all() or not vector.any():
            raise UsageError(
                f"the vector of a query must be {self._space.dim} finite values of space {self._space}, not of shape "
                f"{vector.shape}"
            )
        return Embedded(self._scoring.embeddings(vector[np.newaxis])[0], {})

    def map_of(self, modality: str) -> LinearMap:
        """The map of a modality, checked against its encoder and the embeddings; read at its first use.

        Raises:
            UsageError: there is none.
            SpaceError: it is of another space than the encoder or the embeddings.
        """
        return self._keep(("map", modality), lambda: self._map_of(modality))

    def _map_of(self, modality: str) -> LinearMap:
        extracted, mapped = self.dataset.modalities("extract"), self.dataset.modalities("fit")
        if modality not in extracted or modality not in mapped:
            raise UsageError(f"{self.dataset.root} has no map of {modality} queries: ask with {', '.join(mapped)}")
        space = self._encoder(modality).space
        if space != extracted[modality]:
            raise SpaceError(
                f"the {modality} encoder is {space}, but {self.dataset.root} was made with {extracted[modality]}: the "
                "model, or what tells how it is fed, has changed; restore it, or build again with --overwrite"
            )
        path = f"maps/{modality}.safetensors"
        linear_map = LinearMap.from_bytes(self.dataset.read(path))
        self._space.check(linear_map.output, str(self.dataset.root / path))
        return linear_map

    def _encoder(self, modality: str) -> Encoder:
        try:
            return self.encoders[modality][1]
        except UsageError as error:
            moved = f"{self.dataset.root} was made with it: where it was moved, run its build with the new path"
            raise UsageError(f"{error}; {moved}") from error

    def _features(self, modality: str, media: Media) -> Vector:
        """Features (segments, d) of a medium, by the very steps that made the data set's."""
        cut, encoder = self.encoders[modality]
        self._keep(("encoder", modality), encoder.setup)
        features: list[Vector] = []
        for batch in segment_records(Batch((Record("query", {modality: (media,)}),)), {modality: cut}):
            encoded = encode_segments(normalize_segments(batch, {modality: cut}), {modality: encoder})
            if reasons := [f.message for f in encoded.failures] + [d.reason for d in encoded.dropped]:
                raise UsageError(f"the {modality} query can't be used: {reasons[0]}")
            if encoded.modality:
                features += [segment.data for segment in encoded.items]
        return np.stack(features)

    def _of_record(self, id: str) -> Embedded:
        """The embedding of a record: the mean over its modalities of the means over their segments."""
        rows = self._rows_of(id)
        means = [self._mean(self.index(name).vectors_of(found)[:, : self._space.dim]) for name, found in rows.items()]
        return Embedded(self._mean(np.stack(means)), dict.fromkeys(rows, 1 / len(rows)))

    def _mean(self, embeddings: Vector) -> Vector:
        """The mean (k,) of embeddings (n, k), as an embedding."""
        mean: Vector = self._scoring.means(embeddings, np.zeros(1, np.int64))[0]
        return mean

    def _rows_of(self, id: str) -> dict[str, NDArray[np.int64]]:
        """Row numbers of a record's segments by modality."""
        found = {name: self.index(name).rows_of(id) for name in self._targets(ANY)}
        if not any(map(len, found.values())):
            raise UsageError(f"{self.dataset.root} has no embeddings of a record with the id {id!r}")
        return {name: rows for name, rows in found.items() if len(rows)}

    def _filter(self, condition: Filter, modality: str) -> NDArray[np.bool_] | None:
        """Which rows of an index a filter keeps; those of the last SQL conditions are remembered."""
        if not isinstance(condition, str):
            return kept_by(condition, self.index(modality).rows)
        if not condition.strip():
            return None
        return self._kept_by(modality, condition)

    @cached_property
    def _kept_by(self) -> Callable[[str, str], NDArray[np.bool_]]:
        """What conditions keep of a modality's rows; computing it takes its time, and others go on meanwhile."""
        return lru_cache(_FILTERS_KEPT)(lambda modality, condition: kept_by(condition, self.index(modality).rows))

    def record(self, id: str, *, anywhere: bool = True) -> Record:
        """A record as the input holds it; the unit that held it at the build is looked into first.

        Args:
            anywhere: whether the other units are looked into too: that may read the whole input.

        Raises:
            UsageError: nothing of such a record was embedded, or it is no longer in the input.
        """
        source, units = self._input
        modality, rows = next(iter(self._rows_of(id).items()))
        ends = np.cumsum([file.rows or 0 for file in self.dataset.below(f"embeddings/{modality}").values()])
        known = int(np.searchsorted(ends, rows[0], side="right"))
        if known < len(units) and (found := self._records(known).get(id)):
            return found
        for unit in units if anywhere else ():
            if unit.number != known and (found := _by_id(source.read(unit)[0]).get(id)):
                return found
        raise UsageError(f"the record {id!r} is no longer in {self.dataset.input}: its media are needed")

    @cached_property
    def _records(self) -> Callable[[int], Mapping[str, Record]]:
        """Records of a unit, by id; those of the last units are remembered, for a page asks for many of the same."""
        source, units = self._input
        return lru_cache(_UNITS_KEPT)(lambda number: _by_id(source.read(units[number])[0]))

    @cached_property
    def _input(self) -> tuple[Source, list[Unit]]:
        config = self.config.extract
        source = open_source(self.dataset.input, config.choice)
        return source, source.units(config.unit_records)

    def media(self, id: str, modality: str, name: str = "", *, anywhere: bool = True) -> Media:
        """A medium of a record of the data set, to be opened: nothing else can be asked for.

        Args:
            name: what an answer has as `media`, or how that begins, which tells several media of a record apart.
            anywhere: as of `record`.

        Raises:
            UsageError: there is no such record, or no such medium of it.
        """
        media = self.record(id, anywhere=anywhere).media.get(modality, ())
        found = [medium for medium in media if medium.name == name]
        found += [medium for medium in media if medium.name.startswith(name)] or media[:1]
        if not found:
            raise UsageError(f"the record {id!r} has no {modality}")
        return found[0]


def _by_id(records: Sequence[Record]) -> dict[str, Record]:
    """The first of each id."""
    return {record.id: record for record in reversed(records)}


class _Hit(NamedTuple):
    """A row of an index that is an answer, and the ids of those that are nearly the same."""

    score: float
    modality: str
    row: int
    twins: tuple[str, ...] = ()

    def order(self) -> tuple[float, str, int]:
        """Best first, ties by modality and row."""
        return -self.score, self.modality, self.row


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What of the rows that an index finds is an answer.

    Attributes:
        k: how many answers.
        kept: rows that a filter keeps, bool (n,).
        one_a_record: whether of each record's rows the best is an answer alone.
        fold: whether near duplicates are folded.
    """

    k: int
    kept: NDArray[np.bool_] | None
    one_a_record: bool
    fold: bool

    def best(self, index: Index, modality: str, queries: Vector, without: Sequence[set[str]]) -> list[list[_Hit]]:
        """The k best hits for each query; more rows are looked at until there are so many, or no more rows.

        Args:
            queries: float32 (q, k + terms), see `mmembed.index.query_rows`.
            without: for each, ids whose rows are no answers.
        """
        rows = len(index)
        asked = 2 * self.k if self.one_a_record or self.fold or any(without) else self.k
        most = min(rows, max(_DEEPEST, self.k)) if self.fold else rows
        answers: list[list[_Hit]] = [[] for _ in without]
        waiting = list(range(len(without))) if rows else []
        while waiting:
            asked = min(asked, most)
            scores, found = index.search(queries, asked, self.kept)
            for number, place in enumerate(waiting):
                answers[place] = self._answers(index, modality, scores[number], found[number], without[place])
            if asked == most:
                break
            short = [
                number
                for number, place in enumerate(waiting)
                if len(answers[place]) < self.k and (found[number] >= 0).all()
            ]
            waiting, queries = [waiting[number] for number in short], queries[short] if short else queries
            asked *= _GROWTH
        return [hits[: self.k] for hits in answers]

    def _answers(
        self, index: Index, modality: str, scores: Vector, found: NDArray[np.int64], without: set[str]
    ) -> list[_Hit]:
        hits = [_Hit(score, modality, row) for score, row in zip(scores.tolist(), found.tolist()) if row >= 0]
        if self.one_a_record or without:
            seen, left = set(without), []
            for hit, id in zip(hits, index.ids([hit.row for hit in hits])):
                if id not in seen:
                    left.append(hit)
                if self.one_a_record:
                    seen.add(id)
            hits = left
        return _folded(index, hits, self.k) if self.fold and hits else hits


def _folded(index: Index, hits: Sequence[_Hit], k: int) -> list[_Hit]:
    """The first k hits that are not nearly the same as a better one, which has the ids of other records that are."""
    rows = [hit.row for hit in hits]
    vectors = normalize_rows(index.vectors_of(np.array(rows))[:, : index.entry["space"]["dim"]])
    ids = index.ids(rows)
    leaders: list[int] = []
    twins: dict[int, dict[str, None]] = {}
    for place, vector in enumerate(vectors):
        alike = np.flatnonzero(vectors[leaders] @ vector >= SAME)
        if len(alike):
            twins[leaders[alike[0]]][ids[place]] = None
        elif len(leaders) < k:
            leaders.append(place)
            twins[place] = {}
    return [
        hits[place]._replace(twins=tuple(id for id in others if id != ids[place])) for place, others in twins.items()
    ]
