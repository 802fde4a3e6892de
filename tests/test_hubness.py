from __future__ import annotations

from pathlib import Path

import numpy as np
from dataset_builder import build, index, random_rows

from mmembed.config import IndexConfig
from mmembed.hubness import NEIGHBOURS, bank_of, csls_terms
from mmembed.index import candidate_rows, entry_of, index_path, query_rows, term_columns
from mmembed.linear import Scoring, normalize_rows


def unit(rows: int, seed: int, dim: int = 6) -> np.ndarray:
    return normalize_rows(np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32))


def test_csls_takes_off_half_the_mean_of_the_best_scores() -> None:
    candidates, bank = unit(9, 0), unit(50, 1)
    expected = [-np.mean(sorted(bank @ candidate)[-NEIGHBOURS:]) / 2 for candidate in candidates]
    np.testing.assert_allclose(csls_terms(candidates, bank, Scoring()), expected, rtol=1e-5)
    few = csls_terms(candidates, bank[:3], Scoring())
    np.testing.assert_allclose(few, -(candidates @ bank[:3].T).mean(axis=1) / 2, rtol=1e-5, atol=1e-7)
    assert not csls_terms(candidates, bank[:0], Scoring()).any()


def test_csls_of_log_ratios_counts_the_terms_of_both_sides() -> None:
    scoring = Scoring(np.full(6, 0.5, np.float32))
    candidates, bank = 2 * unit(9, 0), 2 * unit(50, 1)
    mine, asked = scoring.terms(candidates), scoring.terms(bank)
    assert mine is not None and asked is not None
    scores = bank @ candidates.T + mine + asked[:, np.newaxis]
    expected = -np.sort(scores, axis=0)[-NEIGHBOURS:].mean(axis=0) / 2
    np.testing.assert_allclose(csls_terms(candidates, bank, scoring), expected, rtol=1e-4, atol=1e-5)


def test_a_plain_inner_product_is_the_whole_score() -> None:
    scoring, names = Scoring(np.full(6, 0.5, np.float32)), ["image", "text"]
    queries, candidates = 2 * unit(4, 0), 2 * unit(9, 1)
    banks = {name: 2 * unit(40, 2) for name in names}
    own = scoring.terms(candidates)
    assert own is not None
    columns = term_columns(scoring, "none", names)
    assert columns == ["any"]
    rows = candidate_rows(candidates, "image", scoring, columns, {})
    found = query_rows(queries, {"text": 1.0}, columns) @ rows.T
    np.testing.assert_allclose(found, queries @ candidates.T + own, rtol=1e-5, atol=1e-5)

    columns = term_columns(scoring, "csls", names)
    rows = candidate_rows(candidates, "image", scoring, columns, banks)
    expected = queries @ candidates.T + own + csls_terms(candidates, banks["text"], scoring)
    np.testing.assert_allclose(query_rows(queries, {"text": 1.0}, columns) @ rows.T, expected, rtol=1e-4, atol=1e-5)
    same = query_rows(queries, {"image": 1.0}, columns) @ rows.T  # nothing is taken off among its own
    np.testing.assert_allclose(same, queries @ candidates.T + own, rtol=1e-5, atol=1e-5)
    assert term_columns(Scoring(), "none", names) == []


def test_the_bank_holds_training_segments_alone(tmp_path: Path) -> None:
    rows = random_rows(30, ["image", "text"], 6)
    dataset = build(tmp_path, rows, held_out={"r000", "r001"})
    held_out = normalize_rows(np.concatenate([row.vectors["text"] for row in rows[:2]]))
    bank = bank_of(dataset, "text")
    assert len(bank) == sum(len(row.vectors["text"]) for row in rows[2:])
    assert not np.isclose(bank @ held_out.T, 1).any()


def test_an_index_with_csls_names_its_terms(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(30, ["image", "text"], 6))
    assert entry_of(dataset, "image")["terms"] == []
    before = (tmp_path / index_path("image")).read_bytes()
    dataset = index(dataset, IndexConfig("csls"))
    assert entry_of(dataset, "image")["terms"] == ["image", "text"]
    assert (tmp_path / index_path("image")).read_bytes() != before
