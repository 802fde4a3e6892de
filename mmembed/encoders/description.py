"""What lies beside a model and says how it is fed: files of Hugging Face, or a small JSON of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmembed.encoders.input import POOLINGS, Input
from mmembed.errors import UsageError

_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_LIMITS = ("sentence_bert_config.json", "tokenizer_config.json")
_NO_LIMIT = 100_000  # tokenizers without a limit of their own say 10^30


@dataclass(frozen=True)
class Description:
    """How a model is fed and read.

    Attributes:
        tokenizer: path of a tokenizer.json, "" where there is none.
        output: name of the output that is the feature; "": the model decides.
        pooling: how tokens, places or frames become one vector, one of `POOLINGS`; "": the model decides.
        normalize: whether features are brought to length 1.
        files: that this was read from, and those that it names.
    """

    input: Input = Input()
    tokenizer: str = ""
    output: str = ""
    pooling: str = ""
    normalize: bool = False
    files: Sequence[Path] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.pooling not in ("", *POOLINGS):
            raise UsageError(f"pooling = {self.pooling!r}: must be one of {', '.join(POOLINGS)}")


def describe(
    folder: Path, own: Path | None, options: Mapping[str, str], modality: str, spectrograms: bool = False
) -> Description:
    """What a model's folder says, with what a JSON file of ours says instead, with what options of a spec say instead.

    Args:
        spectrograms: whether the caller makes what a feature extractor makes that is no waveform.
        own: an object of the fields of `Input` and `Description`; paths in it are relative to it. None: there is none.

    Raises:
        UsageError: a file can't be read, an unknown key, a value of the wrong type, or pictures that are not square.
    """
    values, files = from_hugging_face(folder, modality, spectrograms)
    if own:
        files.append(own)
        for key, value in read_json(own).items():
            values[key] = str((own.parent / str(value)).resolve()) if key == "tokenizer" else value
        if (meant := values.pop("modality", modality)) != modality:
            raise UsageError(f"{own} is of a model of {meant}, not of {modality}")
    values.update(options)
    if values.get("tokenizer"):
        files.append(Path(values["tokenizer"]))
    names = [item.name for item in fields(Input)]
    input = Input(**{name: _value(name, values.pop(name), getattr(Input(), name)) for name in names if name in values})
    found = Description(files=files)
    known = ("tokenizer", "output", "pooling", "normalize")
    if unknown := values.keys() - set(known):
        raise UsageError(f"unknown key {sorted(unknown)[0]!r}; known are {', '.join([*names, *known])}")
    rest = {name: _value(name, value, getattr(found, name)) for name, value in values.items()}
    return Description(input=input, files=files, **rest)


def from_hugging_face(folder: Path, modality: str, spectrograms: bool) -> tuple[dict[str, Any], list[Path]]:
    """What the files of Hugging Face in a folder say, in our words, and those that were read; of preprocessor_config,
    tokenizer, tokenizer_config, sentence_bert_config, 1_Pooling/config and modules (.json)."""
    values: dict[str, Any] = {}
    files: list[Path] = []

    def read(name: str) -> dict[str, Any]:
        if not (folder / name).is_file():
            return {}
        files.append(folder / name)
        return read_json(folder / name)

    if modality == "text":
        if (folder / "tokenizer.json").is_file():
            values["tokenizer"] = str(folder / "tokenizer.json")
        for limits in map(read, _LIMITS):
            most = limits.get("max_seq_length") or limits.get("model_max_length") or _NO_LIMIT
            if most < _NO_LIMIT and "max_tokens" not in values:
                values["max_tokens"] = int(most)
        if pooling := _pooling(read("1_Pooling/config.json")):
            values["pooling"] = pooling
            values["normalize"] = (folder / "2_Normalize").is_dir() or "Normalize" in _text(folder / "modules.json")
        return values, files
    said = read(_PREPROCESSORS[0]) or read(_PREPROCESSORS[1])
    if modality == "image":
        return _pictures(said.get("image_processor", said)), files
    said = said.get("feature_extractor", said)
    if said.get("feature_size", 1) != 1 and not spectrograms:
        kind = said.get("feature_extractor_type", "its feature extractor")
        raise UsageError(
            f"{files[0]}: {kind} makes spectrograms, which are not made here: export a model that takes "
            "samples, or use hf:"
        )
    sounds = {"sample_rate": said.get("sampling_rate"), "standardize": said.get("do_normalize")}
    return {key: value for key, value in sounds.items() if value is not None}, files


def _pictures(said: Mapping[str, Any]) -> dict[str, Any]:
    """An image processor's configuration in our words."""
    if "size" not in said:
        return {}
    size, crops = said["size"], said.get("do_center_crop", False)
    if isinstance(size, dict) and "shortest_edge" in size:
        side, fit = size["shortest_edge"], "crop"
    else:
        side, fit = _side(size, "size"), "crop" if crops and isinstance(size, int) else "stretch"
    values: dict[str, Any] = {"size": side, "fit": fit}
    if crops:
        values["crop"] = _side(said.get("crop_size", side), "crop_size")
    # What we take for 1 is 255; a processor that multiplies by another factor has other units.
    unit = 255 * (said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0)
    normalizes = said.get("do_normalize", True) and "image_mean" in said
    values["mean"] = [value / unit for value in (said["image_mean"] if normalizes else [0.0] * 3)]
    values["std"] = [value / unit for value in (said["image_std"] if normalizes else [1.0] * 3)]
    return values


def _side(size: Any, name: str) -> int:
    if isinstance(size, dict) and size.keys() >= {"height", "width"} and size["height"] == size["width"]:
        size = size["height"]
    if not isinstance(size, int):
        raise UsageError(f"{name} = {size!r} of its image processor: only square pictures are known")
    return size


def _pooling(said: Mapping[str, Any]) -> str:
    """The pooling of sentence-transformers in our words, "" where there is none, or one that is not known here."""
    known = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}
    chosen = {key.removeprefix("pooling_mode_") for key, on in said.items() if on is True}
    chosen.add(said.get("pooling_mode", ""))
    return next((ours for ours, theirs in known.items() if chosen & {ours, theirs}), "")


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        UsageError: it can't be read, or holds none.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def _value(name: str, value: Any, default: Any) -> Any:
    """A value of JSON, or the text of an option, as what a field has."""
    try:
        if isinstance(default, bool):
            return {True: True, False: False, "true": True, "false": False, "1": True, "0": False}[value]
        if isinstance(default, tuple):
            return tuple(map(float, value.split(",") if isinstance(value, str) else value))
        if isinstance(default, int) and isinstance(value, float):
            raise ValueError
        return type(default)(value)
    except (KeyError, TypeError, ValueError) as error:
        kind = "three numbers" if isinstance(default, tuple) else type(default).__name__
        raise UsageError(f"{name} = {value!r}: must be of type {kind}") from error
