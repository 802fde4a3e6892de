"""Encoders that are ONNX models, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.description import describe
from mmembed.encoders.input import EXAMPLES, Array, Input, by_length, pixel_values, pooled, unit_rows, waveform
from mmembed.encoders.loading import check_unchanged, digest, once, options_of, reason
from mmembed.encoders.tokens import tokenize
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GPUS = ("CUDAExecutionProvider", "ROCMExecutionProvider")
"""Providers that are used where onnxruntime has them; it falls back to the CPU."""

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}
_FEATURES = ("sentence_embedding", "{}_embeds", "{}_features", "embeddings", "last_hidden_state")
"""Outputs that are features, by their usual names, before others."""


@dataclass(frozen=True)
class OnnxModel:
    """A model of one modality. On a CPU, by one thread, a row has the same bits in any batch, unless the model is
    quantized dynamically (its scales are then of the whole batch).

    Attributes:
        path: of the model, absolute.
        weights: hash of the model's files.
        output: its output that is read.
        pooling: as of `pooled`.
        normalize: whether features are brought to length 1.
        tokenizer: path of the tokenizer.json, of texts.
    """

    modality: str
    path: str
    weights: str
    space: Space
    input: Input
    output: str
    pooling: str
    normalize: bool
    tokenizer: str

    def setup(self) -> None:
        """Load the model and its tokenizer, once a process.

        Raises:
            UsageError: the model can't be read, or is another than where the run began.
        """
        session(self.path, self.weights)

    def encode(self, batch: Sequence[Any]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: a segment is not what the model takes.
        """
        opened = session(self.path, self.weights)
        features = np.empty((len(batch), self.space.dim), np.float32)
        for rows, feed, length in feeds(self, opened, batch):
            features[rows] = _run(self, opened, feed, length)
        return features


def open_model(modality: str, rest: str) -> OnnxModel:
    """The encoder of a spec "PATH", "PATH?pooling=cls&output=x" or "PATH?input=FILE.json" or "…?input=FOLDER".

    How it is fed is told by PATH with the ending .json, else by `input`: a JSON of ours, or a folder with files of
    Hugging Face; these may also lie in the model's own folder. The model is run once, to see that it fits.

    Raises:
        UsageError: a file can't be read, onnxruntime is missing, or the model can't be fed with what is known.
    """
    name, options = options_of(rest)
    path = Path(name).absolute()
    folder, own = _told(path, options.pop("input", ""))
    said = describe(folder, own, options, modality)
    weights = digest(_files(path))
    opened = session(str(path), weights)
    input = _completed(said.input, opened, modality)
    if modality == "text" and not said.tokenizer:
        raise UsageError(f"{folder} has no tokenizer.json: put it there, or name its folder by ?input=FOLDER")
    model = OnnxModel(
        modality,
        str(path),
        weights,
        Space(path.stem, digest(said.files, weights, sorted(options.items())), 1),
        input,
        said.output or _feature_output(opened, modality),
        said.pooling or "mean",
        said.normalize,
        said.tokenizer,
    )
    return _with_dim(model, opened)


def _told(path: Path, input: str) -> tuple[Path, Path | None]:
    """The folder that files of Hugging Face are looked for in, and the JSON of ours, if there is one."""
    told = Path(input).absolute() if input else path.with_suffix(".json")
    if told.is_dir():
        return told, None
    return path.parent, told if input or told.is_file() else None


def _with_dim(model: OnnxModel, opened: InferenceSession) -> OnnxModel:
    """The model with the dimension that it has when it is run."""
    example = EXAMPLES[model.modality](model.input.sample_rate or model.input.size or 224)
    try:
        ((_, feed, length),) = feeds(model, opened, [example])
        found = _run(model, opened, feed, length)
    except EncodeError as error:
        raise UsageError(f"{model.path} can't be run: {error}") from error
    return replace(model, space=replace(model.space, dim=found.shape[1]))


def session(path: str, weights: str) -> InferenceSession:
    """The model of a path, loaded once a process, with one thread: workers are processes, one a core.

    Raises:
        UsageError: onnxruntime is missing, it can't read the file, or that has another hash.
    """
    return once(("onnx", path, weights), lambda: _open(path, weights))


