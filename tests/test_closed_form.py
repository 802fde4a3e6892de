"""Closed forms against the libraries that have them, in memory and on complete data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from cca_zoo.linear import MCCA
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import PLSSVD
from sklearn.linear_model import Ridge

from mmembed.closed_form import (
    Components,
    Directions,
    canonical,
    partial_least_squares,
    procrustes,
    ridge,
    scales,
)
from mmembed.moments import Moments, View

Matrix = NDArray[np.float64]

DIMS = {"audio": 7, "image": 9, "text": 8}


def views_of(names: Sequence[str], rows: int = 400) -> dict[str, Matrix]:
    """Standardized views of shared factors, correlated within each."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(rows, 5))
    views = {}
    for name in names:
        view = hidden @ random.normal(size=(5, DIMS[name])) + random.normal(size=(rows, DIMS[name]))
        views[name] = (view - view.mean(axis=0)) / view.std(axis=0)
    return views


def components_of(views: dict[str, Matrix]) -> Components:
    return Components.of(Moments.of({name: View.single(view) for name, view in views.items()}), sorted(views))


def embeddings(components: Components, directions: Directions, views: dict[str, Matrix]) -> dict[str, Matrix]:
    return {name: view @ components.bases[name] @ directions[name] for name, view in views.items()}


def assert_same_up_to_sign(found: Matrix, expected: Matrix) -> None:
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-6)


@pytest.mark.parametrize("names", [["image", "text"], ["audio", "image", "text"]])
@pytest.mark.parametrize("shrinkage", [0.01, 0.3])
def test_canonical_variates_are_those_of_cca_zoo(names: list[str], shrinkage: float) -> None:
    views = views_of(names)
    scale = np.sqrt(400 / 399)  # its covariances divide by n - 1
    peer = MCCA(5, shrinkage=shrinkage).fit([views[name] * scale for name in names])
    components = components_of(views)
    # The ridge of (1 - c) C + c I is that of C + c / (1 - c) I; the peer's C is ours times (n / (n - 1))^2.
    ridges = dict.fromkeys(names, shrinkage / (1 - shrinkage) / scale**4)
    found = embeddings(components, canonical(components, ridges, 5), views)
    for name, weights in zip(names, peer.weights_, strict=True):
        theirs = views[name] @ weights
        assert_same_up_to_sign(found[name], theirs / theirs.std(axis=0))


def test_ridge_scores_are_those_of_scikit_learn() -> None:
    views = views_of(["image", "text"])
    components = components_of(views)
    found = embeddings(components, ridge(components, "text", 0.3, 8), views)
    predicted = Ridge(alpha=0.3 * 400, fit_intercept=False).fit(views["image"], views["text"]).predict(views["image"])
    np.testing.assert_allclose(found["image"] @ found["text"].T, predicted @ views["text"].T, atol=1e-6)


def test_ridge_puts_first_what_is_predicted_most() -> None:
    views = views_of(["audio", "image", "text"])
    components = components_of(views)
    found = embeddings(components, ridge(components, "text", 0.3, 8), views)
    variance = found["audio"].var(axis=0) + found["image"].var(axis=0)
    assert (np.diff(variance) <= 1e-9).all()


def test_pls_directions_are_those_of_scikit_learn() -> None:
    views = views_of(["image", "text"])
    components = components_of(views)
    found = embeddings(components, partial_least_squares(components, 4), views)
    peer = PLSSVD(4, scale=False).fit(views["image"], views["text"])
    assert_same_up_to_sign(found["image"], views["image"] @ peer.x_weights_)
    assert_same_up_to_sign(found["text"], views["text"] @ peer.y_weights_)


def test_procrustes_rotates_as_scipy_does() -> None:
    views = views_of(["image", "text"])
    components = components_of(views)
    found = embeddings(components, procrustes(components, 6), views)
    principal = {name: view @ components.bases[name][:, :6] for name, view in views.items()}
    rotation, _ = orthogonal_procrustes(principal["image"], principal["text"])
    expected = principal["image"] @ rotation @ principal["text"].T
    np.testing.assert_allclose(found["image"] @ found["text"].T, expected, atol=1e-6)


def test_procrustes_of_three_keeps_lengths_and_brings_all_together() -> None:
    views = views_of(["audio", "image", "text"])
    components = components_of(views)
    found = embeddings(components, procrustes(components, 7), views)
    for name, view in views.items():
        principal = view @ components.bases[name][:, :7]
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), np.linalg.norm(principal, axis=1), atol=1e-6)
    for a, b in (("audio", "image"), ("audio", "text"), ("image", "text")):
        assert np.trace(found[a].T @ found[b]) > 0.5 * 400


@pytest.mark.parametrize("method", [partial_least_squares, procrustes])
def test_the_same_moments_give_the_same_directions(method: object) -> None:
    assert callable(method)
    views = views_of(["audio", "image", "text"])
    first, second = (method(components_of(views), 5) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in views)


def test_components_within_others_are_principal_components_of_the_records() -> None:
    views, other = views_of(["image", "text"]), views_of(["image", "text"], 90)
    moments = Moments.of({name: View.single(view) for name, view in other.items()})
    found = components_of(views).within(moments, 9)
    expected = np.linalg.eigvalsh(np.cov(other["image"].T, bias=True))[::-1]
    np.testing.assert_allclose(found.values["image"], expected, atol=1e-9)
    rows = found.rows("image", other["image"].astype(np.float32))
    np.testing.assert_allclose(np.cov(rows.T, bias=True), np.diag(expected), atol=1e-4)


def test_a_feature_is_dead_by_its_own_scale() -> None:
    random = np.random.default_rng(0)
    view = np.stack([random.normal(size=50), 1e12 + random.normal(size=50), 1e-9 * random.normal(size=50)], axis=1)
    found = scales(Moments.of({"a": View.single(view)}), "a")
    assert np.isinf(found[1]) and np.isfinite(found[[0, 2]]).all()
