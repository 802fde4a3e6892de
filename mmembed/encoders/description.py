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
_MODULES = {"Transformer", "Pooling", "Normalize"}
_REMEDY = "name it by sentence-transformers:FOLDER"
_SHORTER = ("CLIP", "ChineseCLIP", "Bit")
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
        for key, value in read_object(own).items():
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

    def read(name: str) -> Any:
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
        kinds = [str(module.get("type")).rpartition(".")[2] for module in read("modules.json")]
        pooling = read("1_Pooling/config.json")
        if unknown := set(kinds) - _MODULES:
            raise UsageError(f"{folder} has modules that are not known here ({', '.join(sorted(unknown))}): {_REMEDY}")
        if pooling:
            values |= {"pooling": _pooling(pooling, folder), "normalize": "Normalize" in kinds}
        return values, files
    said = read(_PREPROCESSORS[0]) or read(_PREPROCESSORS[1])
    if modality == "image":
        return _pictures(said.get("image_processor", said), folder / _PREPROCESSORS[0]), files
    said = said.get("feature_extractor", said)
    if said.get("feature_size", 1) != 1 and not spectrograms:
        kind = said.get("feature_extractor_type", "its feature extractor")
        raise UsageError(
            f"{files[0]}: {kind} makes spectrograms, which are not made here: export a model that takes "
            "samples, or use hf:"
        )
    sounds = {"sample_rate": said.get("sampling_rate"), "standardize": said.get("do_normalize")}
    return {key: value for key, value in sounds.items() if value is not None}, files


def _pictures(said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """An image processor's configuration in our words."""
    if "size" not in said:
        return {}
    kind = str(said.get("image_processor_type", said.get("feature_extractor_type", "")))
    if not said.get("do_resize", True) or said.get("do_pad", False):
        raise UsageError(f"{path}: {kind or 'its processor'} does not resize, or pads: say size and fit in options")
    size, crops = said["size"], said.get("do_center_crop", False)
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    values: dict[str, Any]
    if "crop_pct" in said or kind.startswith("ConvNext"):  # large pictures whole, small ones less their borders
        side = edge or _side(size, path)
        share = said.get("crop_pct") or 224 / 256
        small = {"size": int(side / share), "fit": "crop", "crop": side}
        values = small if side < 384 else {"size": side, "fit": "stretch"}
    else:
        # A number alone is the shorter side for processors like CLIP's, both sides for others (DeiT, ViT).
        shorter = edge or (size if isinstance(size, int) and crops and kind.startswith(_SHORTER) else 0)
        values = {"size": shorter or _side(size, path), "fit": "crop" if shorter else "stretch"}
        if crops:
            values["crop"] = _side(said.get("crop_size", values["size"]), path)
    # What we take for 1 is 255; a processor that multiplies by another factor has other units.
    unit = 255 * (said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0)
    normalizes = said.get("do_normalize", True) and "image_mean" in said
    values["mean"] = [value / unit for value in (said["image_mean"] if normalizes else [0.0] * 3)]
    values["std"] = [value / unit for value in (said["image_std"] if normalizes else [1.0] * 3)]
    return values


def _side(size: Any, path: Path) -> int:
    if isinstance(size, dict) and size.keys() >= {"height", "width"} and size["height"] == size["width"]:
        size = size["height"]
    if not isinstance(size, int):
        raise UsageError(f"{path}: a size of {size!r}: only square pictures are known")
    return size


def _pooling(said: Mapping[str, Any], folder: Path) -> str:
    """The pooling of sentence-transformers in our words."""
    known = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "last"}
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix) for key, on in said.items() if key.startswith(prefix) and on is True]
    modes += [said["pooling_mode"]] if "pooling_mode" in said else []
    named = [known.get(mode, mode) for mode in modes]
    if len(named) != 1 or named[0] not in POOLINGS:
        raise UsageError(f"{folder}/1_Pooling pools by {', '.join(modes)}, which is not known here: {_REMEDY}")
    return named[0]


def read_object(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        UsageError: it can't be read, or holds none.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UsageError: it can't be read, or is no JSON.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no valid JSON: {error}") from error
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
