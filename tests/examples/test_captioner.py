"""The caption model of examples/captioner: what it computes, how it goes on after a crash, how it is judged."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import caption
import evaluate
from data import SPECIAL, Statistics, Vocabulary, join_words, load, split_words, validates
from model import END, METADATA, PAD, START, UNKNOWN, Captioner, beam_search
from scenes import named

FOLDER = Path(__file__).parents[2] / "examples/captioner"
WORDS = 7
"""Of which three are no special ones."""


@pytest.fixture
def model() -> Captioner:
    torch.manual_seed(0)
    found = Captioner(WORDS, {"image": 5, "audio": 3}, {"image": 4, "audio": 2}, width=8, layers=1)
    found.eval()
    return found


def inputs(rows: int, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each record one to four tiles, and up to two stretches of sound."""
    random = np.random.default_rng(seed)
    found = {}
    for name, segments, dim, least in (("image", 4, 5, 1), ("audio", 2, 3, 0)):
        counts = random.integers(least, segments + 1, size=rows)
        vectors = random.normal(size=(rows, segments, dim)).astype(np.float32)
        found[name] = (torch.from_numpy(vectors), torch.from_numpy(np.arange(segments) < counts[:, np.newaxis]))
    words = torch.from_numpy(random.integers(UNKNOWN, WORDS, size=(rows, 3)))
    found[METADATA] = (words, torch.from_numpy(random.random((rows, 3)) < 0.5))
    return found


def test_segments_that_are_not_there_change_nothing(model: Captioner) -> None:
    given = inputs(6)
    other = {name: (values.clone(), mask) for name, (values, mask) in given.items()}
    for values, mask in other.values():
        values[~mask] = PAD if values.dtype == torch.int64 else 9.0
    words = torch.randint(UNKNOWN, WORDS, (6, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(given, words), model(other, words))
        assert not torch.equal(model(given, words), model(inputs(6, seed=1), words))


def test_a_record_may_have_more_segments_than_those_of_training(model: Captioner) -> None:
    given = inputs(2)
    more = {**given, "image": tuple(torch.cat([part, part], 1) for part in given["image"])}
    words = torch.tensor([[START, 4, END], [START, 5, END]])
    with torch.no_grad():
        assert model(more, words).shape == (2, 2, WORDS)


def test_a_word_depends_on_those_before_it_alone(model: Captioner) -> None:
    words = torch.tensor([[START, 4, 5, 6, END]])
    changed = torch.tensor([[START, 4, 6, 4, END]])
    with torch.no_grad():
        first, second = model(inputs(1), words), model(inputs(1), changed)
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


def score(model: Captioner, given: Any, words: tuple[int, ...], alpha: float) -> float:
    """The log probability of a whole caption and its end, over a power of its length."""
    row = torch.tensor([[START, *words, END]])
    with torch.no_grad():
        logits: torch.Tensor = model(given, row)[0].log_softmax(-1)
    total = sum(logits[place, word].item() for place, word in enumerate(row[0, 1:].tolist()))
    return float(total / (len(words) + 1) ** alpha)


def test_a_beam_that_is_wide_enough_finds_the_best_of_all_captions(model: Captioner) -> None:
    longest = 4
    with torch.no_grad():
        model.output[-1].bias[END] += 2.0  # so that captions end  # type: ignore[operator, index]
    every = [words for n in range(longest) for words in itertools.product(range(UNKNOWN + 1, WORDS), repeat=n)]
    for seed in range(4):
        given = inputs(1, seed)
        scores = {words: score(model, given, words, 0.7) for words in every}
        [found] = beam_search(model, given, beams=len(every), longest=longest)
        assert tuple(found) == max(scores, key=scores.__getitem__)


def test_records_are_captioned_together_as_they_are_alone(model: Captioner) -> None:
    given = inputs(5)
    alone = [
        beam_search(model, {name: (v[row : row + 1], m[row : row + 1]) for name, (v, m) in given.items()}, 3, 8)[0]
        for row in range(5)
    ]
    assert beam_search(model, given, 3, 8) == alone
    assert any(alone)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_words_have_numbers_and_back(texts: list[str]) -> None:
    vocabulary = Vocabulary.of(texts, least=1)
    for row, text in zip(vocabulary.encode(texts, longest=99).tolist(), texts):
        words = [number for number in row if number not in (PAD, START, END)]
        assert UNKNOWN not in words
        assert vocabulary.decode(words) == join_words(split_words(text))


def test_rare_words_are_unknown_and_long_captions_are_cut() -> None:
    vocabulary = Vocabulary.of(["two red stars", "a red star", "a red, big star"], least=2)
    assert vocabulary.words == [*SPECIAL, "a", "red", "star"]
    assert vocabulary.encode(["A red star.", "blue"], longest=3).tolist() == [
        [START, 4, 5, END],
        [START, UNKNOWN, END, PAD],
    ]


def test_statistics_are_those_of_all_segments_that_are_there() -> None:
    vectors, mask = inputs(50)["image"]
    statistics = Statistics()
    for start in (0, 20):
        statistics.add(vectors[start : start + 20], mask[start : start + 20])
    rows = vectors[:40][mask[:40]].numpy()
    mean, deviation = statistics.result()
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation, rows.std(axis=0), atol=1e-6)


