"""Encoders: from normalized segments of one modality to features; one file a family."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.input import Input
from mmembed.encoders.loading import options_of
from mmembed.errors import UsageError
from mmembed.modalities import Modality
from mmembed.types import Space

GROUP = "mmembed.encoders"
"""The group of entry points under which packages offer encoders by name."""

_BUILTIN = {"image": "image-statistics", "text": "wordllama+ngrams", "audio": "audio-statistics"}
_NAMES = {
    "image-statistics": "mmembed.encoders.image:ImageStatistics",
    "wordllama": "mmembed.encoders.text:WordVectors",
    "ngrams": "mmembed.encoders.text:HashedNgrams",
    "audio-statistics": "mmembed.encoders.audio:AudioStatistics",
}
_SCHEMES = {
    "onnx": "mmembed.encoders.onnx:open_model",
    "hf": "mmembed.encoders.huggingface:open_model",
    "sentence-transformers": "mmembed.encoders.sentences:open_model",
    "open_clip": "mmembed.encoders.clip:open_model",
}
FORMS = f"builtin, {', '.join(_NAMES)}, {', '.join(f'{scheme}:…' for scheme in _SCHEMES)}, or module:Class"
"""What a spec may be, for messages."""

_STARTS_WITH_SCHEME = re.compile(r"[A-Za-z_][\w.-]*:")

M = TypeVar("M", bound=Modality)


class Encoder(Protocol):
    """A picklable value whose weights load in `setup`, on the worker; the same rows always give the same features.

    `mmembed.testing.check_encoder` checks one.
    """

    @property
    def modality(self) -> str:
        """The name of the modality whose segments it takes."""

    @property
    def space(self) -> Space:
        """Where its features live; a change of what `encode` computes needs another version."""

    @property
    def input(self) -> Input:
        """What its segments must be; `Input()` if it takes them as they are usual."""

    def setup(self) -> None:
        """Load weights. Called before the first `encode` of each process; calling it again does nothing."""

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), space.dim), all finite.

        Args:
            batch: at least one normalized segment: uint8 (size, size, 3) sRGB; str; or float32 (samples,) mono, with
                zeros at its end that pad it to a whole window.

        Raises:
            RecordError: a segment can't be encoded; the others of the batch are then tried one by one.
        """


