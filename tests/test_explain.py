from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import COLD, mmembed
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PILImage

from mmembed.explain import explain, render, shapley
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.search import Query, Searcher


def additive(adds: NDArray[np.float64]) -> Any:
    return lambda kept: kept @ adds + 0.5


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9))
def test_what_adds_up_is_found_exactly(adds: list[float]) -> None:
    found, nothing = shapley(additive(np.array(adds)), len(adds), 2)
    np.testing.assert_allclose(found, adds, atol=1e-9)
    assert nothing == 0.5


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(0, 100))
def test_additions_sum_up_to_the_whole_in_any_game(parts: int, seed: int) -> None:
    table = np.random.default_rng(seed).normal(size=2**parts)
    found, nothing = shapley(lambda kept: table[kept @ (1 << np.arange(parts))], parts, 4)
    assert found.sum() + nothing == pytest.approx(table[-1])


def test_many_orders_come_near_the_shapley_values() -> None:
    parts, table = 4, np.random.default_rng(0).normal(size=16)
    exact = np.zeros(parts)
    for part in range(parts):
        for others in range(16):
            if not others >> part & 1:
                size = bin(others).count("1")
                weight = factorial(size) * factorial(parts - size - 1) / factorial(parts)
                exact[part] += weight * (table[others | 1 << part] - table[others])
    found, _ = shapley(lambda kept: table[kept @ (1 << np.arange(parts))], parts, 4000)
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_parts_of_a_text_are_its_words() -> None:
    text = "Three small, red stars."
    parts = Text().parts(text)
    assert [text[int(a) : int(b)] for a, b in parts] == ["Three", "small,", "red", "stars."]
    assert Text().masked(text, parts[1:2]) == "Three red stars."
    assert Text().masked(text, []) == text
    assert Text().masked(text, parts) == ""


def test_a_long_text_has_few_parts_which_cover_its_words_once() -> None:
    for words, count in ((64, 64), (65, 64), (500, 26), (5000, 8), (50_000, 8)):
        text = " ".join(f"word{place:05}" for place in range(words))
        parts = Text().parts(text)
        assert len(parts) == count
        assert " ".join(text[int(a) : int(b)] for a, b in parts) == text
        assert Text().masked(text, parts[::-1]) == ""
        assert Text().masked(text, parts[1:]) == text[: int(parts[0][1])]
    assert Text().parts("") == [] and Text().masked("", []) == ""


@given(st.text(st.sampled_from("ab .。图ก\u0e31\u200b\u0301\n"), max_size=400))
def test_a_text_without_all_its_parts_is_empty_and_without_none_whole(raw: str) -> None:
    text = Text().normalize(raw)
    assert Text().masked(text, Text().parts(text)) == "" and Text().masked(text, []) == text


