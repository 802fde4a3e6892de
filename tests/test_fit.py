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

import mmembed.fit
from mmembed.config import FitConfig
from mmembed.dataset import Dataset
from mmembed.errors import UsageError
from mmembed.features import read_unit
from mmembed.fit import FOLDS, AccumulateBlock, ReadMoments, WriteMaps, fit_maps, sample_share, training_data
from mmembed.linear import LinearMap
from mmembed.moments import Moments, View, merge_all
from mmembed.pairs import Pairs
from mmembed.shards import write_bytes
from mmembed.splits import TRAIN, Groups, fold_of, split_of
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


def training(views: Views, present: Present) -> tuple[list[Moments], Pairs]:
    fold = np.arange(len(next(iter(views.values())))) % FOLDS
    seen = {name: View.single(view, present[name]) for name, view in views.items()}
    return [Moments.of(seen, (fold == k).astype(float)) for k in range(FOLDS)], Pairs.of(seen, fold)


def space(name: str, view: Matrix) -> Space:
    return Space(f"test-{name}", "1", view.shape[1])


def fit(
    views: Views, dim: int = 16, present: Present | None = None, **config: Any
) -> tuple[dict[str, LinearMap], dict[str, Any]]:
    spaces = {name: space(name, view) for name, view in views.items()}
    folds, pairs = training(views, present or everything(views))
    settings: dict[str, Any] = {"refine": "none", "lift": "none", "dim": dim} | config
    return fit_maps(folds, pairs, spaces, FitConfig(**settings), VERSION)


def recall_at_1(maps: Mapping[str, LinearMap], views: Views, a: str, b: str) -> float:
    z = {name: maps[name].apply(views[name].astype(np.float32), space(name, views[name])) for name in (a, b)}
    terms = maps[b].scoring.terms(z[b])
    scores = z[a] @ z[b].T + (0 if terms is None else terms)
    return float((scores.argmax(axis=1) == np.arange(len(z[a]))).mean())


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
    rho = IsotonicRegression(increasing=False).fit_transform(np.arange(9), rho).clip(0, 0.98)
    kept = int((rho > 0).sum())
    assert kept >= 6
    np.testing.assert_allclose(report["correlations"], rho[:kept], atol=1e-6)

    for name, directions, scale in zip(("image", "text"), ridge_cca(x, y, ridges, scales), scales):
        expected = (directions[:, :kept] * rho[:kept] ** report["power"]).T / scale
        found = maps[name].weight
        signs = np.sign((found * expected).sum(axis=1))[:, None]
        np.testing.assert_allclose(found * signs, expected, rtol=1e-3, atol=1e-4)


def test_embeddings_of_the_training_records_have_mean_zero_and_the_correlations_as_variances() -> None:
    views = planted(300)
    maps, report = fit(views)
    for name, view in views.items():
        z = view @ maps[name].weight.T.astype(float) + maps[name].bias
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
        expected = np.array(report["correlations"][: z.shape[1]]) ** (2 * report["power"])
        np.testing.assert_allclose(z.var(axis=0), expected, rtol=1e-3)


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
    seen = {name: View.single(view) for name, view in views.items()}
    whole, nothing = (Moments.of(seen, np.full(50, weight)) for weight in (1.0, 0.0))
    pairs = Pairs.of(seen, np.zeros(50, np.int64))
    spaces = {name: space(name, view) for name, view in views.items()}
    with pytest.raises(UsageError, match="--group-column with more values"):
        fit_maps([whole, *[nothing] * 4], pairs, spaces, FitConfig(), VERSION)


@pytest.mark.parametrize("method", ["cca", "pmi", "ridge", "procrustes", "pls"])
def test_each_method_finds_what_belongs_together_and_smaller_maps_begin_larger_ones(method: str) -> None:
    views, fresh = planted(400), planted(200, seed=1)
    (small, _), (large, report) = (fit(views, dim, fit=method) for dim in (3, 5))
    assert report["method"] == method
    for pair in PAIRS:
        assert recall_at_1(large, fresh, *pair) > 0.3  # chance is 1 in 200
    for name in views:
        assert (small[name].weight == large[name].weight[:3]).all()
        assert (small[name].bias == large[name].bias[:3]).all()
    again, _ = fit(views, 5, fit=method)
    assert {n: m.to_bytes() for n, m in again.items()} == {n: m.to_bytes() for n, m in large.items()}


def test_the_dimension_is_that_which_pays_off_unless_given() -> None:
    views = planted(600, {"image": 60, "text": 50}, factors=6, noise=1.0)
    maps, report = fit(views, 0)
    assert report["output"]["dim"] == 16  # the smallest that holds the six factors
    tried = {trial["dim"]: trial["mrr"] for trial in report["sizes"] if trial["power"] == report["power"]}
    assert tried[16] >= 0.995 * max(trial["mrr"] for trial in report["sizes"])
    assert maps["image"].output.dim == 16