def _open(path: str, weights: str) -> InferenceSession:
    check_unchanged(path, _files(Path(path)), weights)
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("ONNX models need onnxruntime: pip install 'mmembed[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of each GPU that it doesn't find
    try:
        return onnxruntime.InferenceSession(path, options, providers(onnxruntime.get_available_providers()))
    except Exception as error:  # its errors have no common base but this
        raise UsageError(f"can't read the ONNX model {path}: {reason(error)}") from error


def providers(available: Sequence[str]) -> list[str]:
    """GPUs first, then the CPU."""
    return [*(name for name in GPUS if name in available), "CPUExecutionProvider"]


def _files(path: Path) -> list[Path]:
    """The model, and the weights of one that is too large for a file: by custom in NAME.onnx.data or NAME.onnx_data."""
    beside = [path.with_name(path.name + suffix) for suffix in (".data", "_data")]
    return [path, *filter(Path.is_file, beside)]


def _feature_output(opened: InferenceSession, modality: str) -> str:
    names = [output.name for output in opened.get_outputs()]
    usual = [name.format(modality) for name in _FEATURES]
    return str(next((name for name in usual if name in names), names[0]))


def _completed(input: Input, opened: InferenceSession, modality: str) -> Input:
    """With the size of pictures, and the most tokens, that the model itself says."""
    first = opened.get_inputs()[0].shape
    if modality == "image" and not input.size:
        side = first[2 if input.layout == "NCHW" else 1] if len(first) == 4 else None
        if not isinstance(side, int):
            raise UsageError(f"the model doesn't say how large pictures must be: add ?size=…; its input is {first}")
        return replace(input, size=side)
    if modality == "audio" and not input.sample_rate:
        raise UsageError("nothing says at which rate the model takes sounds: add ?sample_rate=…, in Hz")
    if modality == "text" and len(first) == 2 and isinstance(first[1], int):
        return replace(input, max_tokens=min(input.max_tokens or first[1], first[1]))
    return input


Feed = dict[str, NDArray[Any]]


def feeds(
    model: OnnxModel, opened: InferenceSession, batch: Sequence[Any]
) -> Iterator[tuple[NDArray[np.intp] | slice, Feed, int]]:
    """What is run together: rows of the batch, the model's inputs, and how many tokens of the output are no padding."""
    if model.modality == "image":
        yield slice(None), _named(model, opened, _pictures(model, opened, batch), len(batch)), 0
        return
    if model.modality == "text":
        texts = tokenize(model.tokenizer, batch, model.input.max_tokens)
        for rows in by_length([len(ids) for ids in texts]):
            ids = np.stack([texts[row] for row in rows])
            yield rows, _named(model, opened, ids, len(rows)), ids.shape[1]
        return
    sounds = [waveform(samples, model.input.standardize) for samples in batch]
    for rows in by_length([len(samples) for samples in sounds]):
        yield rows, _named(model, opened, np.stack([sounds[row] for row in rows]), len(rows)), 0


def _pictures(model: OnnxModel, opened: InferenceSession, batch: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
    if opened.get_inputs()[0].type != "tensor(uint8)":
        return pixel_values(batch, model.input)
    pictures = np.stack(batch)
    return pictures if model.input.layout == "NHWC" else pictures.transpose(0, 3, 1, 2)


def _named(model: OnnxModel, opened: InferenceSession, content: NDArray[Any], rows: int) -> Feed:
    """The model's inputs by name, in their types, padded where its shape is fixed.

    Raises:
        UsageError: it has an input that a segment doesn't give.
        EncodeError: a sound is longer than what it takes.
    """
    feed: Feed = {}
    length = content.shape[1]
    for number, node in enumerate(opened.get_inputs()):
        shape = node.shape
        if number == 0 or node.name in ("input_ids", "pixel_values", "input_values"):
            value = content[:, np.newaxis] if len(shape) == 3 and content.ndim == 2 else content
        elif node.name == "attention_mask":
            value = np.ones((rows, length), np.int64)
        elif node.name == "token_type_ids":
            value = np.zeros((rows, length), np.int64)
        elif node.name == "position_ids":
            value = np.tile(np.arange(length), (rows, 1))
        else:
            raise UsageError(
                f"the model has an input {node.name!r}, which {model.modality} doesn't give: export its part alone"
            )
        if model.modality != "image" and isinstance(shape[-1], int):
            if shape[-1] < length:
                raise EncodeError(f"the model takes {shape[-1]} samples, not {length}: use shorter windows")
            value = np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, shape[-1] - length)])
        feed[node.name] = np.ascontiguousarray(value, _TYPES.get(node.type, np.float32))
    return feed


def _run(model: OnnxModel, opened: InferenceSession, feed: Feed, length: int) -> Array:
    """Features (n, dim); a model with a fixed number of rows is run as often as it takes.

    Raises:
        EncodeError: the model fails on them.
    """
    rows = len(next(iter(feed.values())))
    fixed = opened.get_inputs()[0].shape[0]
    step = fixed if isinstance(fixed, int) else rows
    parts = []
    for start in range(0, rows, step):
        part = {name: value[start : start + step] for name, value in feed.items()}
        missing = step - len(next(iter(part.values())))
        if missing:
            part = {name: np.concatenate([value, value[-1:].repeat(missing, axis=0)]) for name, value in part.items()}
        try:
            (output,) = opened.run([model.output], part)
        except Exception as error:  # its errors have no common base but this
            raise EncodeError(f"the model {model.space.name} failed: {reason(error)}") from error
        if length and output.ndim == 3:
            output = output[:, :length]
        parts.append(pooled(output, model.pooling, model.input.layout)[: step - missing])
    features = np.concatenate(parts)
    return unit_rows(features) if model.normalize else features