@dataclass(frozen=True)
class SideBySide:
    """Several encoders of one modality: their features in one row, one after the other.

    No scale is needed between them: a fit brings each coordinate to deviation 1 before it learns anything, and W
    holds the scales.
    """

    encoders: tuple[Encoder, ...]

    @property
    def modality(self) -> str:
        """That of all of them."""
        return self.encoders[0].modality

    @cached_property
    def space(self) -> Space:
        """All names and versions, and the sum of the dimensions."""
        spaces = [encoder.space for encoder in self.encoders]
        names, versions = "+".join(space.name for space in spaces), "+".join(space.version for space in spaces)
        return Space(names, versions, sum(space.dim for space in spaces))

    @property
    def input(self) -> Input:
        """What decides how segments are normalized: of each field, what the first says that says something."""
        inputs = [encoder.input for encoder in self.encoders]
        said = {name: [value for each in inputs if (value := getattr(each, name))] for name in _SHAPES}
        return Input(**{name: values[0] for name, values in said.items() if values})

    def setup(self) -> None:
        """Load the weights of all."""
        for encoder in self.encoders:
            encoder.setup()

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), space.dim)."""
        return np.concatenate([encoder.encode(batch) for encoder in self.encoders], axis=1)


_SHAPES = ("size", "fit", "sample_rate")
"""Fields of an input that modalities have too, under the same names."""


def resolve(modality: M, spec: str) -> tuple[M, Encoder]:
    """The encoder that a spec stands for, and the modality that normalizes segments for it.

    A spec is "builtin"; the name of a part of it, or of an entry point; "onnx:PATH" and its like; "module:Class" of the
    user's own; or several of these with "+" between them, whose features are put side by side.

    Where the modality leaves open how segments are normalized, the encoder decides. A class that is a dataclass with
    fields of the modality's names (`sample_rate`, `size`) gets the modality's values for them.

    Raises:
        UsageError: there is no such encoder, it is for another modality, or wants other segments than the user.
    """
    parts = [_BUILTIN[modality.name] if part == "builtin" else part for part in _parts(spec)]
    specs = _parts("+".join(parts))
    chosen = bool(getattr(modality, "fit", ""))
    made: dict[int, Encoder] = {}
    # Models first: they say what they take, and the built-in encoders take what there is.
    for place in sorted(range(len(specs)), key=lambda place: specs[place] in _NAMES):
        made[place] = _make(modality, specs[place])
        modality = _fitted(modality, made[place], specs[place], chosen)
    encoders = tuple(made[place] for place in range(len(specs)))
    return modality, encoders[0] if len(encoders) == 1 else SideBySide(encoders)


def _parts(spec: str) -> list[str]:
    """What "+" joins; that of a path, as in c++/a+b.onnx, is part of it."""
    first, *rest = spec.split("+")
    parts = [first]
    for piece in rest:
        if piece in ("builtin", *_NAMES) or _STARTS_WITH_SCHEME.match(piece) or entry_points(group=GROUP, name=piece):
            parts.append(piece)
        else:
            parts[-1] += f"+{piece}"
    return parts


def absolute(spec: str) -> str:
    """A spec whose paths are those from the root on."""
    return "+".join(map(_absolute, _parts(spec)))


def _absolute(spec: str) -> str:
    scheme, _, rest = spec.partition(":")
    if scheme not in _SCHEMES:
        return spec
    path, options = options_of(rest)
    found = {key: str(Path(options[key]).absolute()) for key in ("input", "tokenizer") if key in options}
    path = str(Path(path).absolute()) if Path(path).exists() else path  # else the name of a model
    return f"{scheme}:{path}" + "?" * bool(options) + "&".join(f"{k}={v}" for k, v in (options | found).items())


def _make(modality: Modality, spec: str) -> Encoder:
    scheme, _, rest = spec.partition(":")
    try:
        if scheme in _SCHEMES:
            made = _import(_SCHEMES[scheme])(modality.name, rest)
        else:
            kind = _named(spec)
            made = kind(**_shared_fields(kind, modality))
        encoder = cast(Encoder, made)
        _ = encoder.modality, encoder.space, encoder.input, encoder.setup, encoder.encode
    except UsageError as error:
        raise UsageError(f"{modality.name}_encoder = {spec!r}: {error}") from error
    except Exception as error:  # this runs the user's own code, which may fail in any way
        hint = "; put the folder of its module on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise UsageError(
            f"can't make the {modality.name} encoder {spec!r}: {type(error).__name__}: {error}{hint} "
            f"(known are {FORMS})"
        ) from error
    if encoder.modality != modality.name:
        raise UsageError(f"the encoder {spec!r} is for {encoder.modality}, not for {modality.name}")
    return encoder


def _named(spec: str) -> Callable[..., Any]:
    """What makes the encoder of a name, an entry point or of "module:Class"."""
    if spec in _NAMES:
        return _import(_NAMES[spec])
    if offered := list(entry_points(group=GROUP, name=spec)):
        if len({point.value for point in offered}) > 1:
            raise UsageError(f"several packages offer it: {', '.join(point.value for point in offered)}; name one")
        return cast(Callable[..., Any], offered[0].load())
    if ":" not in spec:
        hint = f"; did you mean onnx:{spec}?" if spec.endswith(".onnx") else ""
        raise LookupError(f"no encoder has this name{hint}")
    return _import(spec)


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))


def _shared_fields(kind: Any, modality: Any) -> dict[str, Any]:
    """The values that a modality has for the fields of a dataclass, but for those that it leaves open."""
    known = {item.name for item in fields(modality)}
    names = [item.name for item in fields(kind)] if is_dataclass(kind) else []
    return {name: value for name in names if name in known and (value := getattr(modality, name))}


def _fitted(modality: M, encoder: Encoder, spec: str, chosen: bool) -> M:
    """The modality that makes what an encoder takes.

    Args:
        chosen: whether the user has chosen how a picture becomes a square.
    """
    wanted = {name: value for name in _SHAPES if (value := getattr(encoder.input, name)) and hasattr(modality, name)}
    for name, value in wanted.items():
        has = getattr(modality, name)
        if has and has != value and not (name == "fit" and chosen):
            raise UsageError(
                f"the encoder {spec!r} takes {modality.name} of {name} = {value}, but it is {has}: leave "
                f"--{modality.name}-{name.replace('_', '-')} open, or use encoders that take the same"
            )
    open_ = {name: value for name, value in wanted.items() if not getattr(modality, name)}
    return cast(M, replace(cast(Any, modality), **open_))
