"""Encoders that are models of open_clip, if that package is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmembed.encoders.input import EXAMPLES, Array, Input, pixel_values
from mmembed.encoders.loading import digest, failing, model_files, once_from, options_of
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space

_FITS = {"shortest": "crop", "longest": "letterbox", "squash": "stretch"}


@dataclass(frozen=True)
class ClipModel:
    """Pictures or texts of a model, in its joint space.

    Attributes:
        folder: of the model, absolute.
        weights: hash of its files.
    """

    modality: str
    folder: str
    weights: str
    space: Space
    input: Input

    def setup(self) -> None:
        """Load the model, once a process.

        Raises:
            UsageError: it can't be read, or is another than where the run began.
        """
        _model(self.folder, self.weights)

    def encode(self, batch: Sequence[Any]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: the model fails on them.
        """
        import torch

        model, tokenizer = _model(self.folder, self.weights)
        device = next(model.parameters()).device
        with failing(EncodeError, f"the model {self.space.name} failed"), torch.inference_mode():
            if self.modality == "image":
                found = model.encode_image(torch.from_numpy(pixel_values(batch, self.input)).to(device))
            else:
                found = model.encode_text(tokenizer(list(batch)).to(device))  # each padded to the context's length
        return np.ascontiguousarray(found.float().cpu().numpy())


def open_model(modality: str, rest: str) -> ClipModel:
    """The encoder of a spec "FOLDER", as open_clip saves models for the hub: open_clip_config.json and
    open_clip_model.safetensors.

    Raises:
        UsageError: open_clip is missing, there is no such folder, or the modality is audio.
    """
    name, options = options_of(rest)
    if modality not in ("image", "text") or options:
        raise UsageError("open_clip: encodes image and text, and takes no options")
    folder = Path(name).absolute()
    if not folder.is_dir():
        raise UsageError(f"{name} is no folder; it must hold open_clip_config.json and open_clip_model.safetensors")
    weights = digest(model_files(folder))
    said = _model(str(folder), weights)[0].visual.preprocess_cfg
    sides = said["size"] if isinstance(said["size"], tuple | list) else (said["size"],) * 2
    if sides[0] != sides[1]:
        raise UsageError(f"{folder} takes pictures of {sides} pixels: only square ones are known")
    input = Input(size=sides[0], fit=_FITS[said["resize_mode"]], mean=tuple(said["mean"]), std=tuple(said["std"]))
    found = ClipModel(modality, str(folder), weights, Space(folder.name, weights, 1), input)
    dim = found.encode([EXAMPLES[modality](input.size)]).shape[1]
    return replace(found, space=replace(found.space, dim=dim))


def _model(folder: str, weights: str) -> tuple[Any, Any]:
    return once_from(folder, weights, _open)


def _open(folder: Path) -> tuple[Any, Any]:
    try:
        import open_clip
        import torch
    except ImportError as error:
        raise UsageError("it needs open_clip: pip install open_clip_torch") from error
    with failing(UsageError, f"can't read the model {folder}"):
        model = open_clip.create_model(f"local-dir:{folder}", device="cuda" if torch.cuda.is_available() else "cpu")
        return model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")
