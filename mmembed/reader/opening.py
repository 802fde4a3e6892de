"""`open_dataset`: checks what is asked for, and finds the samples."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from mmembed.config import size_of
from mmembed.errors import SpaceError, UsageError
from mmembed.reader.blocks import UnitReader
from mmembed.reader.columns import EMBEDDING, VECTORS, Column, columns_of
from mmembed.reader.neighbours import Neighbours
from mmembed.reader.reader import Plan, Reader
from mmembed.reader.samples import (
    ALL,
    EVERYTHING,
    KEYS,
    MASK,
    MISSING,
    RANDOM,
    SEGMENTS,
    SKIP,
    Kept,
    Records,
    Samples,
    aligned,
)
from mmembed.reader.source import Source
from mmembed.shards import fingerprint, shard_path
from mmembed.splits import HELD_OUT, TRAIN
from mmembed.types import Space


def open_dataset(
    location: Path | str,
    modalities: str | Sequence[str] | None = None,
    columns: str | Sequence[str] = (EMBEDDING,),
    split: str = TRAIN,
    *,
    segments: str | Mapping[str, str] = "",
    missing: str = SKIP,
    batch_size: int = 256,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    ranks: int = 1,
    neighbors: str = "",
    k: int = 8,
    spaces: Mapping[str, str] | None = None,
    memory: str = "4GB",
    file_system: fs.FileSystem | None = None,
) -> Reader:
    """Open a built data set for training.

    Args:
        location: OUT: a folder, or a URL that pyarrow's file systems know (s3://, gs://, hdfs://).
        modalities: one, or several whose segments of the same record make a sample; none: all that there are.
        columns: "embedding", "feature", "media" (the text, or the path), "segment" and "span" of each modality, or of
            one ("image.feature"); of the record "id" and "metadata.KEY".
        split: "train", "heldout" or "all".
        segments: where a record has several of a modality (captions, tiles, windows): "first" gives the first, which is
            the whole picture before its tiles; "random" one, in each epoch another; "all" each of them, as samples of
            their own; "stack" all at once, with a mask. For all modalities, or by modality. By default "all" of a
            single modality, and "random" of several.
        missing: "skip" records that lack a modality, or keep them with zeros and a "mask".
        batch_size: samples of a batch, on each rank.
        shuffle: all samples, anew in each epoch. Else they come in the order of the files.
        drop_last: leave out the samples at the end of an epoch that don't fill a batch on each rank.
        rank, ranks: this process, and how many read the data set together.
        neighbors: a modality; adds the k nearest segments of it, of other records of the split, to the embedding of a
            sample's first modality: `neighbors.embedding` (n, k, dim), `neighbors.score` (n, k), `neighbors.id`.
        spaces: what the vectors must be of, as `Reader.spaces` says it: a model is fed only what it was trained with.
        memory: what vectors in memory may take. Where samples at any place are asked for and this is too little, they
            lie in a file in the folder for temporary files.
        file_system: of pyarrow, that `location` is a folder of.

    Raises:
        UsageError: there is no such data set, modality, column or sample, or a value can't be.
        DatasetError: the data set is damaged.
        SpaceError: its vectors are of another space than asked for.
    """
    source = Source.open(location, file_system)
    if "project" not in source.dataset.stages:
        raise UsageError(f"{location} has no embeddings yet: run `mmembed project`, or `mmembed build` for all")
    there = list(source.dataset.modalities("project"))
    names = _names(modalities) or there
    for name in [*names, *([neighbors] if neighbors else [])]:
        if name not in there:
            raise UsageError(f"{location} has no embeddings of {name!r}, but of {', '.join(there)}")
    _one_of("split", split, (TRAIN, HELD_OUT, EVERYTHING))
    _one_of("missing", missing, MISSING)
    chosen = _segments(segments, names)
    wanted = columns_of(_names(columns), names, _kinds(source))
    vectors = _vectors(source, wanted)
    _check_spaces(str(location), {name: str(space) for name, (space, _) in vectors.items()}, spaces or {})
    plan, bytes = _plan(batch_size, drop_last, rank, ranks, shuffle, seed), size_of("memory", str(memory))
    if not bytes:
        raise UsageError(f"memory = {memory!r}: must be a size such as 500MB or 2GB")
    asking = _asking(source, names[0], neighbors, _whole("k", k), split, vectors, missing) if neighbors else None
    loaded = columns_of([*(one.name for one in wanted), *(["id"] if asking else [])], names, _kinds(source))
    units, samples, nulls = _samples(source, chosen, split, missing, loaded)
    if not len(samples):
        having = (" and " if missing == SKIP else " or ").join(names)
        raise UsageError(f"{location} has no sample: no record of the split {split!r} has {having}")
    plan.check(len(samples))
    reading = UnitReader(source, loaded, names, nulls)
    rows = [[unit.digests[name].hex() for name in names] for unit in units]  # not what the vectors are: maps may change
    identity = fingerprint(rows, list(chosen.items()), split, missing)
    return Reader(wanted, units, samples, reading, vectors, asking, plan, missing == MASK, bytes, identity)


def _names(given: str | Sequence[str] | None) -> list[str]:
    """One name, or several, each once."""
    return [given] if isinstance(given, str) else list(dict.fromkeys(given or ()))


def _kinds(source: Source) -> Mapping[str, str]:
    """The kind of each key of the metadata."""
    kinds: Mapping[str, str] = source.dataset.stage("project").summary["kinds"]
    return kinds


def _plan(batch_size: int, drop_last: bool, rank: int, ranks: int, shuffle: bool, seed: int) -> Plan:
    given = {"batch_size": batch_size, "rank": rank, "ranks": ranks, "seed": seed}
    size, rank, ranks, seed = (_whole(name, value) for name, value in given.items())
    if size < 1:
        raise UsageError(f"batch_size = {size}: must be at least 1")
    if not 0 <= rank < ranks:
        raise UsageError(f"rank = {rank}: of {ranks} ranks, it must be 0 to {ranks - 1}")
    for name, value in {"shuffle": shuffle, "drop_last": drop_last}.items():
        if not isinstance(value, bool | np.bool_):
            raise UsageError(f"{name} = {value!r}: must be True or False")
    return Plan(size, bool(drop_last), rank, ranks, bool(shuffle), seed)


def _whole(name: str, value: int) -> int:
    """A whole number, also numpy's, as Python has it, for JSON knows no other."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} = {value!r}: must be a whole number") from error


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{what} = {value!r}: must be one of {', '.join(known)}")