def test_about_the_share_is_kept_for_validation() -> None:
    kept = [validates(f"record {number}", 0.1) for number in range(5000)]
    assert abs(np.mean(kept) - 0.1) < 0.02
    assert not any(validates(str(number), 0) for number in range(100))


def command(small: Path, path: Path) -> list[str]:
    words = [str(FOLDER / "train.py"), str(small), str(path), "--inputs", "image", "audio", "--steps", "96"]
    words += ["--metadata", "size", "position"]
    return [sys.executable, *words, "--batch", "16", "--width", "32", "--save", "8", "--least", "1", "--rate", "0.01"]


def test_a_run_that_is_killed_goes_on_to_the_same_weights(small: Path, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, without a word, and started again: every weight is the same to the last bit."""
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    done = subprocess.run(command(small, whole), check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    first, last = (float(line.split("cross-entropy ")[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < 0.8 * first  # it learns
    with subprocess.Popen(command(small, killed), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not killed.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    between = torch.load(killed, weights_only=True)
    assert 0 < between["step"] < 96
    assert between["reader"]["position"] > 0
    subprocess.run(command(small, killed), check=True, capture_output=True)
    expected, found = (torch.load(path, weights_only=True) for path in (whole, killed))
    assert found["reader"] == expected["reader"]
    assert all(torch.equal(found["model"][name], value) for name, value in expected["model"].items())
    assert torch.equal(found["random"], expected["random"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--width", "64"], r"was begun with \{'width': 32\}: give the same flags, or another file"),
        (["--inputs", "audio"], "--inputs must name image"),
        ([], "has 96 of 96 steps"),
    ],
    ids=str,
)
def test_a_run_goes_on_with_its_own_flags_alone(small: Path, trained: Path, change: list[str], message: str) -> None:
    before = trained.read_bytes()
    result = subprocess.run([*command(small, trained), *change], capture_output=True, text=True)
    assert re.search(message, result.stdout + result.stderr)
    assert (result.returncode == 0) == (not change)
    assert trained.read_bytes() == before


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    subprocess.run(command(small, path), check=True, capture_output=True)
    return path


def run(program: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
    program.main()


def test_captions_of_held_out_and_of_given_records(
    small: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(caption, monkeypatch, small, trained, "--limit", 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    ids = [line.split("\t")[0] for line in lines]
    assert all(line.split("\t")[1] for line in lines)
    run(caption, monkeypatch, small, trained, *ids[:2])
    assert capsys.readouterr().out.splitlines() == lines[:2]
    with pytest.raises(SystemExit, match="no picture of nobody"):
        run(caption, monkeypatch, small, trained, "nobody")


def test_a_wrong_folder_ends_with_one_line(tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path, tmp_path / "model.pt"), capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path} holds no data set")
    assert result.stderr.count("\n") == 1


def test_a_model_is_judged_beside_baselines(
    small: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(evaluate, monkeypatch, small, trained, "--scenes", "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    shown = capsys.readouterr().out
    for name in ("model", "shuffled images", "most frequent", "nearest image", "nearest text"):
        assert name in shown
        assert {"F1", "BLEU", "CIDEr", "color", "shape", "count", "all three"} <= figures[name].keys()
    model, vocabulary, form = load(trained)
    ids, texts, given = evaluate.held_out(small, form, vocabulary)
    assert figures["records"] == len(ids) == len(texts) > 2
    words = vocabulary.encode([captions[0] for captions in texts], form.longest)
    losses, right = [], []
    for row in range(len(ids)):  # one by one, word by word
        length = int((words[row] != PAD).sum())
        with torch.no_grad():
            one = {name: (v[row : row + 1], m[row : row + 1]) for name, (v, m) in given.items()}
            logits = model(one, words[row : row + 1, :length])[0].log_softmax(-1)
        for place, word in enumerate(words[row, 1:length].tolist()):
            losses.append(-float(logits[place, word]))
            right.append(int(logits[place].argmax()) == word)
    assert math.isclose(figures["model"]["cross-entropy"], np.mean(losses), rel_tol=1e-4)
    assert math.isclose(figures["model"]["token accuracy"], np.mean(right), rel_tol=1e-6)


def test_words_in_common_as_an_f1() -> None:
    assert evaluate.token_f1("a red star", "the red star.") == 1
    assert evaluate.token_f1("two red red stars", "red stars here") == pytest.approx(2 * 2 / (4 + 3))
    assert evaluate.token_f1("", "star") == 0
    texts = ["two big red stars", "one small blue ring here"]
    same = evaluate.compare(texts, [["not this one", texts[0]], [texts[1]]])
    assert same["F1"] == 1
    assert same["BLEU"] == pytest.approx(100)
    assert same["CIDEr"] == pytest.approx(7.5)  # the mean over captions, of which one is quite another


def test_what_captions_of_the_sample_name_is_read_rightly(rows: list[dict[str, Any]]) -> None:
    texts = [row for row in rows if "text" in row]
    assert len(texts) > 100
    for row in texts:
        assert named(row["text"]) == {key: row[key] for key in ("shape", "color", "count")}
    assert named("red and blue stars") == {"shape": "star", "color": None, "count": None}
