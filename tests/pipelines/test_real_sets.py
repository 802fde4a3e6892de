"""Real data: the stamps of Tux Paint with their texts and sounds, from a Debian package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from command import ENVIRONMENT, ROOT, mmembed
from conftest import Shared

from mmembed.dataset import Dataset
from mmembed.splits import TRAIN, split_of
from mmembed.verify import verify

SCRIPT = ROOT.parent / "shared" / "data" / "build_tuxstamps.py"


@pytest.fixture(scope="module")
def real_sets(shared: Shared) -> Path:
    """The folder of the manifests tuxstamps.jsonl and tuxspeech.jsonl."""
    if not SCRIPT.exists():
        pytest.skip(f"there is no {SCRIPT.name} beside the checkout")
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("fetching a Debian package needs root and apt-get")
    if subprocess.run(["apt-get", "update"], capture_output=True, check=False).returncode:
        pytest.skip("apt-get update failed: no network, or no Debian mirror")
    return shared("real", download)


def download(folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{SCRIPT.name} can't run here: {done.stderr.strip().splitlines()[-1]}")


def directions(out: Path) -> dict[tuple[str, str], Any]:
    """What the evaluation says of each ordered pair of modalities."""
    evaluation = json.loads((out / "evaluation.json").read_text("utf-8"))
    return {(row["query"], row["target"]): row for row in evaluation["rows"]}


def recall(found: dict[tuple[str, str], Any], a: str, b: str) -> float:
    """Recall@10, the mean of both directions."""
    return float(found[a, b]["recall@10"] + found[b, a]["recall@10"]) / 2


def with_twins(manifest: Path) -> Path:
    """The same records with a column that near twins share: ids that differ in a number (frog, frog-1), equal texts."""
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    group = {row["id"]: row["id"] for row in rows}
    for name_of in (lambda row: re.sub(r"[-_]?\d+$", "", row["id"]), lambda row: row["text"]):
        first: dict[str, str] = {}
        for row in rows:
            ours, theirs = group[row["id"]], group[first.setdefault(name_of(row), row["id"])]
            group = {id: theirs if of == ours else of for id, of in group.items()}
    path = manifest.with_name(f"twins-{manifest.name}")
    path.write_text("".join(json.dumps(row | {"twins": group[row["id"]]}) + "\n" for row in rows), "utf-8")
    return path


def build(manifest: Path, out: Path) -> dict[tuple[str, str], Any]:
    mmembed("build", with_twins(manifest), out, "--holdout", 0.3, "--group-column", "twins")
    assert verify(Dataset.open(out)) == []
    return directions(out)


def test_stamps_and_their_texts_find_each_other(real_sets: Path, tmp_path: Path) -> None:
    found = build(real_sets / "tuxstamps.jsonl", tmp_path)
    assert Dataset.open(tmp_path).stage("extract").summary["records"] == 952
    assert found["text", "image"]["candidates"] >= 250
    assert recall(found, "image", "text") >= 0.30


def test_stamps_and_their_names_written_and_spoken_find_each_other(real_sets: Path, tmp_path: Path) -> None:
    found = build(real_sets / "tuxspeech.jsonl", tmp_path)
    assert set(found) == set(permutations(("image", "text", "audio"), 2))
    assert recall(found, "audio", "text") >= 0.45
    for a, b in combinations(("image", "text", "audio"), 2):
        for query, target in ((a, b), (b, a)):
            row = found[query, target]
            assert row["recall@10"] > 1.5 * row["chance_recall@10"], (query, target)


def test_pictures_and_sounds_that_were_never_seen_together_find_each_other(real_sets: Path, tmp_path: Path) -> None:
    """Training records have a text, and a picture or a sound: what pictures and sounds have in common is the text."""
    rows = [json.loads(line) for line in (real_sets / "tuxspeech.jsonl").read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        if split_of(row["text"], 0.3) == TRAIN:
            del row["audio" if number % 2 else "image"]
    manifest = real_sets / "partial.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    # Not grouped by media: the split would be another one than that which was made here.
    mmembed("build", manifest, tmp_path, "--holdout", 0.3, "--group-column", "text", "--no-group-media")
    assert Dataset.open(tmp_path).stage("fit").summary["pairs"]["audio+image"] == 0
    found = directions(tmp_path)
    for a, b in (("audio", "image"), ("image", "audio")):
        assert found[a, b]["recall@10"] > 2 * found[a, b]["chance_recall@10"]
        assert found[a, b]["mrr_low"] > 1.5 * found[a, b]["chance_mrr"]