def _segments(given: str | Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Which of a record's segments a sample has, by modality."""
    usual = ALL if len(names) == 1 else RANDOM
    if isinstance(given, str):
        found = dict.fromkeys(names, given or usual)
    else:
        for name in given:
            _one_of("segments of the modality", name, names)
        found = {name: given.get(name, usual) for name in names}
    for how in found.values():
        _one_of("segments", how, SEGMENTS)
    return found


def _vectors(source: Source, columns: Sequence[Column]) -> dict[str, tuple[Space, Any]]:
    """The space and the dtype of each column of vectors."""
    dtypes = {EMBEDDING: np.dtype(source.dataset.stage("project").summary["dtype"])}
    found = {}
    for column in columns:
        if column.kind == "vector":
            [what] = column.path
            space = source.dataset.modalities(VECTORS[what])[column.modality]
            found[column.name] = (space, dtypes.get(what, np.dtype(np.float32)))
    return found


def _check_spaces(location: str, there: Mapping[str, str], asked: Mapping[str, str]) -> None:
    for name, space in asked.items():
        if name not in there:
            raise UsageError(f"spaces: {name!r} is none of the vectors that are read: {', '.join(there) or 'none'}")
        if space != there[name]:
            raise SpaceError(f"{name} of {location} is of space {there[name]}, but {space} was asked for")


def _asking(
    source: Source, first: str, target: str, k: int, split: str, vectors: Mapping[str, Any], missing: str
) -> Neighbours:
    """What looks neighbours up, where that can be done."""
    if not source.is_local:
        raise UsageError(f"neighbors: the index of {source.location} must lie in a folder of this machine")
    if missing == MASK:
        raise UsageError("neighbors: a record without the first modality has none, so that missing must be 'skip'")
    if f"{first}.{EMBEDDING}" not in vectors:
        raise UsageError(f"neighbors are those of {first}.{EMBEDDING}: it must be among the columns")
    found = Neighbours(source.dataset, first, target, k, split)
    found.check()
    return found


def _samples(
    source: Source, segments: Mapping[str, str], split: str, missing: str, columns: Sequence[Column]
) -> tuple[list[Kept], Samples, frozenset[str]]:
    """What the units hold, the samples, and names of columns with nulls anywhere."""
    count = len(source.dataset.below(f"embeddings/{next(iter(segments))}"))

    def look(unit: int) -> tuple[tuple[Kept, Records], set[str]]:
        tables, nulls = {}, set()
        for name in segments:
            tables[name], found = source.peek(shard_path(f"embeddings/{name}", unit), KEYS)
            nulls |= {leaf for leaf, several in found.items() if several}
        return aligned(tables, split, missing), nulls

    with ThreadPoolExecutor(source.threads) as pool:
        looked = list(pool.map(look, range(count)))
    units = [found for found, _ in looked]
    nulls = set[str]().union(*(leaves for _, leaves in looked))
    return (
        [kept for kept, _ in units],
        Samples.of(segments, units),
        frozenset(one.name for one in columns if one.leaf in nulls),
    )
