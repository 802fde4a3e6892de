"""Encoders for `RunInference`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler
from numpy.typing import NDArray

from mmembed.encoders import Encoder
from mmembed.engine import use_one_thread


class EncoderModelHandler(ModelHandler[Any, NDArray[np.float32], Encoder]):
    """A `ModelHandler` by an encoder: `normalized | RunInference(EncoderModelHandler(encoder))` gives features, float32
    (dim,), in a `KeyedModelHandler` too. The way back is `mmembed.encoders.handlers.HandlerEncoder`.

    Args:
        encoder: what it encodes are normalized segments, as `Modality.normalize` gives them.
        most: segments that are encoded at once, at most.
    """

    def __init__(self, encoder: Encoder, most: int = 64) -> None:
        super().__init__()
        self._encoder, self._most = encoder, most

    def load_model(self) -> Encoder:
        """The encoder, its weights loaded."""
        use_one_thread()
        self._encoder.setup()
        return self._encoder

    def run_inference(
        self, batch: Sequence[Any], model: Encoder, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[NDArray[np.float32]]:
        """The features of a batch."""
        return list(model.encode(list(batch)))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Of what is encoded."""
        return sum(len(item) if isinstance(item, str) else int(item.nbytes) for item in batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """The sizes of batches."""
        return {"min_batch_size": 1, "max_batch_size": self._most}

    def get_metrics_namespace(self) -> str:
        """Where RunInference counts."""
        return "mmembed"