def test_pmi_scores_are_log_ratios_of_gaussians() -> None:
    views = planted(4000, {"image": 6, "text": 5}, factors=3, noise=1.0)
    maps, report = fit(views, 3, fit="pmi")
    s = np.array(report["spectrum"])
    assert s.tolist() == pytest.approx(report["correlations"][:3], abs=1e-6)
    z = {n: maps[n].apply(views[n][:50].astype(np.float32), space(n, views[n])).astype(float) for n in views}
    u, v = (z[n] / np.sqrt(s / (1 - s**2)) for n in ("image", "text"))
    np.testing.assert_allclose(u.std(axis=0), 1, atol=0.3)
    terms = maps["text"].scoring.terms(z["text"].astype(np.float32))
    assert terms is not None
    found = z["image"] @ z["text"].T + terms
    ratio = (
        s * u[:, None] * v / (1 - s**2) - s**2 * (u[:, None] ** 2 + v**2) / (2 * (1 - s**2)) - np.log1p(-(s**2)) / 2
    ).sum(axis=2)
    offset = ratio - found
    np.testing.assert_allclose(offset, np.tile(offset[:, :1], 50), atol=1e-4)  # the same for all candidates of a query


def test_gradient_descent_is_used_only_where_it_helps_or_is_asked_for() -> None:
    views = planted(600, {"image": 12, "text": 10}, noise=1.0)
    assert fit(views, refine="auto")[1]["refinement"]["decision"].startswith(("used", "not used"))
    few = fit(planted(100), refine="auto")[1]["refinement"]["decision"]
    assert few == "not tried: 100 training records, fewer than 500"
    asked = fit(views, refine="sigmoid")
    assert asked[1]["refinement"]["decision"].startswith("used: sigmoid")
    assert asked[1]["refinement"]["training"][-1]["loss"] > 0
    assert (asked[0]["image"].weight != fit(views)[0]["image"].weight).any()


def test_a_lift_is_used_where_the_relation_is_not_linear() -> None:
    random = np.random.default_rng(0)

    def views(rows: int) -> Views:
        angle = random.uniform(0, 2 * np.pi, (rows, 1)) * np.ones((1, 2))
        turns = np.hstack([np.cos(angle), np.sin(angle)]) + 0.05 * random.normal(size=(rows, 4))
        twice = np.hstack([np.cos(2 * angle), np.sin(2 * angle)]) + 0.05 * random.normal(size=(rows, 4))
        return {"image": turns, "text": twice}

    train, fresh = views(700), views(100)
    maps, report = fit(train, 0, lift="auto")
    assert report["lift"]["decision"].startswith("used")
    assert maps["image"].lift is not None
    assert recall_at_1(maps, fresh, "image", "text") > 0.1  # chance is 1 in 100
    with pytest.raises(UsageError, match="show nothing in common"):
        fit(train, 0, lift="none")
    assert LinearMap.from_bytes(maps["image"].to_bytes()).to_bytes() == maps["image"].to_bytes()


def test_linear_relations_get_no_lift() -> None:
    assert fit(planted(600), lift="auto")[1]["lift"]["decision"].startswith("not used")


def test_records_with_several_segments_get_no_lift() -> None:
    """Its waves are of segments, and the sample holds records."""
    random = np.random.default_rng(0)
    segments = {name: random.normal(size=(1200, 5)) for name in ("image", "text")}
    seen = {name: View.of(rows, np.repeat(np.arange(600), 2), 600) for name, rows in segments.items()}
    fold = np.arange(600) % FOLDS
    folds = [Moments.of(seen, (fold == k).astype(float)) for k in range(FOLDS)]
    spaces = {name: Space(name, "1", 5) for name in seen}
    try:
        _, report = fit_maps(folds, Pairs.of(seen, fold), spaces, FitConfig(refine="none"), VERSION)
    except UsageError as error:  # nothing in common is no wonder here
        assert "show nothing in common" in str(error)
    else:
        assert report["lift"]["decision"].startswith("not tried: not all")
    part = Pairs.of(seen, fold).take(np.arange(590))
    assert not mmembed.fit._same_moments(mmembed.fit._pair_moments(part), merge_all(folds), list(seen))
    single = {name: View.single(rows[:600]) for name, rows in segments.items()}
    assert mmembed.fit._same_moments(
        mmembed.fit._pair_moments(Pairs.of(single, fold)), Moments.of(single), list(single)
    )


