"""Models of Hugging Face's transformers as encoders: CLIP, SigLIP, CLAP, DINOv2, wav2vec 2.0, sentence encoders, …

Models are read from a folder, or from where `hf download` has put them; nothing is ever downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.encoders.description import describe
from mmembed.encoders.input import EXAMPLES, POOLING, Array, Input, by_length, pixel_values, pooled, unit_rows, waveform
from mmembed.encoders.loading import digest, failing, model_files, once, once_from, options_of, reason
from mmembed.errors import EncodeError, UsageError
from mmembed.types import Space

_OFFSET = ("roberta", "camembert", "mpnet", "longformer", "clap_text")
_PADDED = ("siglip", "siglip2")  # trained on texts padded to the full length, without a mask


@dataclass(frozen=True)
class TransformersModel:
    """One modality of a model. Encoders of two modalities of a joint model (CLIP) have one space, and share the model.

    Attributes:
        folder: of the model, absolute.
        weights: hash of its files.
        joint: whether features are those of the model's own joint space (`get_image_features` and its like).
        pooling: as of `pooled`, of a model that is not joint.
        normalize: whether features are brought to length 1.
    """

    modality: str
    folder: str
    weights: str
    space: Space
    input: Input
    joint: bool
    pooling: str
    normalize: bool

    def setup(self) -> None:
        """Load the model, once a process.

        Raises:
            UsageError: it can't be read, or is another than where the run began.
        """
        model_of(self.folder, self.weights)

    def encode(self, batch: Sequence[Any]) -> Array:
        """Features, float32 (len(batch), space.dim).

        Raises:
            EncodeError: a segment is not what the model takes.
        """
        features = np.empty((len(batch), self.space.dim), np.float32)
        with failing(EncodeError, f"the model {self.space.name} failed"):  # a sound shorter than its kernels, say
            for rows, feed in _FEEDS[self.modality](self, batch):
                features[rows] = _run(self, feed)
        return features


def open_model(modality: str, rest: str) -> TransformersModel:
    """The encoder of a spec "FOLDER", "NAME" of a model that `hf download` has fetched, or with "?pooling=cls".

    Raises:
        UsageError: transformers is missing, there is no such model, or it has no such modality.
    """
    name, options = options_of(rest)
    folder = find(name)
    if useless := options.keys() & {"output", "layout", "tokenizer", "standardize", "sample_rate"}:
        raise UsageError(f"hf: knows no option {sorted(useless)[0]!r}: the model's own files say it")
    weights = digest(model_files(folder))
    said = describe(folder, None, options, modality, spectrograms=True)
    loaded = model_of(str(folder), weights)
    model = TransformersModel(
        modality,
        str(folder),
        weights,
        Space(name.rstrip("/").rpartition("/")[2], digest([], weights, sorted(options.items())), 1),
        replace(said.input, sample_rate=said.input.sample_rate or (16_000 if modality == "audio" else 0)),
        hasattr(loaded, f"get_{modality}_features"),
        said.pooling or POOLING[modality],
        said.normalize,
    )
    if modality == "image" and not model.input.size:
        raise UsageError(f"{folder} has no preprocessor_config.json that says how large pictures are: add ?size=…")
    example = EXAMPLES[modality](model.input.sample_rate or model.input.size)
    try:
        ((_, feed),) = _FEEDS[modality](model, [example])
        dim = _run(model, feed).shape[1]
    except Exception as error:  # of whatever kind the model's code raises
        raise UsageError(f"{name} can't encode {modality}: {reason(error)}") from error
    return replace(model, space=replace(model.space, dim=dim))


def find(name: str) -> Path:
    """The folder of a model.

    Raises:
        UsageError: there is none, and what to do.
    """
    if Path(name).is_dir():
        return Path(name).absolute()
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise _missing() from error
    if name.count("/") != 1 or name[0] in "./~":
        raise UsageError(f"{name or 'nothing'} is no folder, and a model of the hub is named OWNER/NAME")
    cached = try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        raise UsageError(
            f"{name} is no folder, and no model that was downloaded: run `hf download {name} --local-dir FOLDER` where "
            "there is a network, and name hf:FOLDER here (it needs config.json, *.safetensors, and the files of its "
            "preprocessor and tokenizer)"
        )
    return Path(cached).parent


def model_of(folder: str, weights: str) -> Any:
    """The model of a folder, loaded once a process, on a GPU if there is one.

    Raises:
        UsageError: transformers is missing, or the model can't be read.
    """
    return once_from(folder, weights, _open)


def _open(folder: Path) -> Any:
    try:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise _missing() from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with failing(UsageError, f"can't read the model {folder}"):
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _missing() -> UsageError:
    return UsageError("models of Hugging Face need two packages: pip install transformers torch")


Feed = dict[str, Any]


def _pictures(model: TransformersModel, batch: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[slice, Feed]]:
    yield slice(None), {"pixel_values": pixel_values(batch, model.input)}


def _texts(model: TransformersModel, batch: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], Feed]]:
    config = model_of(model.folder, model.weights).config
    config = getattr(config, "text_config", config)
    tokenizer = _processor(model, "AutoTokenizer")
    positions = getattr(config, "max_position_embeddings", 0)
    if any(name in config.model_type for name in _OFFSET):  # these count positions from the padding token's on
        positions -= config.pad_token_id + 1
    limits = (model.input.max_tokens, tokenizer.model_max_length, positions)
    padding = "max_length" if config.model_type.removesuffix("_text_model") in _PADDED else False
    most = min(filter(None, limits))
    texts = tokenizer(list(batch), truncation=True, max_length=most, padding=padding)["input_ids"]
    for rows in by_length([len(ids) for ids in texts]):
        ids = np.array([texts[row] for row in rows], np.int64)
        if not ids.size:
            raise EncodeError(f"text {rows[0]} of the batch has no tokens")
        yield rows, {"input_ids": ids} if padding else {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _sounds(model: TransformersModel, batch: Sequence[Array]) -> Iterator[tuple[NDArray[np.intp], Feed]]:
    extractor = _processor(model, "AutoFeatureExtractor")
    sounds = [waveform(samples) for samples in batch]
    # Longer ones would be cut at a random place (CLAP) or at their end (Whisper, AST).
    most = getattr(extractor, "nb_max_samples", getattr(extractor, "n_samples", 0))
    if hasattr(extractor, "num_mel_bins") and hasattr(extractor, "max_length"):  # AST: frames of 10 ms
        most = extractor.max_length * model.input.sample_rate // 100
    if most and (longest := max(map(len, sounds))) > most:
        takes, has = (count / model.input.sample_rate for count in (most, longest))
        raise EncodeError(f"the model takes {takes:g} seconds, not {has:g}: use --audio-window {takes:g}")
    for rows in by_length([len(samples) for samples in sounds]):
        alike = [sounds[row] for row in rows]
        feed = dict(extractor(alike, sampling_rate=model.input.sample_rate, return_tensors="np"))
        if "is_longer" in feed:  # CLAP's extractor calls one of a batch longer, by chance, where none is
            feed["is_longer"] = np.zeros_like(feed["is_longer"])
        yield rows, feed


_FEEDS: dict[str, Callable[[TransformersModel, Sequence[Any]], Iterator[tuple[Any, Feed]]]] = {
    "image": _pictures,
    "text": _texts,
    "audio": _sounds,
}


def _processor(model: TransformersModel, kind: str) -> Any:
    """The AutoTokenizer or AutoFeatureExtractor of a model, read once a process."""
    import transformers

    def read() -> Any:
        with failing(UsageError, f"can't read {kind} of {model.folder}"):
            return getattr(transformers, kind).from_pretrained(
                model.folder, local_files_only=True, trust_remote_code=False
            )

    return once((kind, model.folder, model.weights), read)


def _run(model: TransformersModel, feed: Feed) -> Array:
    """Features (n, dim)."""
    import torch

    loaded = model_of(model.folder, model.weights)
    call = getattr(loaded, f"get_{model.modality}_features") if model.joint else loaded
    tensors = {name: torch.from_numpy(np.asarray(value)).to(loaded.device) for name, value in feed.items()}
    with torch.inference_mode():
        output = call(**tensors)
    if model.joint:
        features = pooled(getattr(output, "pooler_output", output).float().cpu().numpy(), "mean")
    else:
        features = pooled(output.last_hidden_state.float().cpu().numpy(), model.pooling)
    return unit_rows(features) if model.normalize else features