def test_a_long_text_is_explained_in_bounded_work(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Searcher.open(built)
    encoder, encoded = asked.encoders["text"][1], 0
    encode = type(encoder).encode

    def counted(self: Any, batch: Any) -> Any:
        nonlocal encoded
        encoded += sum(map(len, batch))
        return encode(self, batch)

    monkeypatch.setattr(type(encoder), "encode", counted)
    text = " ".join(f"star{place % 97}" for place in range(3000))
    found = explain(asked, Query.of(text=text), "scene-000003", "image")
    assert 0 < encoded <= 1 << 20 and len(found.query.parts) == 8
    assert sum(part.adds for part in found.query.parts) + found.query.rest == pytest.approx(found.score, abs=1e-5)
    assert max(map(len, render(found).splitlines()[2:])) < 120


def test_parts_of_a_picture_are_cells_that_cover_it_once() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    cells = Image().parts(picture)
    covered = np.zeros((30, 30), int)
    for left, top, right, bottom in cells:
        covered[int(top) : int(bottom), int(left) : int(right)] += 1
    assert len(cells) == 64 and (covered == 1).all()
    assert (Image().masked(picture, []) == picture).all()
    masked = Image().masked(picture, cells[:1])
    assert (masked[:3, :3] == picture.mean(axis=(0, 1)).round()).all() and (masked[4:] == picture[4:]).all()


def test_parts_of_a_sound_are_stretches_without_the_padding() -> None:
    sound = np.pad(np.ones(16_000, np.float32), (0, 8_000))
    parts = Audio().parts(sound)
    assert len(parts) == 20 and parts[0] == (0, 0.05) and parts[-1][1] == 1.0
    masked = Audio().masked(sound, parts[1:2])
    assert not masked[800:1600].any() and masked[:800].all() and masked[1600:16_000].all()


def explained(out: Path, **query: Any) -> Any:
    return explain(Searcher.open(out), Query.of(**query), "scene-000003")


def test_parts_add_up_to_the_score_that_a_query_gets(built: Path, rows: list[dict[str, Any]]) -> None:
    found = explained(built, text="three small red stars")
    for side in (found.query, found.record):
        assert sum(part.adds for part in side.parts) + side.rest == pytest.approx(found.score, abs=1e-5)
    assert [part.label for part in found.query.parts] == ["three", "small", "red", "stars"]
    hits = Searcher.open(built).search(Query.of(text="three small red stars"), found.record.modality, 1000)
    (hit,) = (hit for hit in hits if hit.id == "scene-000003")
    assert hit.score == pytest.approx(found.score, abs=1e-5)
    assert len(render(found).splitlines()) > 10


@pytest.mark.parametrize("method", [("--fit", "pmi"), ("--fit", "pls")])
def test_other_scores_split_too(built: Path, tmp_path: Path, method: tuple[str, str]) -> None:
    shutil.copytree(built, tmp_path / "out")
    for stage in (("fit", *method), ("project",), ("index",)):
        mmembed(stage[0], tmp_path / "out", *stage[1:], "--", "--runner=FnApiRunner")
    found = explained(tmp_path / "out", text="three small red stars")
    for side in (found.query, found.record):
        assert sum(part.adds for part in side.parts) + side.rest == pytest.approx(found.score, abs=1e-4)
    hits = Searcher.open(tmp_path / "out").search(Query.of(text="three small red stars"), found.record.modality, 1000)
    assert {hit.id: hit.score for hit in hits}["scene-000003"] == pytest.approx(found.score, abs=1e-4)


def test_the_command_shows_it_and_draws_it(
    built: Path, manifest: Path, rows: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.png"
    row = rows[3]
    picture = manifest.parent / str(next(r["image"] for r in rows if "image" in r))
    result = mmembed(
        "explain", built, "--text", "three red stars", "--id", row["id"], "--to", "image", "--overlay", overlay
    )
    assert result.stdout.startswith("score ") and "red" in result.stdout
    with PILImage.open(overlay) as image:
        assert image.size == (256, 256) or image.size[0] == image.size[1]
    result = mmembed("explain", built, "--image", picture, "--id", row["id"], "--to", "text", "--json", python=COLD)
    found = json.loads(result.stdout)
    assert len(found["query"]["parts"]) == 64
    assert sum(part["adds"] for part in found["query"]["parts"]) + found["query"]["rest"] == pytest.approx(
        found["score"], abs=1e-5
    )


def test_what_can_not_be_explained_is_one_line(built: Path, rows: list[Mapping[str, Any]], tmp_path: Path) -> None:
    for words, said in (
        (("--text", "stars", "--id", "nobody"), "no embeddings of a record with the id 'nobody'"),
        (("--text", "stars", "--id", rows[3]["id"], "--to", "video"), "has no video"),
    ):
        result = mmembed("explain", built, *words, expect=2)
        assert said in result.stderr and len(result.stderr.splitlines()) == 1
    drawn = ("--text", "stars", "--id", rows[3]["id"], "--to", "text", "--overlay", tmp_path / "o.png")
    assert "--overlay draws on pictures" in mmembed("explain", built, *drawn, expect=2).stderr
    assert not (tmp_path / "o.png").exists()
