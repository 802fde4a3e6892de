"""Encoders that are models of sentence-transformers, if that package is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmembed.encoders.huggingface import find
from mmembed.encoders.input import Array, Input, by_length
from mmembed.encoders.loading import digest, failing, model_files, once_from, options_of
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space


@dataclass(frozen=True)
class SentenceModel:
    """A model of texts, with whatever modules it has (pooling, dense layers, normalization).

    Attributes:
        folder: of the model, absolute.
        weights: hash of its files.
    """

    folder: str
    weights: str
    space: Space
    modality: str = "text"
    input: Input = Input()

    def setup(self) -> None:
        """Load the model, once a process.

        Raises:
            UsageError: it can't be read, or is another than where the run began.
        """
        _model(self.folder, self.weights)

    def encode(self, batch: Sequence[str]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: a text can't be encoded.
        """
        model = _model(self.folder, self.weights)
        features = np.empty((len(batch), self.space.dim), np.float32)
        with failing(EncodeError, f"the model {self.space.name} failed"):
            # Equally long texts together: then nothing is padded, and no text depends on its neighbours.
            tokens = model.tokenize(list(batch))
            mask = tokens.get("attention_mask")  # static embeddings have none, and no neighbours either
            for rows in [range(len(batch))] if mask is None else by_length(mask.sum(dim=1).tolist()):
                texts = [batch[row] for row in rows]
                features[rows] = model.encode(texts, batch_size=len(texts), show_progress_bar=False)
        return features


def open_model(modality: str, rest: str) -> SentenceModel:
    """The encoder of a spec "FOLDER", or "NAME" of a model that `hf download` has fetched.

    Raises:
        UsageError: sentence-transformers is missing, or there is no such model.
    """
    name, options = options_of(rest)
    if modality != "text" or options:
        raise UsageError("sentence-transformers: encodes text, and takes no options")
    folder = find(name)
    weights = digest(model_files(folder))
    dim = len(_model(str(folder), weights).encode("a picture"))
    found = SentenceModel(str(folder), weights, Space(name.rstrip("/").rpartition("/")[2], weights, dim))
    try:
        found.encode(["a picture"])
    except EncodeError as error:
        raise UsageError(f"{name} can't encode text: {error}") from error
    return found


def _model(folder: str, weights: str) -> Any:
    return once_from(folder, weights, _open)


def _open(folder: Path) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError("it needs sentence-transformers: pip install sentence-transformers") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = {"use_safetensors": True, "dtype": "float32"}
    with failing(UsageError, f"can't read the model {folder}"):
        return SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False, model_kwargs=options)
