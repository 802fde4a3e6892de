"""Indexes as they lie on disk: FAISS id = row number in embeddings/<modality>, in file order.

A row is an embedding, and behind it what else its score has: a coordinate for each modality of queries ("any" where all
have the same), in which a query has 1. So a plain inner product is the whole score.

Beside a modality's FAISS index lie its rows: what is known of them (index/<modality>.arrow), and, where the index holds
them compressed or in another order, the rows themselves (index/<modality>.npy). All are mapped into memory, not read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmembed import kinds
from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, UsageError
from mmembed.hubness import bank_of, csls_terms
from mmembed.kinds import Kind, Rows
from mmembed.linear import Scoring
from mmembed.shards import fetched, fingerprint, is_sealed
from mmembed.tables import first_of_runs, vectors_from_arrow
from mmembed.types import Space

VERSION = "5"
"""Of the way indexes are built: a change of it needs another one, so that what was made before is made again."""

ANY_QUERY = "any"
"""Stands for all modalities of queries."""

Array = NDArray[np.float32]
Banks = Mapping[str, Array]

ANSWER = "answer"
"""The column of index/<modality>.arrow that holds what an answer says of a row, as JSON."""

ENTRIES = "index/index.json"
"""JSON: an entry for each modality."""


def index_path(modality: str) -> str:
    """The relative path of a modality's FAISS index."""
    return f"index/{modality}.faiss"


def rows_path(modality: str) -> str:
    """The relative path of what its rows say."""
    return f"index/{modality}.arrow"


def vectors_path(modality: str) -> str:
    """The relative path of its rows themselves."""
    return f"index/{modality}.npy"


def tuned_path(modality: str) -> str:
    """The relative path of what its index has learned from rows, and of the probes that measured it."""
    return f"index/{modality}.tuned.safetensors"


@dataclass(frozen=True, eq=False)
class Index:
    """An index that is open.

    Attributes:
        faiss: the FAISS index.
        vectors: its rows (n, k + terms); None where `faiss` is exact and holds them.
        rows: what is known of them, n rows, see `known_of`.
        entry: what index.json says of it.
    """

    faiss: Any
    vectors: Array | None
    rows: pa.Table
    entry: Mapping[str, Any]

    @cached_property
    def kind(self) -> Kind:
        """Of the FAISS index."""
        return Kind(self.entry["kind"])

    @property
    def columns(self) -> list[str]:
        """See `term_columns`."""
        return list(self.entry["terms"])

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    def search(self, queries: Array, k: int, kept: NDArray[np.bool_] | None = None) -> tuple[Array, Rows]:
        """The k best rows for each query (q, k + terms), see `kinds.search`.

        Args:
            queries: see `query_rows`.
            kept: rows that may be found, bool (n,).
        """
        vectors = self.vectors if self.vectors is not None else np.empty((len(self), 0), np.float32)
        return kinds.search(
            self.faiss, self.kind, vectors, queries, k, self.entry["search"], self.entry["radius"], kept
        )

    def vectors_of(self, rows: Rows) -> Array:
        """Rows themselves, float32 (m, k + terms)."""
        if self.vectors is not None:
            return np.asarray(self.vectors[rows], np.float32)
        found: Array = self.faiss.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
        return found

    def rows_of(self, id: str) -> Rows:
        """Numbers of the rows of a record, ascending."""
        # As bytes: what is no UTF-8 on the command line arrives with halves of surrogate pairs, and equals no id.
        wanted = pa.scalar(id.encode("utf-8", "surrogatepass"))
        same = [np.flatnonzero(pc.equal(chunk.cast(pa.binary()), wanted)) for chunk in self._ids]
        return np.concatenate([np.empty(0, np.int64), *(start + found for start, found in zip(self._starts, same))])

    @property
    def has_several_a_record(self) -> bool:
        """Whether any record has several rows."""
        return self.most_a_record > 1

    @cached_property
    def most_a_record(self) -> int:
        """How many rows a record has, at most; they lie one after the other."""
        return int(np.diff(first_of_runs(self.rows["id"]), append=len(self)).max(initial=0))

    def answers_at(self, rows: Sequence[int]) -> list[list[Any]]:
        """What an answer says of rows: id, segment, span, media, metadata."""
        texts = []
        for row in rows:
            batch, place = self._place(row)
            starts, content = self._answers[batch]
            texts.append(content[starts[place] : starts[place + 1]])
        together = b"[" + b",".join(texts) + b"]"  # for a call of the parser costs more than a row
        found: list[list[Any]] = json.loads(together.decode())
        return found

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Ids of the records that rows are of."""
        return [self._ids[batch][place].as_py() for batch, place in map(self._place, rows)]

    def _place(self, row: int) -> tuple[int, int]:
        """The record batch of a row, and its place there."""
        batch = bisect_right(self._starts, row) - 1
        return batch, row - self._starts[batch]

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each record batch."""
        return [0, *accumulate(map(len, self._ids[:-1]))]

    @cached_property
    def _ids(self) -> list[pa.Array]:
        return list(self.rows["id"].chunks)

    @cached_property
    def _answers(self) -> list[tuple[memoryview, memoryview]]:
        """By record batch, where the JSON of each row begins and all of it: Arrow's own values take ten times as
        long."""
        buffers = [chunk.buffers() for chunk in self.rows[ANSWER].chunks]
        return [(memoryview(starts).cast("q"), memoryview(content)) for _, starts, content in buffers]


