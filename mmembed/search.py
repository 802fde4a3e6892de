"""Search: a text, a picture, a sound or a record of the data set in; the nearest segments of any modality out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import mmembed.config
from mmembed.dataset import Dataset
from mmembed.encoders import Encoder
from mmembed.errors import DatasetError, SpaceError, UsageError
from mmembed.index import entry_of, open_modality, query_rows, scoring_of
from mmembed.linear import LinearMap
from mmembed.modalities import Modality
from mmembed.shards import read_table
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.tables import vectors_from_arrow
from mmembed.types import Batch, Media, Neighbour, Record, Space

ANY = "any"
"""In place of a target modality: all of them."""


@dataclass(frozen=True)
class Query:
    """What is looked for: what resembles a medium, or what resembles a record of the data set.

    Attributes:
        media: one medium by its modality; empty where the query is a record.
        id: of the record; None where the query is a medium.
    """

    media: Mapping[str, Media] = field(default_factory=dict)
    id: str | None = None

    def __post_init__(self) -> None:
        given = [*self.media, *(["id"] if self.id is not None else [])]
        if len(given) != 1:
            raise UsageError(
                f"a query is exactly one of text, image, audio and id, not {' and '.join(given) or 'none of them'}"
            )

    @classmethod
    def of(
        cls, *, text: str | None = None, image: Path | None = None, audio: Path | None = None, id: str | None = None
    ) -> Query:
        """The query that is given; the others are None.

        Raises:
            UsageError: none is given, or several are.
        """
        media = {
            "text": None if text is None else Media(content=text),
            "image": None if image is None else Media(path=str(Path(image))),
            "audio": None if audio is None else Media(path=str(Path(audio))),
        }
        return cls({name: value for name, value in media.items() if value is not None}, id)


@dataclass(frozen=True, eq=False)
class Embedded:
    """A query in the shared space.

    Attributes:
        vector: float32 (k,).
        shares: how much of it is of each modality, 1 in all.
    """

    vector: NDArray[np.float32]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Searcher:
    """Answers queries about one data set; an index is opened at its first use and kept.

    Attributes:
        encoders: by modality, how a query becomes a feature; they must be those that the data set was made with.
        config: that the data set was made with.
    """

    dataset: Dataset
    encoders: Mapping[str, tuple[Modality, Encoder]]
    config: mmembed.config.Config = mmembed.config.Config()
    _indexes: dict[str, tuple[Any, list[str]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, root: Path) -> Searcher:
        """A searcher with the data set's own configuration.

        Raises:
            UsageError: there is no data set, or its configuration names an encoder that can't be had.
            DatasetError: its manifest is damaged.
        """
        dataset = Dataset.open(root)
        config = mmembed.config.from_json(mmembed.config.Config(), dict(dataset.config))
        return cls(dataset, mmembed.config.Parts(config.extract), config)

    def search(self, query: Query, to: str = ANY, k: int = 10) -> list[Neighbour]:
        """The k segments nearest to a query, best first; fewer where there are fewer.

        Scores are exact inner products, with the candidate's own term where the data set has one. With to="any" those
        of all modalities are merged as they are: segments of the query's own modality tend to score higher than equally
        fitting ones of another (the "modality gap"), so ask for one modality to see its best.

        Args:
            to: the modality of the answers, or "any". A record that is the query is not among its own answers.

        Raises:
            UsageError: k, the modality or the id is unknown or out of range, the query can't be read or decoded, or a
                stage that is needed has not been run.
            DatasetError: a file of the data set is damaged, or its index is not of its embeddings.
        """
        if k < 1:
            raise UsageError(f"k = {k}: must be at least 1")
        targets = self._targets(to)
        own = {} if query.id is None else self._rows_of(query.id)
        asked = self._of_record(own) if own else self.embed(query)
        hits = [hit for modality in targets for hit in self._hits(asked, modality, own.get(modality, []), k)]
        return self._neighbours(sorted(hits, key=lambda hit: (-hit[0], *hit[1:]))[:k])

    @property
    def _space(self) -> Space:
        """The one space of all embeddings."""
        spaces = self.dataset.modalities("project")
        if not spaces:
            raise UsageError(f"{self.dataset.root} has no embeddings to search: see its errors/ and build it again")
        first = next(iter(spaces.values()))
        for modality, space in spaces.items():
            first.check(space, f"embeddings/{modality}")
        return first

    def _targets(self, to: str) -> list[str]:
        segments: Mapping[str, int] = self.dataset.stage("project").summary["segments"]
        known = [modality for modality, count in segments.items() if count]
        if to not in (ANY, *known):
            raise UsageError(f"{self.dataset.root} has no embeddings of {to!r}: ask for {', '.join([*known, ANY])}")
        return known if to == ANY else [to]

    def embed(self, query: Query) -> Embedded:
        """The embedding of a query that is a medium: the mean over its segments.

        Raises:
            UsageError: it can't be read, decoded or mapped.
        """
        ((modality, media),) = query.media.items()
        linear_map = self.map_of(modality)
        embeddings = linear_map.apply(self._features(modality, media), self.encoders[modality][1].space)
        return Embedded(self._mean(embeddings), {modality: 1.0})

    def unit_of(self, id: str) -> int:
        """The number of the unit that a record was extracted in.

        Raises:
            UsageError: nothing of such a record was embedded.
        """
        modality, (row, *_) = next(iter(self._rows_of(id).items()))
        ends = np.cumsum([file.rows or 0 for file in self.dataset.below(f"embeddings/{modality}").values()])
        return int(np.searchsorted(ends, row, side="right"))

    def map_of(self, modality: str) -> LinearMap:
        """The map of a modality, checked against its encoder and the embeddings.

        Raises:
            UsageError: there is none.
            SpaceError: it is of another space than the encoder or the embeddings.
        """
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

    def _features(self, modality: str, media: Media) -> NDArray[np.float32]:
        """Features (segments, d) of a medium, by the very steps that made the data set's."""
        cut, encoder = self.encoders[modality]
        encoder.setup()
        features: list[NDArray[np.float32]] = []
        for batch in segment_records(Batch((Record("query", {modality: (media,)}),)), {modality: cut}):
            encoded = encode_segments(normalize_segments(batch, {modality: cut}), {modality: encoder})
            if reasons := [f.message for f in encoded.failures] + [d.reason for d in encoded.dropped]:
                raise UsageError(f"the {modality} query can't be used: {reasons[0]}")
            if encoded.modality:
                features += [segment.data for segment in encoded.items]
        return np.stack(features)

    def _of_record(self, rows: Mapping[str, Sequence[int]]) -> Embedded:
        """The embedding of a record: the mean over its modalities of the means over their segments."""
        tables = [self._table(modality, numbers) for modality, numbers in rows.items()]
        means = np.stack([self._mean(vectors_from_arrow(table["embedding"])) for table in tables])
        return Embedded(self._mean(means), dict.fromkeys(rows, 1 / len(rows)))

    def _mean(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean (k,) of embeddings (n, k), as an embedding."""
        mean: NDArray[np.float32] = scoring_of(self.dataset).means(embeddings, np.zeros(1, np.int64))[0]
        return mean

    def _rows_of(self, id: str) -> dict[str, list[int]]:
        """Row numbers of a record's segments by modality. Only id columns are read, and unchecked: what is used of the
        rows found is read again, checked."""
        found, part = {}, ""
        for modality in self._targets(ANY):
            start = 0
            for path, file in self.dataset.below(f"embeddings/{modality}").items():
                # A record lies in the part of one number in all modalities: once found, no other needs a look.
                if path.endswith(part) and (rows := _positions(self.dataset.root / path, id)):
                    found[modality] = [start + row for row in rows]
                    part = path.rsplit("/", 1)[1]
                    break
                start += file.rows or 0
        if not found:
            raise UsageError(f"{self.dataset.root} has no embeddings of a record with the id {id!r}")
        return found

    def _hits(self, asked: Embedded, modality: str, without: Sequence[int], k: int) -> list[tuple[float, str, int]]:
        """(score, modality, row) of the k best rows, ties by row number, without some rows."""
        self.dataset.modalities("project")[modality].check(self._space, "the query")
        if modality not in self._indexes:
            self._indexes[modality] = (
                open_modality(self.dataset, modality),
                entry_of(self.dataset, modality)["terms"],
            )
        index, columns = self._indexes[modality]
        query = query_rows(asked.vector[np.newaxis], asked.shares, columns)
        needed = min(k + len(without), index.ntotal)
        if needed == 0:
            return []
        fetched = needed
        while True:
            # FAISS keeps any of the rows that tie for the last place: ask for more until the tie is seen whole.
            fetched = min(2 * fetched, index.ntotal)
            scores, rows = (found[0] for found in index.search(query, fetched))
            if fetched == index.ntotal or scores[-1] < scores[needed - 1]:
                break
        best = [i for i in np.lexsort((rows, -scores)) if rows[i] not in without][:k]
        return [(float(scores[i]), modality, int(rows[i])) for i in best]

    def _neighbours(self, hits: Sequence[tuple[float, str, int]]) -> list[Neighbour]:
        """Hits with what their rows say."""
        numbers: dict[str, list[int]] = {}
        for _, modality, row in hits:
            numbers.setdefault(modality, []).append(row)
        rows = {
            (modality, row): values
            for modality, wanted in numbers.items()
            for row, values in zip(
                wanted, self._table(modality, wanted).drop_columns(["embedding"]).to_pylist(), strict=True
            )
        }
        kinds = self.dataset.stage("project").summary["kinds"]
        return [
            _neighbour(rank, score, modality, rows[modality, row], kinds)
            for rank, (score, modality, row) in enumerate(hits, 1)
        ]

    def _table(self, modality: str, rows: Sequence[int]) -> pa.Table:
        """Rows (at least one) of embeddings/<modality>, in the order given; only the files that hold them are read."""
        files = self.dataset.below(f"embeddings/{modality}")
        paths, starts = list(files), np.cumsum([0, *(file.rows or 0 for file in files.values())])
        ascending = np.sort(rows)
        owners = np.searchsorted(starts, ascending, side="right") - 1
        parts = [
            read_table(self.dataset.read(paths[owner])).take(pa.array(ascending[owners == owner] - starts[owner]))
            for owner in np.unique(owners)
        ]
        return pa.concat_tables(parts).take(pa.array(np.searchsorted(ascending, rows)))


def _positions(path: Path, id: str) -> list[int]:
    """The rows of an embeddings file that are of a record."""
    try:
        with pq.ParquetFile(path) as file:
            ids = file.read(["id"], use_threads=False)["id"]
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"can't read {path} ({error}): build the data set again") from error
    # As bytes: what is no UTF-8 on the command line arrives with halves of surrogate pairs, and equals no id.
    same = pc.equal(ids.cast(pa.binary()), id.encode("utf-8", "surrogatepass"))
    return [int(row) for row in np.flatnonzero(same.to_numpy())]


def _neighbour(rank: int, score: float, modality: str, row: Mapping[str, Any], kinds: Mapping[str, str]) -> Neighbour:
    # The column holds every key of the data set: those that the record lacks are null. Mixed values are JSON text.
    metadata = {
        key: json.loads(value) if kinds.get(key) == "json" else value
        for key, value in (row.get("metadata") or {}).items()
        if value is not None
    }
    return Neighbour(rank, score, modality, row["id"], row["segment"], tuple(row["span"]), row["media"], metadata)
