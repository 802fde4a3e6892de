from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import COLD, mmembed
from dataset_builder import build, random_rows
from numpy.typing import NDArray

from mmembed.compare import compare, format_rows
from mmembed.errors import UsageError
from mmembed.evaluate import evaluate


def noisy(vectors: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    return np.asarray(vectors + 2 * random.normal(size=vectors.shape), np.float32)


def test_the_better_one_is_told_by_a_paired_test_on_common_records(tmp_path: Path) -> None:
    rows = random_rows(60, ["image", "text"], 6)
    random = np.random.default_rng(0)
    worse = [
        replace(
            row,
            vectors={
                name: of + 2 * random.normal(size=of.shape).astype(np.float32) for name, of in row.vectors.items()
            },
        )
        for row in rows
    ]
    held_out = {row.id for row in rows}
    first = build(tmp_path / "a", worse, held_out=held_out)
    second = build(tmp_path / "b", rows[:50], held_out=held_out)
    found = {(row["query"], row["target"], row["figure"]): row for row in compare(first, second)}
    assert len(found) == 6
    row = found["image", "text", "mrr"]
    assert row["queries"] == 50
    alone = evaluate(second)["rows"][0]
    assert row["b"] == pytest.approx(alone["mrr"])
    assert row["difference"] == pytest.approx(row["b"] - row["a"]) and row["difference_low"] > 0 and row["p"] < 0.01
    back = {(row["query"], row["target"], row["figure"]): row for row in compare(second, first)}
    assert back["image", "text", "mrr"]["difference"] == pytest.approx(-row["difference"])
    assert len({len(line) for line in format_rows(list(found.values())).splitlines()[:-1]}) <= 2


def test_a_data_set_does_not_differ_from_itself(tmp_path: Path) -> None:
    rows = random_rows(20, ["image", "text"], 6)
    dataset = build(tmp_path, rows, held_out={row.id for row in rows})
    assert all(row["difference"] == 0 and row["p"] == 1 for row in compare(dataset, dataset))


def test_nothing_in_common_is_a_usage_error(tmp_path: Path) -> None:
    rows = random_rows(20, ["image", "text"], 6)
    first, second = (build(tmp_path / half, rows, held_out={half}) for half in ("r000", "r001"))
    with pytest.raises(UsageError, match="held out both in"):
        compare(first, second)


def test_the_command_compares_builds(built: Path) -> None:
    result = mmembed("compare", built, built, python=COLD)
    assert "B - A (95 %)" in result.stdout.splitlines()[0] and "+0.000 (+0.000 to +0.000)  1.0000" in result.stdout
