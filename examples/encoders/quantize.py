"""An ONNX model with weights and activations of 8 bits: a third to a quarter of the size.

    pip install onnx 'mmembed[onnx]'
    python examples/encoders/quantize.py models/efficientnet-lite0.onnx models/int8/efficientnet-lite0.onnx INPUT
    python examples/encoders/quantize.py models/minilm/minilm.onnx models/int8/minilm.onnx INPUT

INPUT is a data set on whose first segments the ranges of activations are measured. They are fixed ("static"): ranges
that are measured in each call ("dynamic") would be of the whole batch, and a feature would depend on its neighbours.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mmembed.bench import normalized_segments
from mmembed.config import ExtractConfig, Parts
from mmembed.encoders.onnx import OnnxModel, feeds, session

BESIDE = ("*.json", "1_Pooling/*.json")


class Segments(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """What the model is fed with, one batch of one segment after the other."""

    def __init__(self, model: OnnxModel, segments: list[Any]) -> None:
        opened = session(model.path, model.weights)
        self.feeds: Iterator[Mapping[str, Any]] = (
            feed for segment in segments for _, feed, _ in feeds(model, opened, [segment])
        )

    def get_next(self) -> Mapping[str, Any] | None:
        """The next batch, None at the end."""
        return next(self.feeds, None)


def main(path: Path, target: Path, input: str) -> None:
    """Write the quantized model, and beside it what tells how it is fed."""
    modality = "text" if (path.parent / "tokenizer.json").is_file() else "image"
    config = ExtractConfig(**{f"{modality}_encoder": f"onnx:{path}"})  # type: ignore[arg-type]
    _, model = Parts(config)[modality]
    assert isinstance(model, OnnxModel)
    target.parent.mkdir(parents=True, exist_ok=True)
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Segments(model, normalized_segments(input, config)[modality]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )
    prepared.unlink()
    for pattern in BESIDE:
        for file in path.parent.glob(pattern):
            copy = target.parent / file.relative_to(path.parent)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    print(f"onnx:{target}: {target.stat().st_size / path.stat().st_size:.2f} of the size")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
