from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmembed.encoders.input import Input, by_length, pixel_values, pooled, unit_rows, waveform
from mmembed.errors import EncodeError, UsageError


def pictures(count: int, side: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8))


@settings(deadline=None, max_examples=40)
@given(
    side=st.integers(1, 12),
    cut=st.integers(0, 11),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 1)] * 3),
)
def test_pixel_values_are_those_of_the_formula(side: int, cut: int, layout: str, mean: Any, std: Any) -> None:
    crop = max(0, side - cut)
    given_ = pictures(3, side)
    found = pixel_values(given_, Input(size=side, crop=crop, layout=layout, mean=mean, std=std))
    start = (side - (crop or side)) // 2
    middle = np.stack(given_)[:, start : start + (crop or side), start : start + (crop or side)]
    expected = (middle / 255 - np.array(mean)) / np.array(std)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected, atol=1e-5)


def test_pixel_values_leave_the_pictures_as_they_are_and_are_the_same_alone() -> None:
    given_ = pictures(4, 8)
    before = [picture.copy() for picture in given_]
    together = pixel_values(given_, Input(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    alone = np.concatenate([pixel_values([p], Input(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))) for p in given_])
    assert np.array_equal(together, alone)
    assert all(np.array_equal(a, b) for a, b in zip(before, given_, strict=True))


def test_a_picture_of_another_size_is_an_encode_error() -> None:
    with pytest.raises(EncodeError, match=r"must be of shape \(9, 9, 3\), not \(8, 8, 3\)"):
        pixel_values(pictures(2, 8), Input(size=9))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": -1}, "size is -1"),
        ({"size": 8, "crop": 9}, "crop is 9, more than size = 8"),
        ({"fit": "fill"}, "'fill'"),
        ({"layout": "CHW"}, "'CHW'"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
    ],
)
def test_a_value_out_of_range_is_a_usage_error(values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Input(**values)


def test_a_waveform_has_no_padding_and_is_standardized_as_transformers_does_it() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    sound = np.random.default_rng(0).normal(0.3, 0.1, 500).astype(np.float32)
    padded = np.pad(sound, (0, 300))
    assert np.array_equal(waveform(padded), sound)
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(sound, sampling_rate=16_000, return_tensors="np")
    np.testing.assert_allclose(waveform(padded, standardize=True), expected["input_values"][0], atol=1e-6)
    assert waveform(np.zeros(7, np.float32)).tolist() == [0]


@pytest.mark.parametrize("samples", [[], [[1.0]], [1.0, float("nan")], [float("inf")]])
def test_a_waveform_that_is_none_is_an_encode_error(samples: Any) -> None:
    with pytest.raises(EncodeError, match="finite samples of one channel"):
        waveform(np.array(samples, np.float32))


@given(st.lists(st.integers(0, 5), max_size=30))
def test_rows_of_one_length_come_together_and_each_once(lengths: list[int]) -> None:
    groups = list(by_length(lengths))
    assert sorted(int(row) for rows in groups for row in rows) == list(range(len(lengths)))
    assert [{lengths[row] for row in rows} for rows in groups] == [{length} for length in sorted(set(lengths))]


@pytest.mark.parametrize(
    "how, reference",
    [
        ("mean", lambda x: x.mean(axis=1)),
        ("max", lambda x: x.max(axis=1)),
        ("cls", lambda x: x[:, 0]),
        ("last", lambda x: x[:, -1]),
    ],
)
def test_pooling_over_tokens_and_places(how: str, reference: Any) -> None:
    tokens = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(pooled(tokens, how), reference(tokens), rtol=1e-6)
    places = np.random.default_rng(0).normal(size=(3, 5, 2, 4)).astype(np.float16)
    rows = places.reshape(3, 5, 8).transpose(0, 2, 1).astype(np.float32)
    reference = (lambda x: x.mean(axis=1)) if how == "cls" else reference  # a map of places has no first one
    np.testing.assert_allclose(pooled(places, how), reference(rows), rtol=1e-3)
    np.testing.assert_allclose(pooled(places.transpose(0, 2, 3, 1), how, "NHWC"), reference(rows), rtol=1e-3)
    assert pooled(places, how).dtype == np.float32


def test_features_pass_through_pooling_and_other_shapes_are_refused() -> None:
    features = np.ones((2, 3), np.float32)
    assert np.array_equal(pooled(features, "mean"), features)
    with pytest.raises(UsageError, match=r"output is of shape \(3,\)"):
        pooled(np.ones(3, np.float32), "mean")


def test_unit_rows_have_length_1_and_zeros_stay() -> None:
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