def known_of(table: pa.Table, kinds: Mapping[str, str]) -> pa.Table:
    """What index/<modality>.arrow holds of rows of embeddings/<modality>: all but the embeddings, for filters; and, as
    JSON, what an answer says: [id, segment, span, media, metadata], without keys that the record lacks.

    Args:
        kinds: of each key of the metadata; values of a mixed one are JSON text in the table.
    """
    columns = [table[name].to_pylist() for name in ("id", "segment", "span", "media")]
    metadata = table["metadata"].to_pylist() if "metadata" in table.column_names else [{}] * table.num_rows
    mixed = {key for key, kind in kinds.items() if kind == "json"}
    texts = [
        json.dumps(
            [*values, {key: json.loads(v) if key in mixed else v for key, v in (keys or {}).items() if v is not None}],
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for *values, keys in zip(*columns, metadata)
    ]
    left = table.drop_columns(["span", "embedding"]).replace_schema_metadata(None)
    return left.append_column(ANSWER, pa.array(texts, pa.large_string()))


def term_columns(scoring: Scoring, hubness: str, modalities: Sequence[str]) -> list[str]:
    """The modalities of queries that a row of an index has a term for, in order."""
    if hubness == "csls":
        return sorted(modalities)
    return [] if scoring.spectrum is None else [ANY_QUERY]


def candidate_rows(embeddings: Array, modality: str, scoring: Scoring, columns: Sequence[str], banks: Banks) -> Array:
    """Embeddings of candidates (n, k) and their terms, float32 (n, k + len(columns)).

    Args:
        columns: see `term_columns`.
        banks: embeddings of training queries by modality, for those of `columns` other than "any".
    """
    plain = scoring.terms(embeddings)
    base = np.zeros(len(embeddings), np.float32) if plain is None else plain
    terms = [
        base if name in (ANY_QUERY, modality) else base + csls_terms(embeddings, banks[name], scoring)
        for name in columns
    ]
    return np.concatenate([embeddings, *(term[:, np.newaxis] for term in terms)], axis=1, dtype=np.float32)


def query_rows(embeddings: Array, shares: Mapping[str, float], columns: Sequence[str]) -> Array:
    """Embeddings of queries (n, k), and behind them how much of a query is of each modality, (n, k + len(columns))."""
    if not columns:
        return embeddings
    tail = np.array([1.0 if name == ANY_QUERY else shares.get(name, 0.0) for name in columns], np.float32)
    return np.concatenate([embeddings, np.tile(tail, (len(embeddings), 1))], axis=1, dtype=np.float32)


def made_of(dataset: Dataset, modality: str, hubness: str) -> dict[str, Any]:
    """What a modality's index is made of, as the embeddings are now: the part of its entry that says whether it
    fits."""
    files = dataset.below(f"embeddings/{modality}")
    names = list(dataset.modalities("project"))
    # With CSLS, a row depends on what may be asked too.
    sources = files if hubness == "none" else dataset.below("embeddings")
    return {
        "version": VERSION,
        "file": index_path(modality),
        "metric": "inner_product",
        "rows": sum(file.rows or 0 for file in files.values()),
        "space": asdict(dataset.modalities("project")[modality]),
        "hubness": hubness,
        "terms": term_columns(scoring_of(dataset), hubness, names),
        "embeddings": fingerprint([[path, file.sha256] for path, file in sources.items()]),
    }


def scoring_of(dataset: Dataset) -> Scoring:
    """How the embeddings of a data set are compared."""
    return Scoring.from_json(dataset.stage("fit").summary.get("spectrum"))


def blocks(dataset: Dataset, modality: str, terms: Sequence[str]) -> Iterator[tuple[str, pa.Table, Array]]:
    """The rows of a modality's index, file by file of its embeddings: the path, the table, and float32 (n, k + terms).

    Raises:
        DatasetError: an embeddings file is missing or changed.
    """
    scoring = scoring_of(dataset)
    banks = {name: bank_of(dataset, name) for name in terms if name not in (ANY_QUERY, modality)}
    for path, table in dataset.tables(f"embeddings/{modality}"):
        yield path, table, candidate_rows(vectors_from_arrow(table["embedding"]), modality, scoring, terms, banks)


def entry_of(dataset: Dataset, modality: str) -> dict[str, Any]:
    """What index.json says of a modality's index.

    Raises:
        UsageError: indexing has not been done, or not for this modality.
    """
    dataset.stage("index")
    entries: dict[str, dict[str, Any]] = json.loads(dataset.read(ENTRIES))
    if modality not in entries:
        raise UsageError(
            f"there is no index of {modality} in {dataset.root}, but of {', '.join(entries) or 'nothing'}: "
            "run `mmembed index`"
        )
    return entries[modality]


def open_modality(dataset: Dataset, modality: str) -> Index:
    """The index over embeddings/<modality>, mapped into memory.

    Every file is compared with its checksum in the manifest first: FAISS trusts the sizes that it reads, so that a
    damaged or forged file can crash the process or run code in it.

    Raises:
        UsageError: indexing has not been done, or not for this modality.
        DatasetError: a file is damaged, or the index was built from other embeddings than those of now.
        SpaceError: the index is of another space than the embeddings.
    """
    entry = entry_of(dataset, modality)
    path = dataset.root / index_path(modality)
    space = dataset.modalities("project")[modality]
    space.check(Space(**entry["space"]), str(path))
    now = made_of(dataset, modality, entry["hubness"])
    if entry.get("version") != VERSION:
        raise DatasetError(f"{path} was built by another version of mmembed: run `mmembed index`")
    if {key: entry.get(key) for key in now} != now:
        raise DatasetError(f"{path} was built from other embeddings than those of now: run `mmembed index`")
    rows = pa.ipc.open_file(pa.py_buffer(_mapped(dataset, rows_path(modality)))).read_all()
    kind, vectors = Kind(entry["kind"]), None
    dim = space.dim + len(entry["terms"])
    if not kind.is_exact:
        vectors = _vectors(_mapped(dataset, vectors_path(modality)), str(dataset.root / vectors_path(modality)))
        _check_size(vectors.shape, (entry["rows"], dim), str(dataset.root / vectors_path(modality)))
    index = _read_faiss(dataset, modality)
    _check_size((index.ntotal, index.d), (entry["rows"], dim + bool(entry["radius"])), str(path))
    _check_size((rows.num_rows,), (entry["rows"],), str(dataset.root / rows_path(modality)))
    return Index(index, vectors, rows, entry)


def _mapped(dataset: Dataset, path: str) -> mmap.mmap | bytes:
    """A file of the data set, mapped into memory and compared with its checksum."""
    known = dataset.files.get(path)
    try:
        if is_sealed(dataset.root / path):
            return dataset.read(path)
        # Of a remote file this is a copy, which has no name any more when it is returned, but all of its content.
        with fetched(dataset.root / path) as local, local.open("rb") as file:
            size = file.seek(0, 2)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise DatasetError(f"can't read {dataset.root / path} ({error.strerror}): run `mmembed index`") from error
    if known is None or hashlib.sha256(content).hexdigest() != known.sha256:
        raise DatasetError(
            f"{dataset.root / path} is not the file that dataset.json names (its checksum differs): delete it and run "
            "`mmembed index`"
        )
    return content


def _vectors(content: mmap.mmap | bytes, path: str) -> Array:
    """The matrix of a .npy file that is mapped into memory."""
    import io

    try:
        head = io.BytesIO(content[:1024])
        np.lib.format.read_magic(head)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(head)
        if is_fortran or dtype != np.float32 or len(shape) != 2:
            raise ValueError(f"it holds {dtype} {shape}")
        return np.frombuffer(content, np.float32, offset=head.tell()).reshape(shape)
    except ValueError as error:
        raise DatasetError(f"{path} is no matrix of float32 ({error}): run `mmembed index`") from error


def _read_faiss(dataset: Dataset, modality: str) -> Any:
    import faiss

    path = dataset.root / index_path(modality)
    _mapped(dataset, index_path(modality))
    try:
        with fetched(path) as local:
            return faiss.read_index(str(local), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DatasetError(f"{path} is no index that FAISS can read ({error}): run `mmembed index`") from error


def _check_size(found: tuple[int, ...], expected: tuple[int, ...], path: str) -> None:
    if tuple(found) != tuple(expected):
        raise DatasetError(f"{path} holds {found} values, but the embeddings {expected}: run `mmembed index`")
