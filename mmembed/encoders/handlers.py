"""Beam's model handlers as encoders: whatever RunInference can run, without its own batching.

    def encoder():
        handler = OnnxModelHandlerNumpy("net.onnx")
        return HandlerEncoder(handler, "image", Space("net", "1", 512), Input(size=224))

in a module of yours, and `--image-encoder module:encoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmembed.encoders.input import Array, Input, by_length, pixel_values, waveform
from mmembed.encoders.loading import failing, once
from mmembed.errors import EncodeError
from mmembed.types import Space


@dataclass(frozen=True)
class HandlerEncoder:
    """An encoder by a `ModelHandler`, which is told by what it can do: nothing of Beam is imported here.

    Attributes:
        handler: gets float32 (3, h, w) pictures (or (h, w, 3), see `Input.layout`), texts as str, or float32 (samples,)
            sounds without padding; and gives arrays or tensors (dim,), or `PredictionResult`s of them. Its own
            `with_preprocess_fn` and `with_postprocess_fn` may bring these to what it is.
        space: where its features live; of two handlers of one modality that compute something else, another.
    """

    handler: Any
    modality: str
    space: Space
    input: Input = Input()

    def setup(self) -> None:
        """Load the model, once a process."""
        self._model()

    def encode(self, batch: Sequence[Any]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: the handler fails on them.
        """
        features = np.empty((len(batch), self.space.dim), np.float32)
        examples: Sequence[Any] = batch
        groups: Iterable[Any] = [range(len(batch))]
        if self.modality == "image":
            examples = list(pixel_values(batch, self.input))
        elif self.modality == "audio":
            examples = [waveform(samples, self.input.standardize) for samples in batch]
            groups = by_length([len(example) for example in examples])
        for rows in groups:
            with failing(EncodeError, f"the handler of {self.space.name} failed"):
                features[rows] = self._run([examples[row] for row in rows])
        return features

    def _run(self, examples: Sequence[Any]) -> Array:
        for prepare in self.handler.get_preprocess_fns():
            examples = [prepare(example) for example in examples]
        results = list(self.handler.run_inference(examples, self._model()))
        for finish in self.handler.get_postprocess_fns():
            results = [finish(result) for result in results]
        return np.stack([_array(getattr(result, "inference", result)) for result in results])

    def _model(self) -> Any:
        return once(("handler", self.modality, self.space), self.handler.load_model)


def _array(value: Any) -> Array:
    """An array, or a tensor of torch on any device, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float32)
