"""What is told of embeddings: the attacks against slow references and scikit-learn, the noise, and the command."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import complaint, mmembed
from conftest import build_small
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mmembed.audit import areas, audit, bags_of, balanced, format_audit, overlap, probe
from mmembed.dataset import Dataset
from mmembed.metrics import mean_bounds
from mmembed.project import noisy, secret_normal

KEY = "0123456789abcdef0123456789abcdef"
WORDS = st.text("ab ,A1", max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_the_overlap_is_f1_of_words(pairs: list[tuple[str, str]]) -> None:
    true, guessed = zip(*pairs, strict=True)
    bags = bags_of([*true, *guessed])
    found = overlap(bags[: len(true)], bags[len(true) :])
    for value, pair in zip(found, pairs, strict=True):
        a, b = (Counter(re.findall(r"\w+", text.lower())) for text in pair)
        both = sum((a & b).values())
        precision, recall = both / max(1, sum(b.values())), both / max(1, sum(a.values()))
        assert value == pytest.approx(2 * precision * recall / (precision + recall) if both else 0)


def test_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    numbers, scores = random.integers(0, 4, 200), random.normal(size=(200, 4))
    accuracy, (low, high) = balanced(scores, numbers)
    assert accuracy == pytest.approx(balanced_accuracy_score(numbers, scores.argmax(axis=1)))
    assert low < accuracy < high
    signs = np.sign(random.normal(size=(200, 3)))
    signs[:, 1] = 1  # a word that all have
    scores = np.round(random.normal(size=(200, 3)), 1)  # with ties
    expected = [roc_auc_score(signs[:, column] > 0, scores[:, column]) for column in (0, 2)]
    assert areas(scores, signs) == pytest.approx(expected)


def test_a_probe_is_the_ridge_regression_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(60, 5)).astype(np.float32)
    targets, weights = random.normal(size=(60, 2)), random.uniform(0.5, 2, 60)
    train, test = np.arange(40), np.arange(40, 60)
    found = probe(vectors, targets, train, test, weights, lambda *_: 0.0)  # the first of equal ridges is taken
    share = weights[:40] / weights[:40].sum()
    centered = vectors[:40] - share @ vectors[:40]
    alpha = 1e-3 * np.trace((centered * share[:, None]).T @ centered) / 5
    expected = Ridge(alpha=alpha).fit(vectors[:40], targets[:40], sample_weight=share).predict(vectors[40:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_bounds_of_a_mean_hold_it() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = mean_bounds(values)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_noise_is_secret_of_its_length_and_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [str(row) for row in range(500)]
    drawn = secret_normal(b"k" * 32, names, vectors)
    assert abs(drawn.mean()) < 0.02 and drawn.std() == pytest.approx(1, abs=0.02)
    assert (drawn == secret_normal(b"k" * 32, names, vectors)).all()
    assert (drawn[7] == secret_normal(b"k" * 32, names[7:8], vectors[7:8])[0]).all()  # whatever is beside it
    others = [
        secret_normal(b"l" * 32, names, vectors),
        secret_normal(b"k" * 32, names[::-1], vectors),
        secret_normal(b"k" * 32, names, vectors[::-1]),
    ]
    for other in others:
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.03
    with_noise = noisy(vectors, 0.5, drawn)
    np.testing.assert_allclose(np.linalg.norm(with_noise, axis=1), 1, atol=1e-6)
    assert np.mean(np.sum(with_noise * vectors, axis=1)) == pytest.approx(1 / np.sqrt(1.25), abs=0.01)
    np.testing.assert_allclose(noisy(vectors, 0, drawn), vectors, atol=1e-6)


@pytest.fixture(scope="module")
def out(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "out"
    build_small(manifest, out, "--holdout", 0.3)
    return out


def test_the_nearest_caption_tells_more_than_chance_and_noise_takes_it(out: Path) -> None:
    result = json.loads(mmembed("audit", out, "--json").stdout)
    rows = {row["modality"]: row for row in result["inversion"]}
    assert rows["text"]["identified"] == 1 and rows["text"]["f1"] > rows["text"]["chance_f1"] + 0.05
    first, *others = result["trials"]
    assert first["noise"] == 0 and {row["noise"] for row in others} >= {0.5, 2.0}
    loud = next(row for row in others if row["noise"] == 2)
    assert loud["identified_text"] < 0.7 and loud["accuracy"] < first["accuracy"]
    assert loud["recall@10"] < first["recall@10"]
    assert any(row["dim"] < first["dim"] for row in others)
    colors = next(row for row in result["probes"] if (row["modality"], row["what"]) == ("text", "color"))
    assert colors["accuracy"] > 3 * colors["chance"]
    assert 0 < colors["accuracy_low"] <= colors["accuracy"] <= colors["accuracy_high"] <= 1


def test_captions_from_a_file_are_the_guesses(out: Path, tmp_path: Path) -> None:
    texts = pq.read_table(out / "embeddings" / "text", columns=["media", "split"]).to_pylist()
    (tmp_path / "captions").write_text("\n".join(row["media"] for row in texts if row["split"] == "heldout"))
    result = audit(Dataset.open(out), tmp_path / "captions")
    assert result["copies"] == 1 and result["inversion"][-1]["f1"] == pytest.approx(1)
    said = format_audit(result)
    assert "100.0% of the texts that are attacked are among them word for word" in said
    assert "no promise of privacy" in said


def test_filters_chunks_and_maps_that_are_not_ordered(small: Path, tmp_path: Path) -> None:
    flags = ("--text-words", 4, "--text-min-words", 6, "--fit", "procrustes", "--holdout", 0.3)
    build_small(small.parent / "manifest.jsonl", tmp_path / "out", *flags)
    (tmp_path / "captions").write_text("red\na big blue star\n")
    result = audit(Dataset.open(tmp_path / "out"), tmp_path / "captions")
    assert result["outside"] == 2 and result["inversion"]
    assert len({row["dim"] for row in result["trials"]}) == 1


def test_wrong_calls_are_said(out: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("Grün".encode("latin-1"))
    (tmp_path / "empty").write_text("\n \n")
    for name, line in (("none", "can't read"), ("latin", "are no UTF-8 at byte 2"), ("empty", "hold no text")):
        assert line in complaint(mmembed("audit", out, "--captions", tmp_path / name, expect=2))
    mmembed("extract", small.parent / "manifest.jsonl", tmp_path / "out", "--workers", 1)
    assert "has not been run" in complaint(mmembed("audit", tmp_path / "out", expect=2))


def test_embeddings_get_the_noise_that_is_asked_for(small: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    words = ("--secret", tmp_path / "key", "--noise", 0.5)
    made = []
    for name in ("a", "b"):
        build_small(small.parent / "manifest.jsonl", tmp_path / name, *words)
        made.append([path.read_bytes() for path in sorted((tmp_path / name / "embeddings").rglob("*.parquet"))])
    assert made[0] == made[1]
    assert mmembed("verify", tmp_path / "a").returncode == 0
    assert "The embeddings have noise 0.5." in mmembed("audit", tmp_path / "a").stdout
    plain, with_noise = (
        np.stack(pq.read_table(root / "embeddings" / "text")["embedding"].to_pylist())
        for root in (small, tmp_path / "a")
    )
    assert np.mean(np.sum(plain * with_noise, axis=1)) == pytest.approx(1 / np.sqrt(1.25), abs=0.08)
    (tmp_path / "key").write_text(KEY[::-1])
    assert "project: up to date" not in mmembed("project", tmp_path / "a").stderr
    (tmp_path / "key").unlink()
    assert "can't read the secret" in complaint(mmembed("project", tmp_path / "a", "--noise", 0.4, expect=2))


def test_noise_needs_a_secret_and_embeddings_of_length_one(small: Path, tmp_path: Path) -> None:
    out = shutil.copytree(small, tmp_path / "out")
    assert "a secret is needed" in complaint(mmembed("project", out, "--noise", 0.1, expect=2))
    mmembed("fit", out, "--fit", "pmi")
    assert "fit = 'pmi' gives others" in complaint(mmembed("project", out, "--noise", 0.1, expect=2))
