from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import Row, build, random_rows, rewrite

from mmembed.errors import DatasetError, UsageError
from mmembed.evaluate import evaluate, format_table
from mmembed.linear import normalize_rows
from mmembed.shards import read_table


def test_evaluation_of_a_data_set_equals_a_slow_loop(tmp_path: Path) -> None:
    rows = random_rows(24, ["image", "text"], 6, seed=5)
    rows[3] = Row(rows[3].id, {"text": rows[3].vectors["text"]})  # a candidate, never a query
    rows[5] = Row(rows[5].id, rows[5].vectors, hashes={"text": "twin"})
    rows[9] = Row(rows[9].id, rows[9].vectors, hashes={"text": "twin"})
    rows[11] = Row(rows[11].id, rows[11].vectors, hashes={"text": "twin"})  # not held out: no candidate
    held_out = {row.id for i, row in enumerate(rows) if i % 3 == 0 or i == 5}
    result = evaluate(build(tmp_path, rows, held_out=held_out))

    asked = [row for row in rows if row.id in held_out and "image" in row.vectors]
    answers = [row for row in rows if row.id in held_out]
    found = []
    for query in asked:
        mean = normalize_rows(normalize_rows(query.vectors["image"]).mean(axis=0, keepdims=True))[0]
        scores = {row.id: float((normalize_rows(row.vectors["text"]) @ mean).max()) for row in answers}
        good = {query.id} | ({"r005", "r009"} if query.id in ("r005", "r009") else set())
        best = max(scores[id] for id in good)
        found.append(1 + sum(score > best for score in scores.values()))
    (row,) = (row for row in result["rows"] if (row["query"], row["target"]) == ("image", "text"))
    assert result["records"] == {"image": 8, "text": 9}
    assert (row["queries"], row["candidates"]) == (8, 9)
    assert row["median_rank"] == np.median(found)
    assert row["mrr"] == pytest.approx(np.mean([1 / rank for rank in found]))
    assert row["recall@5"] == np.mean([rank <= 5 for rank in found])
    assert row["mrr_low"] < row["mrr"] < row["mrr_high"] and 0 < row["map"] <= row["mrr"]
    twins = sum(row.id in ("r005", "r009") for row in asked)
    assert twins == 2
    assert row["chance_recall@1"] == pytest.approx((6 * 1 + 2 * 2) / 9 / 8)
    (back,) = (row for row in result["rows"] if (row["query"], row["target"]) == ("text", "image"))
    assert (back["queries"], back["candidates"]) == (8, 8)
    assert back["chance_recall@1"] == pytest.approx((6 * 1 + 2 * 2) / 8 / 8)  # the same text is as right
    assert json.loads(json.dumps(result)) == result


def test_every_ordered_pair_is_measured_and_shown(tmp_path: Path) -> None:
    names = ["audio", "image", "text"]
    rows = random_rows(12, names, 6)
    result = evaluate(build(tmp_path, rows, names, held_out={row.id for row in rows}))
    assert [(row["query"], row["target"]) for row in result["rows"]] == list(permutations(names, 2))
    lines = format_table(result).splitlines()
    assert len(lines) == 1 + 6 + 2
    assert len({len(line) for line in lines[:7]}) == 1
    assert lines[1].split()[:4] == ["audio", "image", "12", "12"]
    assert f"{result['rows'][0]['recall@5']:.1%} ({5 / 12:.1%})" in lines[1]


def test_without_held_out_records_the_note_says_why(tmp_path: Path) -> None:
    result = evaluate(build(tmp_path, random_rows(5, ["image", "text"], 6)))
    assert result["rows"] == [] and "no record is held out" in result["note"]
    assert format_table(result) == result["note"]


def test_held_out_records_of_one_modality_each_make_no_row(tmp_path: Path) -> None:
    rows = [*random_rows(2, ["image"], 6), Row("t", {"text": np.ones((1, 6), np.float32)})]
    result = evaluate(build(tmp_path, rows, held_out={"r000", "t"}))
    assert result["rows"] == [] and "(1 with image, 1 with text)" in result["note"]


def test_features_of_other_rows_are_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(8, ["image", "text"], 6), held_out={"r000"})
    path = "features/text/part-00001.parquet"
    table = read_table(dataset.read(path))
    with pytest.raises(DatasetError, match="not of the same rows"):
        evaluate(rewrite(dataset, path, table.take(list(reversed(range(table.num_rows))))))


def test_without_embeddings_the_message_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mmembed project"):
        evaluate(build(tmp_path, random_rows(3, ["image", "text"], 6), until="fit"))
