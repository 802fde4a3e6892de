"""Encoders that are ONNX models, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.description import describe
from mmembed.encoders.input import EXAMPLES, POOLING, Array, Input, by_length, pixel_values, pooled, unit_rows, waveform
from mmembed.encoders.loading import check_unchanged, digest, failing, once, options_of
from mmembed.encoders.tokens import open_tokenizer, tokenize
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

GPUS = ("CUDAExecutionProvider", "ROCMExecutionProvider")
"""Providers that are used where onnxruntime has them; it falls back to the CPU."""

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}
_INTEGERS = ("tensor(int64)", "tensor(int32)")

_FEATURES = ("sentence_embedding", "{}_embeds", "{}_features", "embeddings", "last_hidden_state")
"""Outputs that are features, by their usual names, before others."""


@dataclass(frozen=True)
class OnnxModel:
    """A model of one modality. On a CPU, by one thread, a row has the same bits in any batch, unless the model is
    quantized dynamically (its scales are then of the whole batch).

    Attributes:
        files: the model, its weights where they lie apart, and all that says how it is fed; absolute paths.
        hash: of their content.
        output: its output that is read.
        pooling: as of `pooled`.
        normalize: whether features are brought to length 1.
        tokenizer: path of the tokenizer.json, of texts.
    """

    modality: str
    files: tuple[str, ...]
    hash: str
    space: Space
    input: Input
    output: str
    pooling: str
    normalize: bool
    tokenizer: str

    def setup(self) -> None:
        """Load the model and its tokenizer, once a process.

        Raises:
            UsageError: they can't be read, or are others than where the run began.
        """
        session(self)
        if self.tokenizer:
            _tokenizer(self)

    def encode(self, batch: Sequence[Any]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: a segment is not what the model takes.
        """
        features = np.empty((len(batch), self.space.dim), np.float32)
        for rows, feed, share in feeds(self, batch):
            found = _run(self, feed, share)
            if found.shape[1] != self.space.dim:
                raise EncodeError(f"the model gave {found.shape[1]} values, not {self.space.dim}: pool its output")
            features[rows] = found
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
    options.pop("tokenizer", None)  # its content counts, not its place
    files = [*_model_files(path), *said.files]
    if modality == "text" and not said.tokenizer:
        raise UsageError(f"{folder} has no tokenizer.json: put it there, or name its folder by ?input=FOLDER")
    hash = digest(files)
    model = OnnxModel(
        modality,
        tuple(map(str, files)),
        hash,
        Space(path.stem, digest([], hash, sorted(options.items())), 1),
        said.input,
        said.output,
        said.pooling or POOLING[modality],
        said.normalize,
        said.tokenizer,
    )
    opened = session(model)
    output = _feature_output(opened, modality, said.output)
    return _with_dim(replace(model, input=_completed(said.input, opened, modality), output=output))


def _told(path: Path, input: str) -> tuple[Path, Path | None]:
    """The folder that files of Hugging Face are looked for in, and the JSON of ours, if there is one."""
    told = Path(input).absolute() if input else path.with_suffix(".json")
    if told.is_dir():
        return told, None
    return path.parent, told if input or told.is_file() else None


def _with_dim(model: OnnxModel) -> OnnxModel:
    """The model with the dimension that it has when it is run."""
    example = EXAMPLES[model.modality](model.input.sample_rate or model.input.size)
    if model.modality == "audio" and isinstance(taken := _content_input(session(model)).shape[-1], int):
        example = example[:taken]
    try:
        ((_, feed, share),) = feeds(model, [example])
        found = _run(model, feed, share)
    except EncodeError as error:
        raise UsageError(f"{model.files[0]} can't be run: {error}") from error
    return replace(model, space=replace(model.space, dim=found.shape[1]))


def session(model: OnnxModel) -> InferenceSession:
    """The model, loaded once a process, with one thread: workers are processes, one a core.

    Raises:
        UsageError: onnxruntime is missing, it can't read the file, or one of the files has changed.
    """
    return once(("onnx", model.files, model.hash), lambda: _open(model))


def _tokenizer(model: OnnxModel) -> Tokenizer:
    most = model.input.max_tokens
    key = ("tokenizer", model.tokenizer, most, model.hash)
    return once(key, lambda: open_tokenizer(model.tokenizer, most))


def _open(model: OnnxModel) -> InferenceSession:
    path = model.files[0]
    check_unchanged(path, map(Path, model.files), model.hash)
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("ONNX models need a package: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of each GPU that it doesn't find
    with failing(UsageError, f"can't read the ONNX model {path}"):
        return onnxruntime.InferenceSession(path, options, providers(onnxruntime.get_available_providers()))


def providers(available: Sequence[str]) -> list[str]:
    """GPUs first, then the CPU."""
    return [*(name for name in GPUS if name in available), "CPUExecutionProvider"]


_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)
"""Where a model names a file of weights that lie apart (protobuf): the key "location", a length, and the name."""


