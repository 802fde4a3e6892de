from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mmembed.config import (
    Config,
    ExtractConfig,
    FitConfig,
    IndexConfig,
    Parts,
    ProjectConfig,
    from_file,
    from_json,
    to_json,
)
from mmembed.engine import Engine
from mmembed.errors import UsageError


def test_a_configuration_comes_back_from_json() -> None:
    changed = {"extract": {"unit_records": 7, "image": {"size": 64}}, "fit": {"holdout": 0.5}}
    config = from_json(Config(), changed)
    assert (config.extract.unit_records, config.extract.image.size, config.fit.holdout) == (7, 64, 0.5)
    assert from_json(Config(), to_json(config)) == config
    assert from_json(config, {}) == config


def test_a_file_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[extract.audio]\nwindow = 5\n[fit]\ndim = 16\ngroup_column = "family"\n')
    start = Config(project=ProjectConfig("float16"))
    config = from_file(tmp_path / "a.toml", start)
    assert config.extract.audio.window == 5.0 and type(config.extract.audio.window) is float
    assert config.fit == FitConfig(dim=16, group_column="family")
    assert config.project == start.project


@pytest.mark.parametrize(
    "content, message",
    [
        ("[fit]\ndimension = 16", r"unknown configuration key 'fit.dimension'; known here: fit, dim"),
        ("[fits]\ndim = 16", r"unknown configuration key 'fits'; known here: extract, fit, project"),
        ("[extract.image]\nsise = 16", "unknown configuration key 'extract.image.sise'"),
        ("fit = 3", "fit needs a table of keys, not 3"),
        ('[fit]\ndim = "16"', "fit.dim needs a value of type int, not '16'"),
        ("[fit]\ndim = 16.0", "fit.dim needs a value of type int"),
        ("[fit]\ndim = true", "fit.dim needs a value of type int"),
        ("[fit]\nholdout = true", "fit.holdout needs a value of type float"),
        ("[fit]\nmaps = 1", "fit.maps needs a value of type str"),
        ("[fit]\nmaps = [1]", "fit.maps needs a value of type str"),
        ("[extract.audio]\nwindow = -1", "^extract.audio: window"),
        ("[fit", "is no valid TOML"),
    ],
)
def test_a_wrong_file_is_a_usage_error_that_names_the_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(UsageError, match=message):
        from_file(tmp_path / "a.toml", Config())


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read the configuration"):
        from_file(tmp_path / "missing.toml", Config())
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is no valid TOML"):
        from_file(tmp_path / "a.toml", Config())


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (ExtractConfig, {"unit_records": 0}, "unit_records = 0: must be at least 1"),
        (FitConfig, {"dim": -1}, "dim = -1: must be at least 0"),
        (FitConfig, {"fit": "lda"}, "fit = 'lda': must be one of cca, pmi, ridge, procrustes, pls, identity"),
        (FitConfig, {"refine": "sgd"}, "refine = 'sgd': must be one of auto, none, softmax, sigmoid, triplet"),
        (FitConfig, {"fit": "identity", "refine": "softmax"}, "keeps the features as they are"),
        (FitConfig, {"lift": "yes"}, "lift = 'yes': must be auto or none"),
        (FitConfig, {"count": "all"}, "count = 'all': must be records or segments"),
        (FitConfig, {"weight": ("source:2",)}, "weight = 'source:2': must be KEY=VALUE:NUMBER"),
        (FitConfig, {"weight": ("source=web:1.2.3",)}, "must be KEY=VALUE:NUMBER"),
        (IndexConfig, {"hubness": "yes"}, "hubness = 'yes': must be none or csls"),
        (FitConfig, {"holdout": 1.0}, "holdout = 1.0: must be at least 0 and below 1"),
        (FitConfig, {"holdout": -0.1}, "holdout"),
        (FitConfig, {"holdout": float("nan")}, "holdout"),
        (ProjectConfig, {"dtype": "float64"}, "dtype = 'float64': must be float32 or float16"),
        (Engine, {"workers": 0}, "workers = 0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_gives_the_rule(kind: type, values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**values)


@pytest.mark.parametrize("kind", [ExtractConfig, FitConfig, ProjectConfig])
def test_every_flag_of_a_stage_says_what_it_is(kind: type) -> None:
    flags = [item for item in fields(kind) if not is_dataclass(item.default)]
    assert flags
    assert all(item.metadata["help"] for item in flags)


def test_each_modality_has_its_own_encoder_made_for_its_settings() -> None:
    config = from_json(ExtractConfig(), {"audio": {"sample_rate": 8000}})
    parts = Parts(config)
    assert list(parts) == ["image", "text", "audio"]
    assert all(modality.name == encoder.modality == name for name, (modality, encoder) in parts.items())
    assert parts["audio"][1].space != Parts(ExtractConfig())["audio"][1].space


@pytest.mark.parametrize("spec", ["nonsense", "no.such:Thing", "mmembed.types:Nothing", "mmembed.types:Space", ""])
def test_an_encoder_that_cannot_be_made_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match=f"can't make the text encoder '{spec}'"):
        Parts(ExtractConfig(text_encoder=spec))["text"]


def test_an_encoder_of_another_modality_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is for image, not for text"):
        Parts(ExtractConfig(text_encoder="mmembed.encoders.image:ImageStatistics"))["text"]
