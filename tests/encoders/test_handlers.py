"""Beam's own handlers as encoders."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from tiny_models import AUDIO_DIM, IMAGE_DIM, RATE, SIDE, audio_model, image_model

from mmembed.encoders import resolve
from mmembed.encoders.handlers import HandlerEncoder
from mmembed.encoders.input import Input, pixel_values
from mmembed.errors import EncodeError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.testing import check_encoder, segments
from mmembed.types import Space

INPUT = Input(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Means(torch.nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """The mean of each channel, weighted."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), factor))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) * self.weight


def test_the_onnx_handler_gives_what_our_own_onnx_encoder_gives(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    handler = OnnxModelHandlerNumpy(str(path)).with_postprocess_fn(lambda found: found.inference.mean((1, 2)))
    adapted = HandlerEncoder(handler, "image", Space("adapted", "1", IMAGE_DIM), INPUT)
    _, ours = resolve(Image(), f"onnx:{path}?mean=0.5,0.5,0.5&std=0.25,0.25,0.25")
    pictures = segments("image", INPUT)
    np.testing.assert_allclose(adapted.encode(pictures), ours.encode(pictures), rtol=1e-5)


def test_the_torch_handler_gives_what_the_model_gives(tmp_path: Path) -> None:
    torch.save(Means(2.0).state_dict(), tmp_path / "means.pt")
    handler = PytorchModelHandlerTensor(str(tmp_path / "means.pt"), Means, {}).with_preprocess_fn(torch.from_numpy)
    encoder = HandlerEncoder(handler, "image", Space("means", "1", 3), INPUT)
    pictures = segments("image", INPUT)
    np.testing.assert_allclose(encoder.encode(pictures), 2 * pixel_values(pictures, INPUT).mean((2, 3)), atol=1e-5)


class Handler:
    """What the adapter needs of a handler."""

    loads = 0

    def load_model(self) -> str:
        Handler.loads += 1
        return "a model"

    def get_preprocess_fns(self) -> Any:
        return ()

    get_postprocess_fns = get_preprocess_fns

    def run_inference(self, batch: Any, model: str) -> Any:
        assert model == "a model"
        return [np.array([len(example), zlib.crc32(np.asarray(example).tobytes())], np.float64) for example in batch]


def test_two_modalities_of_one_space_have_a_model_each() -> None:
    class Other(Handler):
        def load_model(self) -> str:
            return "another"

        def run_inference(self, batch: Any, model: str) -> Any:
            assert model == "another"
            return [np.ones(2)] * len(batch)

    space = Space("joint-of-handlers", "1", 2)
    assert HandlerEncoder(Handler(), "text", space).encode(["a"]).shape == (1, 2)
    assert HandlerEncoder(Other(), "image", space, Input(size=SIDE)).encode(segments("image", INPUT)).shape == (5, 2)


def test_sounds_of_several_lengths_and_what_a_handler_refuses(tmp_path: Path) -> None:
    path = audio_model(tmp_path / "net.onnx")
    handler = OnnxModelHandlerNumpy(str(path)).with_postprocess_fn(lambda found: found.inference.mean(0))
    encoder = HandlerEncoder(handler, "audio", Space("sounds", "1", AUDIO_DIM))
    _, ours = resolve(Audio(), f"onnx:{path}?sample_rate={RATE}")
    sounds = [np.linspace(0.1, 1, size, dtype=np.float32) for size in (400, 800, 400)]
    np.testing.assert_allclose(encoder.encode(sounds), ours.encode(sounds), rtol=1e-5)
    with pytest.raises(EncodeError, match="the handler of sounds failed"):
        encoder.encode([np.ones(3, np.float32)])


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_texts_come_as_they_are_and_sounds_without_padding(modality: str) -> None:
    encoder = HandlerEncoder(Handler(), modality, Space(f"handled-{modality}", "1", 2))
    padded: list[Any] = ["four"] if modality == "text" else [np.array([1, 2, 3, 4, 0, 0, 0], np.float32)]
    assert encoder.encode(padded)[0, 0] == 4
    before = Handler.loads
    check_encoder(encoder)
    assert Handler.loads == before  # loaded once a process, also after pickling