def _model_files(path: Path) -> list[Path]:
    """The model, and the files that its weights lie in where they lie apart.

    Raises:
        UsageError: it can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    found = {content[match.end() : match.end() + match[1][0]] for match in _LOCATION.finditer(content)}
    return [path, *sorted(path.parent / name.decode("utf-8", "replace") for name in found)]


def _feature_output(opened: InferenceSession, modality: str, wanted: str) -> str:
    names = [output.name for output in opened.get_outputs()]
    if wanted and wanted not in names:
        raise UsageError(f"the model has no output {wanted!r}, but {', '.join(names)}")
    if wanted:
        return wanted
    usual = [name.format(modality) for name in _FEATURES]
    return str(next((name for name in usual if name in names), names[0]))


_CONTENT = ("input_ids", "pixel_values", "input_values", "input_features")
_BESIDE_TOKENS = ("attention_mask", "token_type_ids", "position_ids")


def _content_input(opened: InferenceSession) -> Any:
    """The input that gets the segments: by its usual name, else the first that is none of those beside it."""
    nodes = [node for node in opened.get_inputs() if node.name not in _BESIDE_TOKENS]
    if not nodes:
        raise UsageError("the model has no input for segments")
    return next((node for node in nodes if node.name in _CONTENT), nodes[0])


def _completed(input: Input, opened: InferenceSession, modality: str) -> Input:
    """With the layout and size of pictures, and the most tokens, that the model itself says."""
    main = _content_input(opened)
    shape = main.shape
    if (modality == "image") != (len(shape) == 4) or (modality == "text") != (main.type in _INTEGERS):
        raise UsageError(f"its input {main.name!r}, {main.type} {shape}, takes no {modality}: of what modality is it?")
    if modality == "image":
        if shape[3] == 3 and shape[1] != 3:
            input = replace(input, layout="NHWC")
        side = shape[2 if input.layout == "NCHW" else 1]
        if not input.size and not isinstance(side, int):
            raise UsageError(f"the model doesn't say how large pictures must be: add ?size=…; its input is {shape}")
        if isinstance(side, int) and input.size and side != input.pixels:
            raise UsageError(f"the model takes pictures of {side} pixels, not of {input.pixels}; its input is {shape}")
        return replace(input, size=input.size or side)
    if modality == "audio" and not input.sample_rate:
        raise UsageError("nothing says at which rate the model takes sounds: add ?sample_rate=…, in Hz")
    if modality == "text" and len(shape) == 2 and isinstance(shape[1], int):
        return replace(input, max_tokens=min(input.max_tokens or shape[1], shape[1]))
    return input


Feed = dict[str, NDArray[Any]]


def feeds(model: OnnxModel, batch: Sequence[Any]) -> Iterator[tuple[NDArray[np.intp] | slice, Feed, float]]:
    """What is run together: rows of the batch, the model's inputs, and the share of the output that is no padding.

    Raises:
        EncodeError: a segment is not what the model takes.
    """
    main = _content_input(session(model))
    if model.modality == "image":
        as_bytes = replace(model.input, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        pictures = pixel_values(batch, as_bytes if main.type == "tensor(uint8)" else model.input)
        yield slice(None), _named(model, pictures), 1.0
        return
    segments: list[NDArray[Any]]
    if model.modality == "text":
        segments = [*tokenize(_tokenizer(model), batch)]
    else:
        segments = [waveform(samples, model.input.standardize) for samples in batch]
    taken = main.shape[-1]
    for rows in by_length([len(segment) for segment in segments]):
        content = np.stack([segments[row] for row in rows])
        length = content.shape[1]
        if isinstance(taken, int) and length > taken:
            raise EncodeError(f"the model takes {taken} samples, not {length}: use shorter windows")
        yield rows, _named(model, content), length / taken if isinstance(taken, int) else 1.0


def _named(model: OnnxModel, content: NDArray[Any]) -> Feed:
    """The model's inputs by name, in their types; with zeros at the end where it takes so many tokens or samples.

    Raises:
        UsageError: it has an input that a segment doesn't give.
    """
    opened = session(model)
    main, shape = _content_input(opened).name, content.shape[:2]
    feed: Feed = {}
    for node in opened.get_inputs():
        if node.name == main:
            value = content
        elif model.modality == "image" or node.name not in _BESIDE_TOKENS:
            raise UsageError(
                f"the model has an input {node.name!r}, which {model.modality} doesn't give: export its part alone"
            )
        else:
            value = {
                "attention_mask": np.ones(shape, np.int64),
                "token_type_ids": np.zeros(shape, np.int64),
                "position_ids": np.tile(np.arange(shape[1]), (shape[0], 1)),
            }[node.name]
        if model.modality != "image" and isinstance(node.shape[-1], int):
            value = np.pad(value, [(0, 0), (0, node.shape[-1] - shape[1])])
        if len(node.shape) == 3 and value.ndim == 2:  # sounds with a channel
            value = value[:, np.newaxis]
        feed[node.name] = np.ascontiguousarray(value, _TYPES.get(node.type, np.float32))
    return feed


def _run(model: OnnxModel, feed: Feed, share: float) -> Array:
    """Features (n, dim); a model with a fixed number of rows is run as often as it takes.

    Raises:
        EncodeError: the model fails on them.
    """
    opened = session(model)
    rows = len(next(iter(feed.values())))
    fixed = _content_input(opened).shape[0]
    step = fixed if isinstance(fixed, int) else rows
    parts = []
    for start in range(0, rows, step):
        part = {name: value[start : start + step] for name, value in feed.items()}
        missing = step - len(next(iter(part.values())))
        if missing:
            part = {name: np.concatenate([value, value[-1:].repeat(missing, axis=0)]) for name, value in part.items()}
        with failing(EncodeError, f"the model {model.space.name} failed"):
            (output,) = opened.run([model.output], part)
        if output.ndim == 3:
            output = output[:, : max(1, round(share * output.shape[1]))]
        parts.append(pooled(output, model.pooling, model.input.layout)[: step - missing])
    features = np.concatenate(parts)
    return unit_rows(features) if model.normalize else features
