"""Sample records of a data set, with their segments, for its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import mmembed.config
from mmembed.dataset import Dataset
from mmembed.errors import MmembedError, ReadError
from mmembed.inputs import open_source
from mmembed.pages import parts
from mmembed.pages.previews import Piece, show
from mmembed.remote import is_web
from mmembed.shards import read_table, shard_path
from mmembed.splits import HELD_OUT, number_of
from mmembed.types import Media

SAMPLES = 12
"""Records that are shown, at most."""

_SAMPLED_UNITS = 4  # of which records are shown: each is read from the input again
_PIECES = {"image": 6, "text": 5, "audio": 2}  # segments of a record that are shown, at most
_METADATA = 6


@dataclass(frozen=True)
class _Shown:
    """A record that is shown.

    Attributes:
        pieces: by modality, its segments in order.
        metadata: what else the input said of it.
    """

    id: str
    source: str
    split: str
    pieces: Mapping[str, Sequence[Piece]]
    metadata: Mapping[str, Any]


def sample_records(dataset: Dataset) -> str:
    """Records with their segments. Their media are read from the input again."""
    chosen = dict(_chosen(dataset))
    found, reason = _media_of(dataset, {number: {each.id for each in shown} for number, shown in chosen.items()})
    cards, lost = [], 0
    for each in (each for shown in chosen.values() for each in shown):
        body = "".join(_modality(each, modality, found, reason) for modality in each.pieces)
        lost += body.count(parts.GONE)
        body += parts.facts(each.metadata, _METADATA)
        cards.append(parts.card(parts.isolated(each.id, 60), "held out" if each.split == HELD_OUT else "", body))
    if not cards:
        return ""
    note = f"{lost:,} media of these records can't be read any more: was the input moved?"
    return f'{parts.gone(note) if lost else ""}<div class="cards">{"".join(cards)}</div>'


def _modality(shown: _Shown, modality: str, found: Mapping[tuple[str, str], Media], reason: str) -> str:
    """The segments of one modality of a record, of many the first."""

    def find(name: str) -> Media:
        media = found.get((shown.id, name))
        if media is None:
            raise ReadError(f"{name}: {reason or 'it is no longer in the input'}")
        if is_web(media.location):
            raise ReadError(f"{name}: not fetched again for a report")
        return media

    pieces, most = shown.pieces[modality], _PIECES.get(modality, 1)
    more = f'<p class="small soft">{len(pieces) - most:,} more {modality} segments</p>' if len(pieces) > most else ""
    return show(modality, pieces[:most], find) + more


def _chosen(dataset: Dataset) -> Iterator[tuple[int, list[_Shown]]]:
    """The numbers of a few units, evenly spread, and of each some of its records: those with the most modalities, and
    of these the ones of the smallest hashes."""
    units = len(dataset.below("records"))
    numbers = np.unique(np.linspace(0, max(units - 1, 0), min(units, _SAMPLED_UNITS)).astype(int)).tolist()
    for number in numbers:
        records = _records_of(dataset, number)
        rank = sorted(records, key=lambda shown: (-len(shown.pieces), number_of(shown.id, "page")))
        # One of the split that is rarer too: what was found on it is what the figures are of.
        first = rank[: SAMPLES // len(numbers)]
        held = [shown for shown in rank[len(first) :] if shown.split == HELD_OUT]
        if held and all(shown.split != HELD_OUT for shown in first):
            first[-1] = held[0]
        yield number, first


def _records_of(dataset: Dataset, number: int) -> list[_Shown]:
    """The records of a unit that have an embedding."""
    pieces: dict[str, dict[str, list[Piece]]] = {}
    splits: dict[str, str] = {}
    for modality in dataset.modalities("project"):
        table = read_table(dataset.read(shard_path(f"embeddings/{modality}", number)), ["id", "span", "media", "split"])
        for row in table.to_pylist():
            piece = Piece(modality, tuple(row["span"]), row["media"])
            pieces.setdefault(row["id"], {}).setdefault(modality, []).append(piece)
            splits[row["id"]] = row["split"]
    table = read_table(dataset.read(shard_path("records", number)), ["id", "source", "record"])
    columns = dataset.stage("extract").summary["columns"]
    found = []
    for row in table.to_pylist():
        if row["id"] in pieces:
            record = json.loads(row["record"])
            metadata = {key: value for key, value in record.items() if key not in columns and value is not None}
            found.append(_Shown(row["id"], row["source"], splits[row["id"]], pieces[row["id"]], metadata))
    return found


def _media_of(dataset: Dataset, ids: Mapping[int, set[str]]) -> tuple[dict[tuple[str, str], Media], str]:
    """The media of some records of some units by id and name, as the input has them now; or none, and why. One unit's
    records are in memory."""
    found: dict[tuple[str, str], Media] = {}
    try:
        config = mmembed.config.from_json(mmembed.config.Config(), dict(dataset.config)).extract
        source = open_source(dataset.input, config.choice)
        for unit in source.units(config.unit_records):
            for record in source.read(unit)[0] if unit.number in ids else []:
                if record.id in ids[unit.number]:
                    found |= {(record.id, media.name): media for several in record.media.values() for media in several}
    except (MmembedError, OSError):  # whose message has a path of this machine
        return found, "the input can't be read any more"
    return found, ""
