"""FAISS indexes: exact inner products; FAISS id = row number in embeddings/<modality>, in file order.

A row is an embedding, and behind it what else its score has: a coordinate for each modality of queries ("any" where all
have the same), in which a query has 1. So a plain inner product is the whole score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, UsageError
from mmembed.hubness import bank_of, csls_terms
from mmembed.linear import Scoring
from mmembed.shards import fingerprint, write_bytes
from mmembed.tables import vectors_from_arrow
from mmembed.types import Space

VERSION = "2"
"""Of the way indexes are built: a change of it needs another one, so that what was made before is made again."""

ANY_QUERY = "any"
"""Stands for all modalities of queries."""

Banks = Mapping[str, NDArray[np.float32]]

ENTRIES = "index/index.json"
"""JSON: an `index_entry` for each modality."""


def index_path(modality: str) -> str:
    """The relative path of a modality's index."""
    return f"index/{modality}.faiss"


def build_index(blocks: Iterable[NDArray[np.float32]], dim: int) -> bytes:
    """A serialized IndexFlatIP over blocks of vectors (n, dim): every query is compared with every row.

    The bytes depend on the vectors alone. One block and the index are in memory, and at the end the index twice more.
    """
    import faiss

    index = faiss.IndexFlatIP(dim)
    for vectors in blocks:
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


def open_index(data: bytes, dim: int, rows: int) -> Any:
    """The faiss.IndexFlatIP in bytes that `build_index` made.

    The bytes must be known to be the right ones (`Dataset.read` compares their checksum): FAISS trusts the sizes that
    it reads, so that a damaged or forged file can crash the process or run code in it.

    Raises:
        DatasetError: this is no such index, or not one of `rows` vectors of dimension `dim`.
    """
    import faiss

    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise DatasetError(f"this is no index that FAISS can read ({error}): run `mmembed index`") from error
    if not isinstance(index, faiss.IndexFlatIP):
        raise DatasetError(f"the index is a {type(index).__name__}, not an IndexFlatIP: run `mmembed index`")
    if (index.ntotal, index.d) != (rows, dim):
        raise DatasetError(
            f"the index holds {index.ntotal} vectors of dimension {index.d}, the embeddings {rows} of {dim}: "
            "run `mmembed index`"
        )
    return index


def term_columns(scoring: Scoring, hubness: str, modalities: Sequence[str]) -> list[str]:
    """The modalities of queries that a row of an index has a term for, in order."""
    if hubness == "csls":
        return sorted(modalities)
    return [] if scoring.spectrum is None else [ANY_QUERY]


def candidate_rows(
    embeddings: NDArray[np.float32], modality: str, scoring: Scoring, columns: Sequence[str], banks: Banks
) -> NDArray[np.float32]:
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


def query_rows(
    embeddings: NDArray[np.float32], shares: Mapping[str, float], columns: Sequence[str]
) -> NDArray[np.float32]:
    """Embeddings of queries (n, k), and behind them how much of a query is of each modality, (n, k + len(columns))."""
    tail = np.array([1.0 if name == ANY_QUERY else shares.get(name, 0.0) for name in columns], np.float32)
    return np.concatenate([embeddings, np.tile(tail, (len(embeddings), 1))], axis=1, dtype=np.float32)


def index_entry(dataset: Dataset, modality: str, hubness: str) -> dict[str, Any]:
    """What index.json says of a modality's index, as it would be built from the embeddings of now."""
    files = dataset.below(f"embeddings/{modality}")
    names = list(dataset.modalities("project"))
    # With CSLS, a row depends on what may be asked too.
    sources = files if hubness == "none" else dataset.below("embeddings")
    return {
        "file": index_path(modality),
        "kind": "Flat",
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


def blocks(dataset: Dataset, modality: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The rows of a modality's index, file by file of its embeddings: the path and float32 (n, k + terms).

    Raises:
        DatasetError: an embeddings file is missing or changed.
    """
    scoring = scoring_of(dataset)
    banks = {name: bank_of(dataset, name) for name in entry["terms"] if name not in (ANY_QUERY, modality)}
    for path, table in dataset.tables(f"embeddings/{modality}"):
        vectors = vectors_from_arrow(table["embedding"])
        yield path, candidate_rows(vectors, modality, scoring, entry["terms"], banks)


def build_modality(dataset: Dataset, modality: str, hubness: str) -> tuple[bytes, dict[str, Any]]:
    """The index over embeddings/<modality> and its entry for index.json.

    Raises:
        DatasetError: an embeddings file is missing or changed.
    """
    entry = index_entry(dataset, modality, hubness)
    rows = (vectors for _, vectors in blocks(dataset, modality, entry))
    return build_index(rows, entry["space"]["dim"] + len(entry["terms"])), entry


@dataclass(frozen=True)
class WriteIndex:
    """Builds and writes the index of a modality; a picklable value, called with the modality's name."""

    dataset: Dataset
    hubness: str

    def __call__(self, modality: str) -> None:
        data, entry = build_modality(self.dataset, modality, self.hubness)
        write_bytes(self.dataset.root / entry["file"], data)


def entry_of(dataset: Dataset, modality: str) -> dict[str, Any]:
    """What index.json says of a modality's index."""
    entry: dict[str, Any] = json.loads(dataset.read(ENTRIES))[modality]
    return entry


def open_modality(dataset: Dataset, modality: str) -> Any:
    """The faiss.IndexFlatIP over embeddings/<modality>.

    Raises:
        UsageError: indexing has not been done, or not for this modality.
        DatasetError: a file is damaged, or the index was built from other embeddings than those of now.
        SpaceError: the index is of another space than the embeddings.
    """
    dataset.stage("index")
    entries = json.loads(dataset.read(ENTRIES))
    if modality not in entries:
        raise UsageError(
            f"there is no index of {modality} in {dataset.root}, but of {', '.join(entries) or 'nothing'}: "
            "run `mmembed index`"
        )
    space = dataset.modalities("project")[modality]
    space.check(Space(**entries[modality]["space"]), f"{dataset.root / index_path(modality)}")
    now = index_entry(dataset, modality, entries[modality].get("hubness", "none"))
    if entries[modality] != now:
        raise DatasetError(
            f"{dataset.root / index_path(modality)} was built from other embeddings than those of now: "
            "run `mmembed index`"
        )
    return open_index(dataset.read(now["file"]), space.dim + len(now["terms"]), now["rows"])
