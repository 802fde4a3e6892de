from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, index, random_rows

from mmembed.config import IndexConfig
from mmembed.errors import UsageError
from mmembed.index import entry_of
from mmembed.reader import open_dataset

HELD_OUT = {f"r{number:03d}" for number in range(0, 120, 6)}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        tmp_path_factory.mktemp("data") / "out", random_rows(120, ["image", "text"], 6), held_out=HELD_OUT
    ).folder


def nearest(out: Path, vectors: Any, ids: list[str], target: str, k: int, split: str) -> tuple[Any, list[list[str]]]:
    """The slow way: the k best of all rows of other records."""
    ds = open_dataset(out, target, ["embedding", "id"], split)
    rows = ds[:]
    scores = vectors.astype(np.float64) @ rows[f"{target}.embedding"].astype(np.float64).T
    for place, id in enumerate(ids):
        scores[place, np.array(rows["id"]) == id] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, best, 1), [[rows["id"][row] for row in line] for line in best.tolist()]


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
@pytest.mark.parametrize("target", ["text", "image"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_neighbours_are_the_best_of_other_records(out: Path, split: str, target: str, shuffle: bool) -> None:
    columns = ["embedding", "metadata.none"][:1] if shuffle else ["embedding", "id"]
    ds = open_dataset(out, "image", columns, split, neighbors=target, k=4, shuffle=shuffle, batch_size=16)
    ids = open_dataset(out, "image", ["id"], split, shuffle=shuffle, batch_size=16)
    rounds = [list(ds) for _ in range(2)]  # the second time from memory
    names = [list(ids) for _ in range(2)]
    for batches, known in zip(rounds, names):
        for batch, row in zip(batches, known, strict=True):
            assert ("id" in batch) == (not shuffle)  # only what was asked for
            scores, expected = nearest(out, batch["image.embedding"], row["id"], target, 4, split)
            assert batch["neighbors.id"] == expected
            np.testing.assert_allclose(batch["neighbors.score"], scores, atol=1e-5)
            again = np.einsum("nd,nkd->nk", batch["image.embedding"], batch["neighbors.embedding"])
            np.testing.assert_allclose(again, scores, atol=1e-5)


def test_pairs_and_stacked_segments_have_neighbours_too(out: Path) -> None:
    options: dict[str, Any] = {"columns": ["embedding", "id"], "neighbors": "text", "k": 3, "batch_size": 30}
    for batch in open_dataset(out, ("image", "text"), segments={"image": "stack"}, **options):
        _, expected = nearest(out, batch["image.embedding"][:, 0], batch["id"], "text", 3, "train")
        assert batch["neighbors.id"] == expected


def test_an_index_that_is_not_exact_serves(tmp_path: Path) -> None:
    dataset = build(tmp_path / "out", random_rows(300, ["image", "text"], 6), held_out=HELD_OUT)
    dataset = index(dataset, IndexConfig(recall=0.5, memory="20KB"))
    assert entry_of(dataset, "text")["kind"] != "Flat"
    found = overlap = 0
    for batch in open_dataset(dataset.folder, "image", ["embedding", "id"], neighbors="text", k=5):
        _, expected = nearest(dataset.folder, batch["image.embedding"], batch["id"], "text", 5, "train")
        for id, some, best in zip(batch["id"], batch["neighbors.id"], expected):
            assert id not in some
            assert not set(some) & HELD_OUT
            overlap += len(set(some) & set(best))
            found += len(set(best))
    assert overlap / found > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbors": "audio"}, "has no embeddings of 'audio', but of image, text"),
        ({"k": 0}, "k = 0"),
        ({"k": "8"}, "k = '8': must be a whole number"),
        (
            {"k": 1000},
            "k = 1000: must be 1 to [0-9]+, for there are [0-9]+ rows of text .* 3 may be",
        ),
        ({"missing": "mask"}, "missing must be 'skip'"),
        ({"columns": ["id"]}, "neighbors are those of image.embedding"),
    ],
    ids=str,
)
def test_what_can_not_be_is_said_at_once(out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(out, "image", **({"neighbors": "text"} | options))


def test_without_an_index_it_says_what_to_run(tmp_path: Path) -> None:
    out = build(tmp_path / "out", random_rows(10, ["image", "text"], 6), until="project").folder
    with pytest.raises(UsageError, match="mmembed index"):
        open_dataset(out, "image", neighbors="text")
