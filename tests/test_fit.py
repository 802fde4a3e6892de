from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, random_rows
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from threadpoolctl import threadpool_limits

from mmembed.config import FitConfig
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.features import read_unit
from mmembed.fit import FOLDS, AccumulateBlock, ReadMoments, WriteMaps, fit_maps, training_moments
from mmembed.linear import LinearMap
from mmembed.moments import Moments
from mmembed.splits import TRAIN, fold_of, split_of
from mmembed.types import Space

Matrix = NDArray[np.float64]
Views = dict[str, Matrix]
Present = dict[str, NDArray[np.bool_]]

DIMS = {"audio": 20, "image": 30, "text": 24}
PAIRS = [("audio", "image"), ("audio", "text"), ("image", "text")]
VERSION = "0123456789abcdef0123456789abcdef"


def planted(rows: int, dims: Mapping[str, int] = DIMS, factors: int = 6, noise: float = 0.4, seed: int = 0) -> Views:
    """Views of the same hidden factors, each through a matrix of its own (the same for all seeds), plus noise."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, factors))
    views = {}
    for number, (name, dim) in enumerate(dims.items()):
        loadings = np.random.default_rng(number).normal(size=(factors, dim))
        views[name] = hidden @ loadings + noise * random.normal(size=(rows, dim))
    return views


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As on workers. Threads of processes that run beside each other wait for each other."""
    with threadpool_limits(1):
        yield


def everything(views: Views) -> Present:
    return {name: np.ones(len(view), bool) for name, view in views.items()}


def folds_of(views: Views, present: Present) -> list[Moments]:
    fold = np.arange(len(next(iter(views.values())))) % FOLDS
    return [Moments.of(views, {name: has & (fold == k) for name, has in present.items()}) for k in range(FOLDS)]


def space(name: str, view: Matrix) -> Space:
    return Space(f"test-{name}", "1", view.shape[1])


def fit(views: Views, dim: int = 16, present: Present | None = None) -> tuple[dict[str, LinearMap], dict[str, Any]]:
    spaces = {name: space(name, view) for name, view in views.items()}
    return fit_maps(folds_of(views, present or everything(views)), spaces, dim, VERSION)


def recall_at_1(maps: Mapping[str, LinearMap], views: Views, a: str, b: str) -> float:
    z = {name: maps[name].apply(views[name].astype(np.float32), space(name, views[name])) for name in (a, b)}
    return float(((z[a] @ z[b].T).argmax(axis=1) == np.arange(len(z[a]))).mean())


