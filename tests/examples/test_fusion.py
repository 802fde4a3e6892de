from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builder import Row, build

from examples import fusion

MODALITIES = ("image", "text", "audio")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records whose class is told by two modalities together: colour by the picture, shape by the text."""
    random = np.random.default_rng(0)
    colours, shapes = random.normal(size=(3, 8)), random.normal(size=(3, 8))
    rows = []
    for number in range(300):
        colour, shape = random.integers(3, size=2)
        vectors = {
            "image": colours[colour] + 0.2 * random.normal(size=(2, 8)),
            "text": shapes[shape] + 0.2 * random.normal(size=(1, 8)),
            "audio": random.normal(size=(1, 8)),
        }
        there = {name: value.astype(np.float32) for name, value in vectors.items() if name != "audio" or number % 3}
        metadata = {"colour": None if number == 4 else f"c{colour}", "shape": None if number == 8 else int(shape)}
        rows.append(Row(f"r{number:03d}", there, metadata))
    held_out = {f"r{number:03d}" for number in range(0, 300, 4)}
    return build(
        tmp_path_factory.mktemp("data") / "out", rows, MODALITIES, 8, unit=64, held_out=held_out, until="project"
    ).folder


def test_modalities_that_are_missing_change_nothing() -> None:
    torch.manual_seed(0)
    model = fusion.Fusion(3, 8, 4).eval()
    embeddings, present = torch.randn(6, 3, 8), torch.rand(6, 3) > 0.5
    other = torch.where(present[..., None], embeddings, 7.0)
    with torch.no_grad():
        (logits, shares), (same, _) = model(embeddings, present), model(other, present)
    torch.testing.assert_close(logits, same)
    assert not shares[~present].any()
    assert (shares.sum(1) <= 1 + 1e-6).all()


def test_records_come_with_their_classes_and_with_what_they_lack(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = fusion.read(out, ["colour", "shape"], "heldout")
    assert "2 records of heldout have no colour and shape: left out" in capsys.readouterr().out
    assert records.embeddings.shape == (73, 3, 8)
    assert records.present[:, 2].sum() == 48
    assert not records.embeddings[~records.present].any()
    assert len(set(records.classes)) == 9
    lengths = records.embeddings.norm(dim=2)[records.present]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 8**0.5))


def test_it_says_what_each_modality_adds(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fusion", str(out), "--label", "colour", "shape", "--epochs", "30", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", words)
    fusion.main()
    shown = capsys.readouterr().out
    assert "73 held-out records (73 image, 73 text, 48 audio), 9 classes" in shown
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    accuracy = {name: one["accuracy"]["value"] for name, one in found.items() if isinstance(one, dict)}
    assert accuracy["image + text + audio"] > 0.9
    assert accuracy["image + text"] > 0.9
    assert 0.2 < accuracy["image"] < 0.6 > accuracy["text"] > 0.2
    assert accuracy["audio"] < 0.3
    for one in (found["image"], found["most frequent"]):
        low, high = one["accuracy"]["95 %"]
        assert low <= one["accuracy"]["value"] <= high
    low, high = found["image + text"]["accuracy"]["all minus this, 95 %"]
    assert low <= 0 <= high + 0.05  # noise adds nothing
    assert found["image + audio"]["accuracy"]["all minus this, 95 %"][0] > 0.2  # the text does


def test_figures_are_those_of_the_definition() -> None:
    true, found = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    accuracy, f1 = fusion.figures(found, true)
    assert accuracy == 0.5
    assert f1 == pytest.approx((2 / 3 + 2 * 1 / (3 + 1) + 0) / 3)
