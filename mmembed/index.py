"""FAISS indexes: exact inner products; FAISS id = row number in embeddings/<modality>, in file order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, UsageError
from mmembed.shards import fingerprint, write_bytes
from mmembed.tables import vectors_from_arrow
from mmembed.types import Space

VERSION = "1"
"""Of the way indexes are built: a change of it needs another one, so that what was made before is made again."""

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


def open_index(data: bytes, space: Space, rows: int) -> Any:
    """The faiss.IndexFlatIP in bytes that `build_index` made.

    The bytes must be known to be the right ones (`Dataset.read` compares their checksum): FAISS trusts the sizes that
    it reads, so that a damaged or forged file can crash the process or run code in it.

    Raises:
        DatasetError: this is no such index, or not one of `rows` vectors of this space's dimension.
    """
    import faiss

    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise DatasetError(f"this is no index that FAISS can read ({error}): run `mmembed index`") from error
    if not isinstance(index, faiss.IndexFlatIP):
        raise DatasetError(f"the index is a {type(index).__name__}, not an IndexFlatIP: run `mmembed index`")
    if (index.ntotal, index.d) != (rows, space.dim):
        raise DatasetError(
            f"the index holds {index.ntotal} vectors of dimension {index.d}, the embeddings {rows} of {space.dim}: "
            "run `mmembed index`"
        )
    return index


def index_entry(dataset: Dataset, modality: str) -> dict[str, Any]:
    """What index.json says of a modality's index, as it would be built from the embeddings of now."""
    files = dataset.below(f"embeddings/{modality}")
    return {
        "file": index_path(modality),
        "kind": "Flat",
        "metric": "inner_product",
        "rows": sum(file.rows or 0 for file in files.values()),
        "space": asdict(dataset.modalities("project")[modality]),
        "embeddings": fingerprint([[path, file.sha256] for path, file in files.items()]),
    }


def build_modality(dataset: Dataset, modality: str) -> tuple[bytes, dict[str, Any]]:
    """The index over embeddings/<modality> and its entry for index.json.

    Raises:
        DatasetError: an embeddings file is missing or changed.
    """
    blocks = (vectors_from_arrow(table["embedding"]) for _, table in dataset.tables(f"embeddings/{modality}"))
    return build_index(blocks, dataset.modalities("project")[modality].dim), index_entry(dataset, modality)


@dataclass(frozen=True)
class WriteIndex:
    """Builds and writes the index of a modality; a picklable value, called with the modality's name."""

    dataset: Dataset

    def __call__(self, modality: str) -> None:
        data, entry = build_modality(self.dataset, modality)
        write_bytes(self.dataset.root / entry["file"], data)


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
    now = index_entry(dataset, modality)
    if entries[modality] != now:
        raise DatasetError(
            f"{dataset.root / index_path(modality)} was built from other embeddings than those of now: "
            "run `mmembed index`"
        )
    return open_index(dataset.read(now["file"]), space, now["rows"])