def test_a_modality_without_pairs_does_not_keep_others_from_their_shared_space() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60, 24))
    views = {name: hidden + 0.03 * random.normal(size=hidden.shape) for name in ("image", "text")}
    views["audio"] = random.normal(size=(60, 7))
    shared = Space("joint", "1", 24)
    present = {**everything(views), "audio": np.arange(60) < 5}
    folds, pairs = training(views, present)
    spaces = {"image": shared, "text": shared, "audio": Space("sound", "1", 7)}
    maps, report = fit_maps(folds, pairs, spaces, FitConfig(refine="none"), VERSION)
    assert report["method"] == "identity" and set(maps) == {"image", "text"}
    maps, report = fit_maps(folds, pairs, spaces, FitConfig(refine="none", dim=8), VERSION)
    assert report["method"] == "cca" and maps["image"].output.dim == 8


def test_identity_keeps_the_space_of_encoders_trained_together() -> None:
    views = planted(100, {"image": 12, "text": 12})
    maps, report = fit(views, fit="identity")
    assert report["method"] == "identity"
    for name, view in views.items():
        assert (maps[name].weight == np.eye(12)).all() and not maps[name].bias.any()
        assert maps[name].input == space(name, view)
    with pytest.raises(UsageError, match="features of one dimension"):
        fit(planted(100, {"image": 12, "text": 11}), fit="identity")


