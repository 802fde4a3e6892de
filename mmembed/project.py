"""Features to embeddings: z = Wx + b for each segment, with its record's metadata beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmembed.config import ProjectConfig
from mmembed.dataset import Dataset
from mmembed.features import read_records
from mmembed.linear import LinearMap, normalize_rows
from mmembed.secret import Secret
from mmembed.shards import fingerprint, read_footer, read_table, shard_path, write_table
from mmembed.splits import Groups, split_of
from mmembed.tables import embeddings_schema, metadata_column, vectors_from_arrow, vectors_to_arrow
from mmembed.types import Space

Array = NDArray[np.float32]

GROUPS = "maps/groups.json"
"""Which records stay on one side of the split."""

VERSION = "3"
"""Of the way embeddings are made: a change of it needs another one, so that what was made before is made again."""


def embeddings_table(
    features: pa.Table,
    space: Space,
    linear_map: LinearMap,
    records: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, str],
    dtype: str,
    groups: Groups,
    holdout: float,
    noise: float = 0.0,
    secret: Secret | None = None,
) -> pa.Table:
    """The embeddings of a unit's features of one modality, a row a segment, in the same order.

    Args:
        space: of the features.
        records: what the user gave, by id and key.
        kinds: of the metadata's columns, see `mmembed.tables.metadata_kinds`.
        groups: of the records, of which a share `holdout` is held out.
        noise: how much, see `noisy`, of a secret.
    """
    schema = embeddings_schema(linear_map.output.dim, dtype, kinds)
    ids = features.column("id").to_pylist()
    splits = [split_of(groups.of(id, records[id]), holdout) for id in ids]
    vectors = linear_map.apply(vectors_from_arrow(features.column("feature")), space)
    if noise and secret:
        names = [f"{space.name}\0{id}\0{segment}" for id, segment in zip(ids, features.column("segment").to_pylist())]
        vectors = noisy(vectors, noise, secret_normal(secret.key("noise"), names, vectors))
    columns = {name: features.column(name) for name in ("id", "segment", "span", "media")}
    columns["split"] = pa.array(splits, pa.string())
    if kinds:
        columns["metadata"] = metadata_column([records[id] for id in ids], schema.field("metadata").type, kinds)
    columns["embedding"] = vectors_to_arrow(vectors, schema.field("embedding").type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def noisy(vectors: Array, sigma: float, normal: Array) -> Array:
    """L2-normalized rows (n, k) with noise of about the length sigma, normalized again.

    Args:
        normal: standard normal values (n, k).
    """
    return normalize_rows(vectors + np.float32(sigma / np.sqrt(vectors.shape[1])) * normal)


def secret_normal(key: bytes, names: Sequence[str], vectors: Array) -> Array:
    """Standard normal values (n, k) that nobody can draw again without the key.

    They depend on a row's name and its vector alone: the same embedding has the same noise in every run, so that no
    mean over several takes it away; and two embeddings never share theirs, so that no difference does.
    """
    drawn = np.empty(vectors.shape, np.float32)
    for row, (name, vector) in enumerate(zip(names, vectors, strict=True)):
        digest = hashlib.blake2b(
            name.encode("utf-8", "surrogatepass") + b"\0" + vector.tobytes(), key=key, digest_size=32
        )
        seed = np.frombuffer(digest.digest(), np.uint32)
        np.random.Generator(np.random.SFC64(seed.tolist())).standard_normal(out=drawn[row], dtype=np.float32)
    return drawn


@dataclass(frozen=True)
class ProjectUnit:
    """Reads a unit's features and writes its embeddings; a picklable value, called on workers with unit numbers.

    Attributes:
        marks: by modality a fingerprint of its map and of all that decides how embeddings are written.
    """

    dataset: Dataset
    maps: Mapping[str, LinearMap]
    marks: Mapping[str, str]
    kinds: Mapping[str, str]
    config: ProjectConfig
    groups: Groups
    holdout: float
    secret: Secret = Secret()

    def __call__(self, number: int) -> int:
        ids, records = read_records(self.dataset, number)
        rows = 0
        for name, linear_map in self.maps.items():
            features = read_table(self.dataset.read(shard_path(f"features/{name}", number)))
            table = embeddings_table(
                features,
                self.dataset.modalities("extract")[name],
                linear_map,
                dict(zip(ids, records, strict=True)),
                self.kinds,
                self.config.dtype,
                self.groups,
                self.holdout,
                self.config.noise,
                self.secret,
            )
            path = shard_path(f"embeddings/{name}", number)
            write_table(self.dataset.root / path, table, self.footer(name, number, table.num_rows))
            rows += table.num_rows
        return rows

    def footer(self, name: str, number: int, rows: int) -> dict[str, Any]:
        """What marks a file of embeddings as made from these features, records, maps and configuration."""
        files = self.dataset.files
        inputs = [files[shard_path(folder, number)].sha256 for folder in (f"features/{name}", "records")]
        return {"fingerprint": fingerprint(inputs, self.marks[name]), "rows": rows}

    def rows(self, name: str, number: int) -> int | None:
        """The rows of a file of embeddings that is done, None of one that is missing or stale."""
        found = read_footer(self.dataset.root / shard_path(f"embeddings/{name}", number))
        return found["rows"] if found and found == self.footer(name, number, found["rows"]) else None


def load_groups(dataset: Dataset) -> Groups:
    """What stayed on one side when the maps of a data set were learned."""
    return Groups(**json.loads(dataset.read(GROUPS)))


def load_maps(dataset: Dataset) -> dict[str, LinearMap]:
    """The maps of a data set by modality, checked against the manifest."""
    return {name: LinearMap.from_bytes(dataset.read(f"maps/{name}.safetensors")) for name in dataset.modalities("fit")}