def ridge_cca(x: Matrix, y: Matrix, ridges: Sequence[float], scales: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    """Directions of two-view CCA with a ridge by SVD, for x and y over `scales`; each of unit variance in x or y."""
    x, y = (x - x.mean(axis=0)) / scales[0], (y - y.mean(axis=0)) / scales[1]
    whitenings = []
    for view, ridge in zip((x, y), ridges):
        correlation = view.T @ view / len(view)
        values, vectors = np.linalg.eigh(
            correlation + ridge * np.trace(correlation) / len(correlation) * np.eye(view.shape[1])
        )
        whitenings.append(vectors / np.sqrt(values) @ vectors.T)
    left, _, right = np.linalg.svd(whitenings[0] @ (x.T @ y / len(x)) @ whitenings[1])
    k = min(x.shape[1], y.shape[1])
    a, b = whitenings[0] @ left[:, :k], whitenings[1] @ right[:k].T
    return a / (x @ a).std(axis=0), b / (y @ b).std(axis=0)


def test_two_complete_views_give_the_maps_of_an_independent_computation() -> None:
    views = planted(400, {"image": 12, "text": 9}, noise=1.0)
    x, y = views["image"], views["text"]
    maps, report = fit(views, 9)
    ridges = [report["ridge"][name] for name in ("image", "text")]
    scales = [x.std(axis=0), y.std(axis=0)]

    fold, held_out = np.arange(400) % FOLDS, []
    for k in range(FOLDS):
        a, b = ridge_cca(x[fold != k], y[fold != k], ridges, scales)
        u, v = (x[fold == k] / scales[0]) @ a, (y[fold == k] / scales[1]) @ b
        held_out.append([np.corrcoef(u[:, j], v[:, j])[0, 1] for j in range(9)])
    rho = np.mean(held_out, axis=0)
    rho = IsotonicRegression(increasing=False).fit_transform(np.arange(9), rho).clip(0)
    kept = int((rho > 0).sum())
    assert kept >= 6
    np.testing.assert_allclose(report["correlations"], rho[:kept], atol=1e-6)

    for name, directions, scale in zip(("image", "text"), ridge_cca(x, y, ridges, scales), scales):
        expected = (directions[:, :kept] * np.sqrt(rho[:kept])).T / scale
        found = maps[name].weight
        signs = np.sign((found * expected).sum(axis=1))[:, None]
        np.testing.assert_allclose(found * signs, expected, rtol=1e-3, atol=1e-4)


def test_embeddings_of_the_training_records_have_mean_zero_and_the_correlations_as_variances() -> None:
    views = planted(300)
    maps, report = fit(views)
    for name, view in views.items():
        z = view @ maps[name].weight.T.astype(float) + maps[name].bias
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(z.var(axis=0), report["correlations"], rtol=1e-3)


def test_the_report_says_what_went_in_and_came_out() -> None:
    views, present = (
        planted(300),
        {"audio": np.arange(300) < 100, "image": np.arange(300) < 290, "text": np.ones(300, bool)},
    )
    maps, report = fit(views, 4, present)
    assert report["pairs"] == {"audio+image": 100, "audio+text": 100, "image+text": 290}
    assert report["records"] == {"audio": 100, "image": 290, "text": 300}
    assert report["output"] == {"name": "mmembed", "version": VERSION[:16], "dim": 4}
    assert report["correlations"] == sorted(report["correlations"], reverse=True)
    assert {name: linear_map.input for name, linear_map in maps.items()} == {n: space(n, v) for n, v in views.items()}
    assert {linear_map.output for linear_map in maps.values()} == {Space("mmembed", VERSION[:16], 4)}
    best = max(trial["information"] for trial in report["trials"])
    assert [t["ridge"] for t in report["trials"] if t["information"] == best] == [report["ridge"]]


def test_the_same_moments_give_the_same_bytes() -> None:
    first, second = fit(planted(200)), fit(planted(200))
    assert {n: m.to_bytes() for n, m in first[0].items()} == {n: m.to_bytes() for n, m in second[0].items()}
    assert first[1] == second[1]


def test_the_rows_of_a_smaller_map_are_the_first_rows_of_a_larger_one() -> None:
    views = planted(300)
    (small, few), (large, many) = fit(views, 4), fit(views, 16)
    assert few["ridge"] == many["ridge"]
    assert few["output"]["dim"] == 4
    for name in views:
        assert (small[name].weight == large[name].weight[:4]).all()
        assert (small[name].bias == large[name].bias[:4]).all()


@pytest.mark.parametrize("noise, least", [(0.4, 0.9), (2.0, 0.15)])
def test_three_views_find_each_other_on_fresh_records_though_none_was_seen_complete(noise: float, least: float) -> None:
    views, fresh = planted(900, noise=noise), planted(200, noise=noise, seed=1)
    present = {name: np.arange(900) % 3 != k for k, name in enumerate(DIMS)}
    maps, _ = fit(views, 16, present)
    for pair in PAIRS:
        assert recall_at_1(maps, fresh, *pair) > least  # chance is 1 in 200


def test_a_pair_that_never_came_together_is_found_through_the_third() -> None:
    views, fresh = planted(900), planted(200, seed=1)
    present = {"audio": np.arange(900) < 450, "image": np.arange(900) >= 450, "text": np.ones(900, bool)}
    maps, report = fit(views, 16, present)
    assert report["pairs"]["audio+image"] == 0
    assert recall_at_1(maps, fresh, "audio", "image") > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_independent_noise_gives_no_strong_correlation(seed: int) -> None:
    random = np.random.default_rng(seed)
    views = {"image": random.normal(size=(400, 30)), "text": random.normal(size=(400, 20))}
    try:
        correlations = fit(views)[1]["correlations"]
    except UsageError as error:
        assert "show nothing in common" in str(error)
    else:
        assert max(correlations) < 4 / np.sqrt(400)  # four deviations of a correlation of nothing


def test_features_that_carry_nothing_get_no_weight_and_disturb_nothing() -> None:
    random = np.random.default_rng(5)
    views = planted(300)
    dead = np.stack([np.full(300, 3.0), np.full(300, 1e12), 1e12 + random.normal(size=300), np.zeros(300)], axis=1)
    spoilt = {**views, "image": np.hstack([views["image"], dead])}
    maps, report = fit(spoilt)
    assert report["dead_features"] == {"audio": 0, "image": 4, "text": 0}
    assert (maps["image"].weight[:, -4:] == 0).all()
    fresh = planted(200, seed=1)
    extended = {**fresh, "image": np.hstack([fresh["image"], dead[:200]])}
    assert recall_at_1(maps, extended, "image", "text") >= recall_at_1(fit(views)[0], fresh, "image", "text") - 0.05


def test_a_modality_that_carries_nothing_at_all_leaves_the_others_alone() -> None:
    views, fresh = planted(300), planted(200, seed=1)
    maps, _ = fit({**views, "audio": np.ones_like(views["audio"])})
    assert sorted(maps) == ["image", "text"]
    assert recall_at_1(maps, fresh, "image", "text") > 0.9


def test_the_scale_of_a_feature_does_not_matter() -> None:
    views, fresh = planted(300), planted(200, seed=1)
    factors = 10.0 ** np.random.default_rng(0).integers(-6, 7, size=DIMS["image"])
    maps, _ = fit({**views, "image": views["image"] * factors})
    assert recall_at_1(maps, {**fresh, "image": fresh["image"] * factors}, "image", "text") > 0.9


def test_fewer_records_than_features_are_enough_for_maps_that_are_above_chance() -> None:
    dims = {"image": 200, "text": 150}
    maps, report = fit(planted(40, dims), 128)
    assert all(np.isfinite(linear_map.weight).all() for linear_map in maps.values())
    assert report["output"]["dim"] <= 40
    assert recall_at_1(maps, planted(200, dims, seed=1), "image", "text") > 0.5


def test_a_narrow_modality_takes_nothing_from_the_others() -> None:
    views = planted(600, {"audio": 4, "image": 30, "text": 24}, noise=0.4)
    alone, _ = fit({name: views[name] for name in ("image", "text")})
    maps, report = fit(views)
    assert report["output"]["dim"] > 4
    fresh = planted(200, {"audio": 4, "image": 30, "text": 24}, noise=0.4, seed=1)
    assert recall_at_1(maps, fresh, "image", "text") >= recall_at_1(alone, fresh, "image", "text") - 0.05
    assert recall_at_1(maps, fresh, "audio", "text") > 10 / 200  # chance is 1 / 200


def test_a_pair_that_was_seldom_seen_does_not_take_the_first_directions() -> None:
    views = planted(1000, {"audio": 150, "image": 30, "text": 24}, noise=2.0)
    present = everything(views)
    present["audio"] = np.arange(1000) < 40  # fewer than its features: correlations of near 1, all of them noise
    maps, _ = fit(views, 6, present)
    alone, _ = fit({name: views[name] for name in ("image", "text")}, 6)
    fresh = planted(300, {"audio": 150, "image": 30, "text": 24}, noise=2.0, seed=1)
    assert recall_at_1(maps, fresh, "image", "text") >= recall_at_1(alone, fresh, "image", "text") - 0.05


def test_two_groups_of_modalities_that_never_meet_are_each_fitted() -> None:
    views = planted(200, {"image": 8, "text": 9, "audio": 10, "speech-like": 11}, factors=3)
    first = np.arange(200) < 100
    present = {"image": first, "text": first, "audio": ~first, "speech-like": ~first}
    maps, _ = fit(views, 16, present)
    assert set(maps) == set(views)


def test_a_modality_that_is_never_with_another_is_left_out() -> None:
    views = planted(200)
    present = {"audio": np.arange(200) < 100, "image": np.arange(200) >= 100, "text": np.arange(200) >= 100}
    maps, report = fit(views, 8, present)
    assert list(maps) == report["modalities"] == ["image", "text"]


def test_too_few_pairs_are_a_usage_error_that_counts_them() -> None:
    views = planted(30)
    present = {"audio": np.arange(30) < 9, "image": np.arange(30) < 10, "text": np.arange(30) >= 9}
    with pytest.raises(UsageError, match="audio with image: 9, audio with text: 0, image with text: 1") as raised:
        fit(views, 8, present)
    assert "at least 10" in str(raised.value) and "--maps" in str(raised.value)


def test_records_of_one_fold_alone_are_a_usage_error() -> None:
    views = planted(50, {"image": 5, "text": 5})
    whole, nothing = (Moments.of(views, {name: np.full(50, has) for name in views}) for has in (True, False))
    with pytest.raises(UsageError, match="--group-column with more values"):
        fit_maps([whole, *[nothing] * 4], {name: space(name, view) for name, view in views.items()}, 4, VERSION)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("fit"), random_rows(60, ["image", "text"], 4), dim=4, until="extract")


