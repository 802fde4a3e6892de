"""Hubs: candidates that are near to everything. How much lower each one is to score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmembed.dataset import Dataset
from mmembed.linear import Scoring
from mmembed.splits import TRAIN, position
from mmembed.tables import vectors_from_arrow

Array = NDArray[np.float32]

NEIGHBOURS = 20
"""Of the best scores of a candidate that its mean is of: 1 and 5 lost on every set tried, 50 was no better."""

BANK = 4096
"""Training queries that candidates are scored against, about."""

_BLOCK_SCORES = 1 << 22  # 16 MB of float32


def csls_terms(candidates: Array, bank: Array, scoring: Scoring) -> Array:
    """What CSLS adds to the score of each candidate: minus half the mean of its NEIGHBOURS best scores to a bank of
    queries, float32 (n,); zeros without a bank.

    Source: Conneau et al., "Word translation without parallel data", ICLR 2018, equation 3; its term of the query is
    the same for all candidates.

    Args:
        candidates: embeddings (n, k).
        bank: embeddings of training queries (m, k).
    """
    if not len(bank):
        return np.zeros(len(candidates), np.float32)
    near = min(NEIGHBOURS, len(bank))
    asked = scoring.terms(
        bank
    )  # a log-ratio has a term of the query too: without it, long queries would be near to all
    terms = np.zeros(len(candidates), np.float32)
    size = max(1, _BLOCK_SCORES // len(bank))
    for start in range(0, len(candidates), size):
        block = candidates[start : start + size]
        scores = block @ bank.T if asked is None else block @ bank.T + asked
        best = np.partition(scores, len(bank) - near, axis=1)[:, -near:]
        terms[start : start + size] = best.mean(axis=1) / -2
    own = scoring.terms(candidates)
    return terms if own is None else np.asarray(terms - own / 2, np.float32)


def bank_of(dataset: Dataset, modality: str) -> Array:
    """Embeddings of training segments of a modality, BANK of them or so, chosen by a hash of their ids; float32 (m, k).

    Raises:
        DatasetError: a file is damaged.
    """
    rows = sum(file.rows or 0 for file in dataset.below(f"embeddings/{modality}").values())
    share = BANK / max(rows, 1)
    parts = [np.empty((0, dataset.modalities("project")[modality].dim), np.float32)]
    for _, table in dataset.tables(f"embeddings/{modality}"):
        ids, splits = table["id"].to_pylist(), table["split"].to_pylist()
        chosen = [split == TRAIN and position(id, "bank") < share for id, split in zip(ids, splits, strict=True)]
        parts.append(vectors_from_arrow(table["embedding"])[np.array(chosen, bool)])
    return np.concatenate(parts)
