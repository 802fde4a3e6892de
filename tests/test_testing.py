"""Each fault that `check_encoder` looks for is found, and told apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_encoders import SmallAudio, SmallImage, SmallText

from mmembed.config import ExtractConfig, Parts
from mmembed.encoders import Encoder
from mmembed.encoders.input import Input
from mmembed.testing import check_encoder, exact_in_any_batch, segments
from mmembed.types import Space


@pytest.mark.parametrize("name", ["image", "text", "audio"])
def test_the_built_in_encoders_pass(name: str) -> None:
    encoder = Parts(ExtractConfig())[name][1]
    check_encoder(encoder)
    assert exact_in_any_batch(encoder)


@pytest.mark.parametrize("encoder", [SmallImage(), SmallText(), SmallAudio()])
def test_simple_ones_of_a_users_own_pass(encoder: Encoder) -> None:
    check_encoder(encoder)


@dataclass
class Base:
    """Sums of letters; right."""

    modality: str = "text"
    space: Space = Space("base", "1", 2)
    input: Input = Input()

    def setup(self) -> None: ...

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[sum(map(ord, text)) / 1e5, len(text) / 1e3] for text in batch], np.float32)


class Wide(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.concatenate([super().encode(batch)] * 2, axis=1)


class Double(Base):
    def encode(self, batch: Sequence[str]) -> Any:
        return super().encode(batch).astype(np.float64)


class Lists(Base):
    def encode(self, batch: Sequence[str]) -> Any:
        return super().encode(batch).tolist()


class NotFinite(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(super().encode(batch) / np.float32(0))


class Constant(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.ones((len(batch), 2), np.float32)


class Centred(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        features = super().encode(batch)
        return np.asarray(features - features.mean(axis=0))


class Ordered(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        places = np.arange(len(batch), dtype=np.float32)[:, np.newaxis]
        return super().encode(batch) + (places if len(batch) > 1 else 0)


class Raising(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        raise RuntimeError("boom")


class NotLoading(Base):
    def setup(self) -> None:
        raise FileNotFoundError("weights.bin")


class Chance(Base):
    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return super().encode(batch) + np.float32(np.random.default_rng().normal())


@dataclass
class Unpicklable(Base):
    loaded: Any = field(default_factory=threading.Lock)


@dataclass
class Forgetful(Base):
    """Loads in `__init__` what `setup` should."""

    scale: float = 1.0

    def __getstate__(self) -> dict[str, Any]:
        return {"modality": self.modality, "space": self.space, "input": self.input}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, scale=2.0)

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(super().encode(batch) * np.float32(self.scale))


class Renamed(Base):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, space=replace(state["space"], version="2"))


class Changing(SmallImage):
    def encode(self, batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        for picture in batch:
            picture[:] = 0
        return super().encode(batch)


class Slight(Base):
    """Right within rounding."""

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        return super().encode(batch) * np.float32(1 + 1e-6 * (len(batch) > 1))


@pytest.mark.parametrize(
    "kind, message",
    [
        (Wide, r"features are \(6, 4\): its space says \(6, 2\)"),
        (Double, "features are float64: they must be float32"),
        (Lists, "encode.. gives list, not a numpy array"),
        (NotFinite, "not all finite"),
        (Constant, "6 different segments all have the same feature"),
        (Centred, "a row alone differs by .* is it padded without a mask, normalized over the batch, or quantized"),
        (Ordered, "a row alone differs|a row in another order differs"),
        (Raising, "of a batch encode.. raises RuntimeError: boom"),
        (NotLoading, "setup.. raises FileNotFoundError: weights.bin"),
        (Chance, "the same batch twice gives other bits"),
        (Unpicklable, "it can't be pickled .* load weights in setup"),
        (Forgetful, "sent to a worker it gives other bits"),
        (Renamed, r"on a worker it has the space base@2\[2\], here base@1\[2\]"),
        (Changing, "changes the segments that it is given"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_fault_is_found_and_named(kind: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_encoder(kind())


def test_what_has_no_input_is_told_so() -> None:
    class Old:
        modality, space = "text", Space("old", "1", 2)

    with pytest.raises(AssertionError, match="it has no 'input'"):
        check_encoder(Old())  # type: ignore[arg-type]


def test_differences_of_rounding_pass_and_are_told() -> None:
    check_encoder(Slight())
    assert not exact_in_any_batch(Slight())


def test_segments_of_ones_own_can_be_tried() -> None:
    with pytest.raises(AssertionError, match="2 different segments all have the same feature"):
        check_encoder(Base(), ["ab", "ba"])
    check_encoder(Base(), ["ab"])


def test_segments_are_those_that_the_encoder_takes() -> None:
    assert {s.shape for s in segments("image", Input(size=40))} == {(40, 40, 3)}
    assert {s.dtype.name for s in segments("audio", Input())} == {"float32"}
    assert max(map(len, segments("audio", Input(sample_rate=8000)))) == 12_000
    with pytest.raises(ValueError, match="modality = 'smell'"):
        segments("smell", Input())