def test_training_moments_are_those_of_pooled_training_records_by_fold(dataset: Dataset) -> None:
    folds = training_moments(dataset, range(15), ["image", "text"], FitConfig(holdout=0.3))
    units = [read_unit(dataset, number, ["image", "text"]) for number in range(15)]
    ids = [id for unit in units for id in unit.ids]
    image = np.concatenate([unit.pooled["image"] for unit in units])
    assert len(folds) == FOLDS
    for k, moments in enumerate(folds):
        mine = [split_of(id, 0.3) == TRAIN and fold_of(id, FOLDS) == k for id in ids]
        assert moments.count("image", "text") == sum(mine) > 0
        np.testing.assert_allclose(moments.mean("image"), image[mine].mean(axis=0), rtol=1e-12)
    assert (
        sum(moments.count("image", "image") for moments in folds) == sum(split_of(id, 0.3) == TRAIN for id in ids) < 60
    )


def test_a_group_column_decides_the_split_and_the_fold(dataset: Dataset, tmp_path: Path) -> None:
    rows = [type(row)(row.id, row.vectors, {"family": "all"}) for row in random_rows(12, ["image", "text"], 4)]
    grouped = build(tmp_path, rows, dim=4, until="extract")
    folds = training_moments(grouped, range(3), ["image", "text"], FitConfig(holdout=0.0, group_column="family"))
    assert sorted(moments.count("image", "text") for moments in folds) == [0, 0, 0, 0, 12]


