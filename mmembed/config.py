"""The configuration: one dataclass a stage, whose fields are the command line's flags and a file's keys."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mmembed.encoders import FORMS, Encoder, absolute, resolve
from mmembed.errors import UsageError
from mmembed.fetch import Fetcher
from mmembed.files import is_url
from mmembed.inputs import Choice
from mmembed.modalities import Modality, option
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.privacy import Privacy
from mmembed.redaction import HOW, Redactor
from mmembed.secret import Secret

T = TypeVar("T")


def _require(condition: bool, name: str, value: Any, rule: str) -> None:
    if not condition:
        raise UsageError(f"{name} = {value!r}: must be {rule}")


_BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}


def _amount(name: str, value: str, units: Mapping[str, float], rule: str) -> float:
    """A number with a unit as a number of the smallest thing counted; 0 for nothing."""
    if not value:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", value.strip())
    _require(found is not None and found[2].upper() in units and float(found[1]) > 0, name, value, rule)
    assert found is not None
    return float(found[1]) * units[found[2].upper()]


def size_of(name: str, value: str) -> int:
    """Bytes of a size such as "2GB"; 0 of "".

    Raises:
        UsageError: it is no size.
    """
    return int(_amount(name, value, _BYTES, "a size such as 500MB, 2GB or 2GiB"))


_ENCODER = f"{FORMS}; A+B: both side by side"
_BATCH = "segments that are encoded at once, at most: `mmembed encoders bench` measures what is fast"


@dataclass(frozen=True)
class ExtractConfig:
    """How raw records become features."""

    unit_records: int = option(256, "records of one unit of work, and rows of one file")
    id_column: str = option("", "the key of the id (default: id; of folders and archives, the name)")
    image_column: tuple[str, ...] = option((), "a key of pictures (default: image); repeatable")
    text_column: tuple[str, ...] = option((), "a key of texts (default: text); repeatable, for several captions")
    audio_column: tuple[str, ...] = option((), "a key of sounds (default: audio); repeatable")
    limit: int = option(0, "only the first so many records of the input; 0: all")
    sample: float = option(1.0, "only this share of the records, chosen by a hash of their ids")
    dedup: str = option("none", "leave out records that are copies of earlier ones: exact, near or none")
    max_error_rate: float = option(0.05, "above this share of records with an error, the exit code is 3")
    allow_outside: bool = option(False, "media paths of a manifest may leave its folder")
    allow_private_hosts: bool = option(False, "media URLs may name hosts of private networks and this machine")
    fetch_timeout: float = option(30.0, "seconds for one media URL")
    fetch_megabytes: int = option(100, "the largest body of a media URL")
    timeout: float = option(900.0, "seconds that a medium or a batch of segments may take at a step; 0: any time")
    secret: str = option("", "a file with the secret of pseudonyms and noise; else the value of MMEMBED_SECRET")
    require: str = option(
        "", "an SQL condition: records that don't fulfil it are kept out, such as \"licence = 'cc0'\""
    )
    pseudonymize_ids: bool = option(False, "HMAC-SHA-256 in the place of ids, with the secret as its key")
    redact: str = option(
        "none",
        "e-mail addresses, phones, cards, keys, … in texts, metadata and names: tags or pseudonyms stand for them",
    )
    encrypt: bool = option(False, "encrypt all files, with the key of --encryption-key")
    image: Image = Image()
    text: Text = Text()
    audio: Audio = Audio()
    image_encoder: str = option("builtin", _ENCODER)
    text_encoder: str = option("builtin", _ENCODER)
    audio_encoder: str = option("builtin", _ENCODER)
    image_batch: int = option(8, _BATCH)
    text_batch: int = option(64, _BATCH)
    audio_batch: int = option(16, _BATCH)

    def __post_init__(self) -> None:
        for modality, size in self.batches.items():
            _require(1 <= size <= 1024, f"{modality}_batch", size, "1 to 1024")
        _require(self.unit_records >= 1, "unit_records", self.unit_records, "at least 1")
        _require(self.limit >= 0, "limit", self.limit, "at least 0")
        _require(0 < self.sample <= 1, "sample", self.sample, "above 0, and at most 1")
        _require(self.redact in HOW, "redact", self.redact, ", ".join(HOW))
        _require(self.dedup in ("exact", "near", "none"), "dedup", self.dedup, "exact, near or none")
        _require(0 <= self.max_error_rate <= 1, "max_error_rate", self.max_error_rate, "0 to 1")
        _require(self.fetch_timeout > 0, "fetch_timeout", self.fetch_timeout, "above 0 seconds")
        _require(0 <= self.timeout < 1e7, "timeout", self.timeout, "seconds from 0 (any time) on")
        _require(self.fetch_megabytes >= 1, "fetch_megabytes", self.fetch_megabytes, "at least 1")

    @property
    def batches(self) -> dict[str, int]:
        """By modality, the most segments that are encoded at once."""
        return {"image": self.image_batch, "text": self.text_batch, "audio": self.audio_batch}

    @property
    def choice(self) -> Choice:
        """What of the input is read."""
        media = {"image": self.image_column, "text": self.text_column, "audio": self.audio_column}
        return Choice(
            self.id_column, media, self.allow_outside, self.limit, self.sample, self.privacy, self.image.blur_boxes
        )

    @property
    def fetcher(self) -> Fetcher:
        """Of media behind web addresses."""
        return Fetcher(self.fetch_timeout, self.fetch_megabytes, self.allow_private_hosts)

    @property
    def privacy(self) -> Privacy:
        """What of records may go out."""
        secret = Secret(self.secret)
        redactor = Redactor(self.redact, secret) if self.redact != "none" else None
        return Privacy(self.require, secret if self.pseudonymize_ids else None, redactor, self.text, self.fetcher)


METHODS = ("cca", "pmi", "ridge", "procrustes", "pls", "identity")
REFINEMENTS = ("auto", "none", "softmax", "sigmoid", "triplet")
HUBNESS = ("none", "csls")


@dataclass(frozen=True)
class FitConfig:
    """How features become maps."""

    fit: str = option("cca", "how maps are learned: cca, pmi, ridge, procrustes, pls; identity keeps the features")
    dim: int = option(0, "dimension of the shared space, at most; 0: as many as pay off on records not fitted")
    refine: str = option("auto", "gradient descent after it: softmax, sigmoid, triplet, none; auto: if it helps")
    lift: str = option("auto", "random Fourier features beside the encoder's: auto (if they help) or none")
    holdout: float = option(0.1, "share of the records that is never fitted and serves the evaluation")
    group_column: str = option("", "a key of the records; equal values stay on one side of the split")
    group_media: bool = option(True, "records that share a medium, byte for byte, stay on one side of the split")
    weight: tuple[str, ...] = option((), "KEY=VALUE:NUMBER, what records with that value weigh (else 1); repeatable")
    count: str = option("records", "what counts once in the fit: records, or segments")
    maps: str = option("", "use the maps of this other data set instead of fitting")

    def __post_init__(self) -> None:
        _require(self.fit in METHODS, "fit", self.fit, f"one of {', '.join(METHODS)}")
        _require(self.dim >= 0, "dim", self.dim, "at least 0")
        _require(self.refine in REFINEMENTS, "refine", self.refine, f"one of {', '.join(REFINEMENTS)}")
        _require(self.lift in ("auto", "none"), "lift", self.lift, "auto or none")
        _require(0 <= self.holdout < 1, "holdout", self.holdout, "at least 0 and below 1")
        _require(self.count in ("records", "segments"), "count", self.count, "records or segments")
        _ = self.weights
        if self.fit == "identity" and self.refine not in ("auto", "none"):
            raise UsageError(f"refine = {self.refine!r}: fit = 'identity' keeps the features as they are")

    @property
    def weights(self) -> dict[tuple[str, str], float]:
        """What a record weighs by key and value.

        Raises:
            UsageError: one is not of the form KEY=VALUE:NUMBER, or below 0.
        """
        found = {}
        for rule in self.weight:
            match = re.fullmatch(r"([^=]+)=(.*):([0-9.]+)", rule)
            _require(match is not None, "weight", rule, "KEY=VALUE:NUMBER, such as source=web:0.2")
            assert match is not None
            try:
                found[match[1], match[2]] = float(match[3])
            except ValueError:
                _require(False, "weight", rule, "KEY=VALUE:NUMBER, such as source=web:0.2")
        return found


@dataclass(frozen=True)
class ProjectConfig:
    """How embeddings are stored."""

    dtype: str = option("float32", "float32, or float16 for half the bytes")
    noise: float = option(
        0.0, "length of the noise that embeddings get, made from the secret; `mmembed audit` has trials"
    )

    def __post_init__(self) -> None:
        _require(0 <= self.noise < 100, "noise", self.noise, "from 0 (none) on")
        _require(self.dtype in ("float32", "float16"), "dtype", self.dtype, "float32 or float16")


@dataclass(frozen=True)
class IndexConfig:
    """How embeddings are searched."""

    hubness: str = option(
        "none", "csls lowers candidates that are near to everything; the evaluation says what it does"
    )
    recall: float = option(0.95, "recall@10 against exact search that queries of other modalities must have")
    memory: str = option("", "what all indexes together may take, such as 2GB; empty: no limit")
    latency: str = option("", "what a query may take on one core, such as 5ms; empty: some 2ms, if it can be had")

    def __post_init__(self) -> None:
        _require(self.hubness in HUBNESS, "hubness", self.hubness, " or ".join(HUBNESS))
        _require(0 < self.recall <= 1, "recall", self.recall, "above 0, and at most 1")
        _ = self.memory_bytes, self.milliseconds

    @property
    def memory_bytes(self) -> int:
        """Bytes that all indexes together may take, 0 for no limit."""
        return size_of("memory", self.memory)

    @property
    def milliseconds(self) -> float:
        """What a query may take on one core, 0 for no limit."""
        return _amount("latency", self.latency, _MILLISECONDS, "a time such as 500us, 5ms or 0.1s")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured."""

    label_column: str = option(
        "", "a key of the records whose value is a class: zero-shot classification, mAP by class"
    )