@pytest.mark.parametrize("noise, kept", [(0.1, True), (3.0, False)])
def test_a_fit_on_top_of_a_shared_space_makes_nothing_worse(noise: float, kept: bool) -> None:
    """Of encoders trained together few pairs can't teach much; where one is off by a rotation, a fit can."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60 if kept else 600, 24))
    views = {name: hidden + noise * 0.3 * random.normal(size=hidden.shape) for name in ("image", "text")}
    if not kept:
        views["text"] = views["text"] @ np.linalg.qr(random.normal(size=(24, 24)))[0]
    shared = Space("joint", "1", 24)
    folds, pairs = training(views, everything(views))
    maps, report = fit_maps(folds, pairs, dict.fromkeys(views, shared), FitConfig(refine="none"), VERSION)
    assert (report["method"] == "identity") == kept
    assert ("the encoders share a space" in report.get("decision", "")) == kept
    assert set(maps) == set(views)


def test_merge_order_and_sizes_of_blocks_change_next_to_nothing() -> None:
    views = planted(300)
    seen = {name: View.single(view) for name, view in views.items()}
    fold = np.arange(300) % FOLDS
    random = np.random.default_rng(0)
    found = []
    for parts in (1, 7, 40):
        owner = random.integers(0, parts, 300)
        folds = [
            merge_all(
                Moments.of(seen, ((fold == k) & (owner == part)).astype(float)) for part in random.permutation(parts)
            )
            for k in range(FOLDS)
        ]
        spaces = {name: space(name, view) for name, view in views.items()}
        maps, _ = fit_maps(folds, Pairs.of(seen, fold), spaces, FitConfig(dim=6, refine="none"), VERSION)
        found.append(maps)
    for maps in found[1:]:
        for name in views:
            np.testing.assert_allclose(maps[name].weight, found[0][name].weight, rtol=1e-5, atol=1e-6)  # float32


def test_one_record_and_no_record_are_usage_errors() -> None:
    for rows in (0, 1):
        with pytest.raises(UsageError, match="at least 10"):
            fit(planted(rows))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("fit"), random_rows(60, ["image", "text"], 4), dim=4, until="extract")


def data_of(dataset: Dataset, units: Sequence[int], config: FitConfig, groups: Groups | None = None) -> Any:
    return training_data(dataset, units, ["image", "text"], config, groups or Groups(), 1.0)


def test_training_data_are_those_of_training_records_by_fold(dataset: Dataset) -> None:
    folds, pairs = data_of(dataset, range(15), FitConfig(holdout=0.3))
    units = [read_unit(dataset, number, ["image", "text"]) for number in range(15)]
    ids = [id for unit in units for id in unit.ids]
    image = np.concatenate([unit.views["image"].means for unit in units])
    assert len(folds) == FOLDS
    for k, moments in enumerate(folds):
        mine = [split_of(id, 0.3) == TRAIN and fold_of(id, FOLDS) == k for id in ids]
        assert moments.count("image", "text") == sum(mine) == (pairs.folds == k).sum() > 0
        np.testing.assert_allclose(moments.mean("image"), image[mine].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(pairs.means["image"][pairs.folds == k], image[mine].astype(np.float32))
    assert len(pairs) == sum(split_of(id, 0.3) == TRAIN for id in ids) < 60


def test_a_group_decides_the_split_and_the_fold(dataset: Dataset, tmp_path: Path) -> None:
    rows = [type(row)(row.id, row.vectors, {"family": "all"}) for row in random_rows(12, ["image", "text"], 4)]
    grouped = build(tmp_path, rows, dim=4, until="extract")
    for groups in (Groups("family"), Groups(twins={row.id: "r000" for row in rows})):
        folds, _ = data_of(grouped, range(3), FitConfig(holdout=0.0), groups)
        assert sorted(moments.count("image", "text") for moments in folds) == [0, 0, 0, 0, 12]


def test_records_weigh_what_their_source_says(tmp_path: Path) -> None:
    rows = [
        type(row)(row.id, row.vectors, {"source": "web" if number % 3 else "own"})
        for number, row in enumerate(random_rows(12, ["image", "text"], 4))
    ]
    weighed = build(tmp_path, rows, dim=4, until="extract")
    folds, pairs = data_of(weighed, range(3), FitConfig(holdout=0.0, weight=("source=web:0.25",)))
    assert sum(moments.weight("image", "text") for moments in folds) == 4 + 8 * 0.25
    folds, pairs = data_of(weighed, range(3), FitConfig(holdout=0.0, weight=("nothing=None:0.25",)))
    assert sum(moments.weight("image", "text") for moments in folds) == 12  # no record has that key
    folds, pairs = data_of(weighed, range(3), FitConfig(holdout=0.0, weight=("source=web:0",)))
    assert sum(moments.count("image", "text") for moments in folds) == len(pairs) == 4


def test_segments_count_once_only_where_that_is_asked(dataset: Dataset) -> None:
    units = [read_unit(dataset, number, ["image", "text"]) for number in range(15)]
    segments = [np.concatenate([unit.views[name].segments for unit in units]) for name in ("image", "text")]
    by_record, _ = data_of(dataset, range(15), FitConfig(holdout=0.0))
    by_segment, _ = data_of(dataset, range(15), FitConfig(holdout=0.0, count="segments"))
    assert sum(moments.weight("image", "text") for moments in by_record) == 60
    assert sum(moments.weight("image", "image") for moments in by_segment) == segments[0].sum() > 60
    assert sum(moments.weight("image", "text") for moments in by_segment) == (segments[0] * segments[1]).sum()


def test_a_block_leaves_its_moments_in_a_file_to_the_last_bit(dataset: Dataset) -> None:
    config, units = FitConfig(holdout=0.3), tuple(range(3, 12))
    block = AccumulateBlock(dataset, ["image", "text"], config, Groups(), 1.0)
    name = pickle.loads(pickle.dumps(block))(7, units)
    read = pickle.loads(pickle.dumps(ReadMoments(dataset.folder)))
    for fold, moments in enumerate(data_of(dataset, units, config)[0]):
        assert_same_bits(read(name, fold), moments)


def test_the_sample_is_a_share_of_the_records(dataset: Dataset) -> None:
    assert sample_share(1000, [512, 384]) == 1
    assert 0.04 < sample_share(1_000_000, [512, 384]) <= 0.05
    _, half = training_data(dataset, range(15), ["image", "text"], FitConfig(holdout=0.0), Groups(), 0.5)
    assert 15 < len(half) < 45


def assert_same_bits(found: Moments, expected: Moments) -> None:
    assert found.pairs.keys() == expected.pairs.keys()
    for pair, moments in expected.pairs.items():
        for name, value in vars(moments).items():
            np.testing.assert_array_equal(getattr(found.pairs[pair], name), value)


def test_maps_are_written_by_a_value_that_travels_to_workers_and_with_the_same_bytes_each_time(
    dataset: Dataset, tmp_path: Path
) -> None:
    config, spaces = FitConfig(dim=3), dataset.modalities("extract")
    folds, _ = data_of(dataset, range(15), config)
    block = AccumulateBlock(dataset, ["image", "text"], config, Groups(), 1.0)(0, tuple(range(15)))
    for n in "ab":
        write_bytes(tmp_path / n / block, (dataset.folder / block).read_bytes())
    written = [
        pickle.loads(pickle.dumps(WriteMaps(tmp_path / n, spaces, config, VERSION)))(folds, [block]) for n in "ab"
    ]
    assert written == [["image", "text", "fit.json"]] * 2
    for name in ("image.safetensors", "text.safetensors", "fit.json"):
        assert (tmp_path / "a/maps" / name).read_bytes() == (tmp_path / "b/maps" / name).read_bytes()
    assert LinearMap.from_bytes((tmp_path / "a/maps/image.safetensors").read_bytes()).input == spaces["image"]
