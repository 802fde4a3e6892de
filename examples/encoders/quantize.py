"""An ONNX model with weights of 8 bits: a quarter to two fifths of the size.

    pip install onnx onnxruntime
    python examples/encoders/quantize.py image models/efficientnet-lite0.onnx models/small/efficientnet-lite0.onnx INPUT
    python examples/encoders/quantize.py text models/minilm/minilm.onnx models/small/minilm.onnx INPUT

Activations have 16 bits, which costs next to no recall; with `--activations 8` they have 8, which costs a lot (see
docs/encoders.md) and is faster only on processors with instructions for it. INPUT is a data set on whose first segments
the ranges of activations are measured. They are fixed ("static"): ranges that are measured in each call ("dynamic")
would be of the whole batch, and a feature would depend on its neighbours.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mmembed.bench import normalized_segments
from mmembed.config import ExtractConfig, Parts
from mmembed.encoders.onnx import OnnxModel, feeds
from mmembed.inputs import open_source

BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
)


class Segments(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """What the model is fed with, one batch of one segment after the other."""

    def __init__(self, model: OnnxModel, segments: list[Any]) -> None:
        self.feeds: Iterator[Mapping[str, Any]] = (
            feed for segment in segments for _, feed, _ in feeds(model, [segment])
        )

    def get_next(self) -> Mapping[str, Any] | None:
        """The next batch, None at the end."""
        return next(self.feeds, None)


def main(modality: str, path: Path, target: Path, input: str, bits: int) -> None:
    """Write the quantized model, and beside it what tells how it is fed."""
    config = ExtractConfig(**{f"{modality}_encoder": f"onnx:{path}"})  # type: ignore[arg-type]
    cut, model = Parts(config)[modality]
    assert isinstance(model, OnnxModel)
    segments = normalized_segments(open_source(input, config.choice), config.unit_records, {modality: cut})
    target.parent.mkdir(parents=True, exist_ok=True)
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Segments(model, segments[modality]),
        quant_format=QuantFormat.QDQ,
        activation_type={8: QuantType.QUInt8, 16: QuantType.QUInt16}[bits],
        # Beside activations of 8 bits, signed weights overflow on processors without VNNI.
        weight_type={8: QuantType.QUInt8, 16: QuantType.QInt8}[bits],
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm", "Gather"],
    )
    prepared.unlink()
    copies = {path.with_suffix(".json"): target.with_suffix(".json")}
    copies |= {path.parent / name: target.parent / name for name in BESIDE}
    for file, copy in copies.items():
        if file.is_file() and file != copy:
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    print(f"onnx:{target}: {target.stat().st_size / path.stat().st_size:.2f} of the size")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", choices=("image", "text", "audio"))
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("input")
    parser.add_argument("--activations", type=int, choices=(8, 16), default=16)
    options = parser.parse_args()
    main(options.modality, options.model, options.target, options.input, options.activations)