def test_a_block_leaves_its_moments_in_a_file_to_the_last_bit(dataset: Dataset) -> None:
    config, units = FitConfig(holdout=0.3), tuple(range(3, 12))
    name = pickle.loads(pickle.dumps(AccumulateBlock(dataset, ["image", "text"], config)))(7, units)
    read = pickle.loads(pickle.dumps(ReadMoments(dataset.root)))
    for fold, moments in enumerate(training_moments(dataset, units, ["image", "text"], config)):
        assert_same_bits(read(name, fold), moments)


def assert_same_bits(found: Moments, expected: Moments) -> None:
    assert found.pairs.keys() == expected.pairs.keys()
    for pair, moments in expected.pairs.items():
        for name, value in vars(moments).items():
            np.testing.assert_array_equal(getattr(found.pairs[pair], name), value)


def test_maps_are_written_by_a_value_that_travels_to_workers_and_with_the_same_bytes_each_time(
    dataset: Dataset, tmp_path: Path
) -> None:
    config, spaces = FitConfig(dim=3), dataset.modalities("extract")
    folds = training_moments(dataset, range(15), ["image", "text"], config)
    written = [pickle.loads(pickle.dumps(WriteMaps(tmp_path / n, spaces, config, VERSION)))(folds) for n in "ab"]
    assert written == [["image", "text", "fit.json"]] * 2
    for name in ("image.safetensors", "text.safetensors", "fit.json"):
        assert (tmp_path / "a/maps" / name).read_bytes() == (tmp_path / "b/maps" / name).read_bytes()
    assert LinearMap.from_bytes((tmp_path / "a/maps/image.safetensors").read_bytes()).input == spaces["image"]
