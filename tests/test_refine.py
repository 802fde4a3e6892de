from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmembed import refine
from mmembed.linear import Scoring
from mmembed.moments import View
from mmembed.pairs import Pairs, reciprocal_rank
from mmembed.refine import LOSSES, descend, embed, gradients, similarities

Array = NDArray[Any]

NAMES = ("audio", "image", "text")
SPECTRUM = np.array([0.9, 0.7, 0.4, 0.2], np.float64)


def batch(rows: int = 14, seed: int = 0) -> dict[str, Any]:
    """Variates of three modalities, some missing, some alike."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, 4))
    variates = {name: hidden + 0.7 * random.normal(size=(rows, 4)) for name in NAMES}
    present = {"audio": random.random(rows) < 0.6, "image": np.ones(rows, bool), "text": random.random(rows) < 0.9}
    numbers = {name: random.integers(0, rows, rows) for name in NAMES}
    alike = {name: of[:, np.newaxis] == of for name, of in numbers.items()}
    return {"variates": variates, "present": present, "alike": alike}


@pytest.mark.parametrize("spectrum", [None, SPECTRUM], ids=["cosine", "pmi"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, spectrum: Array | None) -> None:
    loss, scale = LOSSES[name]
    random = np.random.default_rng(1)
    parameters = {of: np.eye(4) + 0.3 * random.normal(size=(4, 4)) for of in NAMES}
    for pair in ("audio/image", "audio/text", "image/text"):
        parameters[f"scale/{pair}"] = np.array(scale if spectrum is None else (0.1, -0.3))
    _, found = gradients(**batch(), parameters=parameters, loss=loss, spectrum=spectrum)
    step = 1e-6
    for key, matrix in parameters.items():
        for place in np.ndindex(matrix.shape):
            values = []
            for sign in (1, -1):
                moved = matrix.copy()
                moved[place] += sign * step
                values.append(
                    gradients(**batch(), parameters={**parameters, key: moved}, loss=loss, spectrum=spectrum)[0]
                )
            assert found[key][place] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-6), key


def test_softmax_loss_is_the_cross_entropy_of_both_directions() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(6, 6))
    others = ~np.eye(6, dtype=bool)
    others[2, 4] = others[4, 2] = False
    value, _, _ = LOSSES["softmax"][0](scores, others, np.array([0.5, 0.0]))
    logits = np.exp(0.5) * scores
    slow = 0.0
    for i in range(6):
        for line in (logits[i], logits[:, i]):
            kept = [line[j] for j in range(6) if others[i, j] or i == j]
            slow -= line[i] - np.log(np.exp(kept).sum())
    assert value == pytest.approx(slow / 12)


def test_scores_are_those_that_queries_are_answered_with() -> None:
    random = np.random.default_rng(0)
    u, v, matrix = random.normal(size=(5, 4)), random.normal(size=(7, 4)), random.normal(size=(4, 4))
    spectrum = SPECTRUM.astype(np.float32)
    x, y = embed(u.astype(np.float32), matrix, spectrum), embed(v.astype(np.float32), matrix, spectrum)
    terms = Scoring(spectrum).terms(y)
    assert terms is not None
    difference = similarities(x, y, spectrum) - (x @ y.T + terms)
    np.testing.assert_allclose(difference, np.tile(difference[:, :1], 7), atol=1e-5)  # a query's own term
    np.testing.assert_allclose(np.linalg.norm(embed(u.astype(np.float32), matrix, None), axis=1), 1, rtol=1e-5)


def planted(rows: int, seed: int) -> Pairs:
    """Modalities that agree in two of four coordinates, which the start weighs the least."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(rows, 2))
    views = {
        name: View.single(np.hstack([random.normal(size=(rows, 2)), shared + 0.2 * random.normal(size=(rows, 2))]))
        for name in ("image", "text")
    }
    return Pairs.of(views, np.zeros(rows, np.int64))


def test_descent_learns_what_the_start_gets_wrong_and_keeps_the_best_step() -> None:
    train, fresh = planted(600, 0), planted(200, 1)
    start = {name: np.diag([1, 1, 0.3, 0.3]).astype(np.float32) for name in ("image", "text")}

    def rank(matrices: refine.Parameters) -> float:
        z = {name: embed(fresh.means[name], matrix, None) for name, matrix in matrices.items()}
        return reciprocal_rank(z, fresh, Scoring(), {("image", "text"): 1})

    course = descend(dict(train.means), dict(train.present), dict(train.media), start, "softmax", validate=rank)
    assert course.scores[course.step] == max(course.scores.values()) == rank(course.matrices)
    assert rank(course.matrices) > 1.05 * course.scores[0]
    losses = list(course.losses.values())
    assert losses[-1] < losses[0]
    again = descend(dict(train.means), dict(train.present), dict(train.media), start, "softmax", validate=rank)
    assert all(again.matrices[name].tobytes() == course.matrices[name].tobytes() for name in start)


def test_a_start_that_nothing_improves_is_kept() -> None:
    train = planted(100, 0)
    start = {name: np.eye(4, dtype=np.float32) for name in ("image", "text")}
    course = descend(
        dict(train.means), dict(train.present), dict(train.media), start, "softmax", steps=40, validate=lambda _: 0.5
    )
    assert course.step == 0 and all((course.matrices[name] == start[name]).all() for name in start)


def test_equal_media_are_no_wrong_answers_to_each_other() -> None:
    train = planted(60, 0)
    same = replace(train, media={**train.media, "text": np.zeros(60, np.uint64)})
    start = {name: np.eye(4, dtype=np.float32) for name in ("image", "text")}
    course = descend(dict(same.means), dict(same.present), dict(same.media), start, "softmax", steps=20)
    assert course.losses[20] == pytest.approx(0, abs=1e-6)  # no wrong answer, no loss
