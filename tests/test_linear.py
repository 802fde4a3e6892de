from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mmembed.errors import DatasetError, SpaceError
from mmembed.linear import Lift, LinearMap, Scoring, normalize_rows
from mmembed.types import Space

INPUT, OUTPUT = Space("in", "1", 4), Space("out", "1", 3)


def linear_map(order: str = "C") -> LinearMap:
    random = np.random.default_rng(0)
    weight = np.asarray(random.normal(size=(3, 4)).astype(np.float32), order=order)  # type: ignore[call-overload]
    return LinearMap(weight, random.normal(size=3).astype(np.float32), INPUT, OUTPUT)


def test_a_map_gives_wx_plus_b_of_unit_norm() -> None:
    made = linear_map()
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    z = made.apply(x, INPUT)
    assert z.shape == (5, 3) and z.dtype == np.float32
    for row, vector in zip(z, x):
        expected = made.weight.astype(float) @ vector + made.bias
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=1e-5)


def test_no_rows_give_no_rows() -> None:
    assert linear_map().apply(np.empty((0, 4), np.float32), INPUT).shape == (0, 3)


@settings(deadline=None, max_examples=60)
@given(arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_normalized_rows_have_norm_1_or_are_all_zero(matrix: NDArray[np.float32]) -> None:
    norms = np.linalg.norm(normalize_rows(matrix).astype(float), axis=1)
    tiny = np.linalg.norm(matrix.astype(float), axis=1) < 1e-15  # their squares leave float32
    assert (np.isclose(norms, 1, atol=1e-6) | tiny).all()
    assert (norms[~matrix.any(axis=1)] == 0).all()


@pytest.mark.parametrize("other", [Space("other", "1", 4), Space("in", "2", 4)])
def test_features_of_another_space_are_refused(other: Space) -> None:
    with pytest.raises(SpaceError, match=r"the features is of space .* but in@1\[4\] is needed"):
        linear_map().apply(np.ones((1, 4), np.float32), other)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_map_comes_back_from_its_bytes(order: str) -> None:
    made = linear_map(order)
    read = LinearMap.from_bytes(made.to_bytes())
    assert (read.weight == made.weight).all() and (read.bias == made.bias).all()
    assert (read.input, read.output) == (INPUT, OUTPUT)


def test_equal_maps_have_equal_bytes_in_any_memory_layout() -> None:
    strided = replace(linear_map(), bias=np.repeat(linear_map().bias, 2)[::2])
    assert linear_map("C").to_bytes() == linear_map("F").to_bytes() == strided.to_bytes()


def test_the_file_is_plain_safetensors_with_both_spaces_in_its_header() -> None:
    data = linear_map().to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name: (header[name]["dtype"], header[name]["shape"]) for name in "Wb"} == {
        "W": ("F32", [3, 4]),
        "b": ("F32", [3]),
    }
    assert json.loads(header["__metadata__"]["mmembed"])["output"] == {"name": "out", "version": "1", "dim": 3}


def foreign() -> list[bytes]:
    from safetensors.numpy import save

    good, tensors = linear_map().to_bytes(), {"W": np.eye(3, dtype=np.float32), "b": np.ones(3, np.float32)}
    spaces = json.dumps({"input": vars(INPUT), "output": vars(OUTPUT)})
    return [
        b"",
        b"no map",
        good[:-1],
        save(tensors),
        save(tensors, {"mmembed": "no JSON"}),
        save(tensors, {"mmembed": "{}"}),
        save(tensors, {"mmembed": spaces}),  # W is 3 x 3, not 3 x 4
        save({"W": tensors["W"]}, {"mmembed": spaces}),
    ]


@pytest.mark.parametrize("data", foreign())
def test_bytes_that_are_no_map_are_a_dataset_error(data: bytes) -> None:
    with pytest.raises(DatasetError, match="no map that mmembed wrote"):
        LinearMap.from_bytes(data)


def test_a_map_whose_shape_is_not_that_of_its_spaces_is_refused() -> None:
    with pytest.raises(ValueError, match="don't map"):
        LinearMap(np.ones((4, 3), np.float32), np.ones(3, np.float32), INPUT, OUTPUT)
    with pytest.raises(ValueError, match="don't map"):
        LinearMap(np.ones((3, 4), np.float32), np.ones(4, np.float32), INPUT, OUTPUT)


def test_a_mean_of_embeddings_is_one_again() -> None:
    rows = normalize_rows(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32))
    starts = np.array([0, 2, 3])
    means = Scoring().means(rows, starts)
    np.testing.assert_allclose(means[0], normalize_rows(rows[:2].mean(axis=0, keepdims=True))[0], rtol=1e-5)
    plain = Scoring(np.full(3, 0.5, np.float32)).means(rows, starts)
    np.testing.assert_allclose(plain[2], rows[3:].mean(axis=0), rtol=1e-5)


def test_a_map_with_a_spectrum_and_a_lift_comes_back_and_gives_what_its_formula_says() -> None:
    random = np.random.default_rng(0)
    lift = Lift(random.normal(size=(5, 4)).astype(np.float32), random.normal(size=5).astype(np.float32))
    scoring = Scoring(np.array([0.9, 0.5], np.float32))
    weight, bias = random.normal(size=(2, 9)).astype(np.float32), random.normal(size=2).astype(np.float32)
    linear_map = LinearMap(weight, bias, Space("in", "1", 4), Space("out", "1", 2), scoring, lift)
    back = LinearMap.from_bytes(linear_map.to_bytes())
    assert back.to_bytes() == linear_map.to_bytes()
    x = random.normal(size=(6, 4)).astype(np.float32)
    lifted = np.hstack([x, np.cos(x @ lift.frequencies.T + lift.phases)])
    np.testing.assert_allclose(back.apply(x, Space("in", "1", 4)), lifted @ weight.T + bias, rtol=1e-4, atol=1e-5)
    z = back.apply(x, Space("in", "1", 4))
    terms = scoring.terms(z)
    assert terms is not None
    np.testing.assert_allclose(terms, -(0.9 * z[:, 0] ** 2 + 0.5 * z[:, 1] ** 2) / 2, rtol=1e-5)
    assert Scoring().terms(z) is None
    with pytest.raises(ValueError, match="a spectrum"):
        LinearMap(weight, bias, Space("in", "1", 4), Space("out", "1", 2), Scoring(np.ones(3, np.float32)), lift)
    wrong = Lift(lift.frequencies[:, :3], lift.phases)
    with pytest.raises(ValueError, match="a lift"):
        LinearMap(weight, bias, Space("in", "1", 4), Space("out", "1", 2), scoring, wrong)
