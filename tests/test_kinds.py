from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import kinds
from mmembed.kinds import Kind
from mmembed.linear import normalize_rows

ROWS, DIM = 11_000, 16
ALL = [kind.name for tier in kinds.tiers(ROWS, DIM) for kind in tier]


def rows_of(count: int, dim: int, seed: int = 0, unit: bool = True) -> np.ndarray:
    """Rows whose directions differ in variance, as those of learned maps do."""
    values = np.random.default_rng(seed).normal(size=(count, dim)) * np.linspace(2, 0.3, dim)
    return normalize_rows(values.astype(np.float32)) if unit else values.astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return rows_of(ROWS, DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return rows_of(40, DIM, seed=1)


def exact(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All scores, sorted: the slow reference."""
    scores = queries @ vectors.T
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


def widest(kind: Kind) -> dict[str, int]:
    return {**kind.points()[-1], "refine": 64}


def test_all_kinds_of_the_issue_are_there() -> None:
    text = " ".join(ALL)
    for part in (
        "Flat",
        "SQfp16",
        "SQ8",
        "HNSW32",
        "IVF256,Flat",
        "IVF256,SQ8",
        "OPQ8_16,IVF256,PQ8x4fs",
        "OPQ2_16,IVF256,PQ2",
    ):
        assert part in text.split() or part in text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "any length"])
def test_a_kind_that_looks_everywhere_finds_the_best_with_exact_scores(name: str, unit: bool) -> None:
    kind, vectors, queries = Kind(name), rows_of(ROWS, DIM, 0, unit), rows_of(40, DIM, 1, unit)
    radius = 0.0 if unit or kind.is_exact else float(np.linalg.norm(vectors, axis=1).max()) * 1.000001
    index = kinds.build(kind, vectors, radius)
    scores, rows = kinds.search(index, kind, vectors, queries, 10, widest(kind), radius)
    truth, _ = exact(queries, vectors, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    found = (scores >= truth[:, -1:] - 1e-5).mean()
    least = 0.3 if kind.directions == DIM // 2 else 0.9  # of rows of any length, half the directions lack too much
    assert found >= (0.99 if "PQ" not in name else 0.9 if unit else least), name


@pytest.mark.parametrize("name", [name for name in ALL if not Kind(name).is_graph])
def test_blocks_that_are_encoded_apart_give_the_same_bytes_as_faiss_alone(name: str, vectors: np.ndarray) -> None:
    kind = Kind(name)
    trained = kinds.train(kind, vectors, 0)
    state, dim = kinds.state_of(trained), vectors.shape[1]
    blocks = [
        kinds.encode(kinds.restored(kind, state, dim, 0), kind, vectors[start : start + 4000], 0)
        for start in range(0, ROWS, 4000)
    ]
    merged = kinds.fill(kinds.restored(kind, state, dim, 0), kind, blocks)
    trained.add(vectors)
    if kind.code.endswith("fs"):
        trained = kinds._packed(trained)
    assert (faiss.serialize_index(merged) == faiss.serialize_index(trained)).all()


@pytest.mark.parametrize("name", [name for name in ALL if Kind(name).lists or name == "HNSW32"])
def test_two_builds_give_the_same_bytes(name: str) -> None:
    few = rows_of(11_000 if "PQ2" in name else 3000, DIM)
    built = [faiss.serialize_index(kinds.build(Kind(name), few, 0)) for _ in range(2)]
    assert (built[0] == built[1]).all()


@pytest.mark.parametrize("name", ALL)
def test_the_size_is_known_beforehand(name: str, vectors: np.ndarray) -> None:
    size = len(faiss.serialize_index(kinds.build(Kind(name), vectors, 0)))
    assert 0.9 * size < Kind(name).bytes(ROWS, DIM) < 1.2 * size + 16_384


@pytest.mark.parametrize("name", ["Flat", "IVF256,Flat", "SQ8", "HNSW32"])
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.7])
def test_a_filter_finds_the_best_of_what_it_keeps(
    name: str, share: float, vectors: np.ndarray, queries: np.ndarray
) -> None:
    kind, kept = Kind(name), np.random.default_rng(5).random(ROWS) < share
    index = kinds.build(kind, vectors, 0)
    scores, rows = kinds.search(index, kind, vectors, queries, 10, widest(kind), kept=kept)
    places = np.flatnonzero(kept)
    truth, order = exact(queries, vectors[places], 10)
    count = min(10, len(places))
    assert kept[rows[rows >= 0]].all()
    assert ((rows >= 0).sum(axis=1) == count).all()
    assert np.isneginf(scores[:, count:]).all()
    if share < 0.1 or kind.is_exact:
        assert (rows[:, :count] == places[order]).all()
    assert (scores[:, :count] >= truth[:, -1:] - 1e-5).mean() > 0.97


def test_few_rows_behind_a_filter_are_compared_one_by_one(monkeypatch: pytest.MonkeyPatch, vectors: np.ndarray) -> None:
    monkeypatch.setattr(kinds, "_EXACT_ROWS", 0)  # so that a share decides alone
    index, kind = kinds.build(Kind("IVF256,Flat"), vectors, 0), Kind("IVF256,Flat")
    point = {"nprobe": 1, "refine": 1}
    asked = vectors[:20]
    for share, is_exact in ((0.01, True), (0.9, False)):
        kept = np.random.default_rng(6).random(ROWS) < share
        scores, _ = kinds.search(index, kind, vectors, asked, 10, point, kept=kept)
        truth, _ = exact(asked, vectors[kept], 10)
        assert ((scores >= truth[:, -1:] - 1e-5).mean() == 1) == is_exact


def test_where_a_filter_leaves_nothing_in_the_lists_that_are_looked_into_all_are_compared() -> None:
    random = np.random.default_rng(1)
    centers = 5 * random.normal(size=(40, DIM))
    vectors = normalize_rows((centers[np.arange(8000) % 40] + random.normal(size=(8000, DIM))).astype(np.float32))
    kind, kept = Kind("IVF64,SQ8"), np.arange(8000) % 40 < 20
    queries = vectors[np.arange(8000) % 40 >= 20][:30]
    index, point = kinds.build(kind, vectors, 0), {"nprobe": 1, "refine": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_EXACT_ROWS", 0)
        scores, rows = kinds.search(index, kind, vectors, queries, 10, point, kept=kept)
        many = kinds.search(index, kind, vectors, queries, 3000, point)[1]
    assert kept[rows].all()
    truth, _ = exact(queries, vectors[kept], 10)
    assert (scores >= truth[:, -1:] - 1e-5).mean() > 0.9
    assert (many >= 0).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 3), st.data())
def test_comparing_all_rows_is_right_with_ties_and_in_any_block(
    count: int, queries: int, k: int, levels: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vectors = random.integers(0, levels + 1, (count, 3)).astype(np.float32)
    asked = random.integers(0, 2, (queries, 3)).astype(np.float32)
    among = None if data.draw(st.booleans()) else np.flatnonzero(random.random(count) < 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_BLOCK_VALUES", data.draw(st.sampled_from([1, 20, 1 << 20])))
        scores, rows = kinds.nearest_of(asked, vectors, k, among)
    places = np.arange(count) if among is None else among
    truth, order = exact(asked, vectors[places], k)
    assert scores.shape == rows.shape == (queries, k)
    assert (rows[:, : len(places)] == places[order]).all() and (rows[:, len(places) :] == -1).all()
    assert (scores[:, : len(places)] == truth).all() and np.isneginf(scores[:, len(places) :]).all()


def test_pieces_have_an_equal_share_of_the_variance() -> None:
    rows = rows_of(4000, 32, unit=False)
    directions = kinds._balanced(rows, 32, 8)
    np.testing.assert_allclose(directions @ directions.T, np.eye(32), atol=1e-5)
    by_piece = (rows @ directions.T).var(axis=0).reshape(8, 4)
    plain = rows.var(axis=0).reshape(8, 4)

    def unevenness(parts: np.ndarray) -> float:
        products = np.log(parts).sum(axis=1)
        return float(products.max() - products.min())

    assert unevenness(by_piece) < unevenness(plain) / 5


def test_the_largest_product_is_the_nearest_on_the_sphere() -> None:
    rows, queries = rows_of(200, 5, unit=False), rows_of(7, 5, 1, unit=False)
    radius = float(np.linalg.norm(rows, axis=1).max())
    on_sphere, asked = kinds.codable(rows, radius), kinds.asking(queries, radius)
    np.testing.assert_allclose(np.linalg.norm(on_sphere, axis=1), radius, rtol=1e-4)
    distances = ((asked[:, np.newaxis] - on_sphere) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == (queries @ rows.T).argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("rows", "lists"), [(0, 1), (1, 1), (3, 1), (4, 4), (100, 16), (10_000, 256), (1_000_000, 2048), (10**9, 65536)]
)
def test_lists_follow_the_root_of_the_rows(rows: int, lists: int) -> None:
    assert kinds.lists_for(rows) == lists


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 7, 33])
def test_rows_of_any_width_have_kinds(dim: int) -> None:
    vectors = rows_of(1000, dim)
    for kind in (kind for tier in kinds.tiers(1000, dim) for kind in tier):
        found: Any = kinds.search(kinds.build(kind, vectors, 0), kind, vectors, vectors[:3], 5, widest(kind))
        assert (found[1] >= 0).all(), kind