@dataclass(frozen=True)
class Config:
    """All stages' configurations."""

    extract: ExtractConfig = ExtractConfig()
    fit: FitConfig = FitConfig()
    project: ProjectConfig = ProjectConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


class Parts(Mapping[str, tuple[Modality, Encoder]]):
    """By name, how each modality is cut and normalized, and what encodes it; made when it is asked for, so that a query
    by text loads no model of pictures. What is asked for raises UsageError where it can't be made."""

    def __init__(self, config: ExtractConfig) -> None:
        self._open: dict[str, Modality] = {item.name: item for item in (config.image, config.text, config.audio)}
        self._specs = {name: getattr(config, f"{name}_encoder") for name in self._open}
        self._made: dict[str, tuple[Modality, Encoder]] = {}

    def __getitem__(self, name: str) -> tuple[Modality, Encoder]:
        if name not in self._made:
            self._made[name] = resolve(self._open[name], self._specs[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


def with_absolute_paths(config: Config) -> Config:
    """With the paths of models and of the secret from the root on, so that a data set can be asked from any folder."""
    found = config.extract
    image, text, audio = map(absolute, (found.image_encoder, found.text_encoder, found.audio_encoder))
    secret = found.secret if is_url(found.secret) or not found.secret else str(Path(found.secret).absolute())
    extract = replace(found, image_encoder=image, text_encoder=text, audio_encoder=audio, secret=secret)
    return replace(config, extract=extract)


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def from_json(default: T, values: dict[str, Any], where: str = "") -> T:
    """A configuration with some fields replaced; nested dataclasses by nested dictionaries.

    Raises:
        UsageError: a key is unknown, or a value has the wrong type or is out of range.
    """
    known = {item.name: getattr(default, item.name) for item in fields(default)}  # type: ignore[arg-type]
    changes = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in known:
            raise UsageError(f"unknown configuration key {name!r}; known here: {', '.join(known)}")
        if is_dataclass(known[key]):
            if not isinstance(value, dict):
                raise UsageError(f"{name} needs a table of keys, not {value!r}")
            changes[key] = from_json(known[key], value, f"{name}.")
        elif isinstance(known[key], tuple) and isinstance(value, list | tuple):
            changes[key] = tuple(_require_string(item, name) for item in value)
        elif type(value) is type(known[key]) or (isinstance(known[key], float) and type(value) is int):
            changes[key] = type(known[key])(value)
        else:
            raise UsageError(f"{name} needs a value of type {type(known[key]).__name__}, not {value!r}")
    try:
        return replace(default, **changes)  # type: ignore[type-var]
    except UsageError as error:  # which names the field, not where it stands
        raise UsageError(f"{where[:-1]}: {error}" if where else str(error)) from error


def _require_string(value: Any, name: str) -> str:
    _require(isinstance(value, str) and bool(value), name, value, "a list of strings that are not empty")
    return str(value)


def from_file(path: Path, default: Config) -> Config:
    """A configuration with the fields that a TOML file gives replaced: tables [extract], [extract.image], [fit], …

    Raises:
        UsageError: the file can't be read, is no TOML, or has an unknown key or a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"can't read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no valid TOML: {error}") from error
    return from_json(default, values)
