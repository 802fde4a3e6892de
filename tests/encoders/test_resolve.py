from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoders import SmallText
from tiny_models import SIDE, audio_model, image_model, text_model, tokenizer

import mmembed.encoders
from mmembed.config import Config, from_json, with_absolute_paths
from mmembed.encoders import SideBySide, absolute, resolve
from mmembed.encoders.audio import AudioStatistics
from mmembed.encoders.image import ImageStatistics
from mmembed.encoders.input import Input
from mmembed.encoders.text import HashedNgrams, WordVectors
from mmembed.errors import UsageError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.testing import check_encoder
from mmembed.types import Space


def test_built_in_encoders_have_names_of_their_own() -> None:
    assert resolve(Image(), "builtin")[1] == resolve(Image(), "image-statistics")[1] == ImageStatistics()
    assert resolve(Text(), "builtin")[1] == resolve(Text(), "wordllama+ngrams")[1]
    assert resolve(Text(), "builtin")[1] == SideBySide((WordVectors(), HashedNgrams()))
    assert resolve(Text(), "ngrams")[1] == HashedNgrams()


def test_features_stand_side_by_side_in_the_order_of_the_spec() -> None:
    _, both = resolve(Text(), "ngrams+small_encoders:SmallText")
    texts = ["a frog", "two frogs"]
    assert both.space == Space("ngrams+small-text", "1+1", 512 + 24)
    assert np.array_equal(both.encode(texts)[:, :512], HashedNgrams().encode(texts))
    assert np.array_equal(both.encode(texts)[:, 512:], SmallText().encode(texts))
    check_encoder(both)
    assert resolve(Text(), "ngrams+builtin")[1].space.dim == 512 + 256 + 512


def test_models_decide_and_built_in_encoders_follow_in_any_order(tmp_path: Path) -> None:
    spec = f"onnx:{audio_model(tmp_path / 'net.onnx')}?sample_rate=8000"
    for order in (f"builtin+{spec}", f"{spec}+builtin"):
        modality, both = resolve(Audio(), order)
        assert modality == Audio(sample_rate=8000)
        names = ["audio-statistics-8000", "net"] if order.startswith("builtin") else ["net", "audio-statistics-8000"]
        assert both.space.name.split("+") == names


def test_two_models_that_want_other_squares_need_a_choice(tmp_path: Path) -> None:
    first, second = (image_model(tmp_path / f"{name}.onnx", seed=seed) for seed, name in enumerate("ab"))
    spec = f"onnx:{first}?fit=crop+onnx:{second}?fit=stretch"
    with pytest.raises(UsageError, match="takes image of fit = stretch, but it is crop: leave --image-fit open"):
        resolve(Image(), spec)
    assert resolve(Image(fit="letterbox"), spec)[0] == Image(size=SIDE, fit="letterbox")


@pytest.mark.parametrize("name", ["c++", "a+b", "a+b.onnx", "x+net", "x/m+n"])
def test_a_plus_in_a_path_is_part_of_it(tmp_path: Path, name: str) -> None:
    path = image_model(tmp_path / name / "m+n.onnx")
    assert resolve(Image(), f"onnx:{path}")[1].space.name == "m+n"
    _, both = resolve(Image(), f"onnx:{path}+builtin")
    assert both.space.name == "m+n+image-statistics"


def test_segments_are_made_for_the_encoder_where_the_user_leaves_it_open(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    assert resolve(Image(), f"onnx:{path}")[0] == Image(size=SIDE)
    assert resolve(Image(fit="crop"), f"onnx:{path}+builtin")[0] == Image(size=SIDE, fit="crop")
    assert resolve(Image(), f"onnx:{path}?fit=stretch")[0] == Image(size=SIDE, fit="stretch")
    assert resolve(Image(size=64), "builtin")[0] == Image(size=64)
    with pytest.raises(UsageError, match=f"takes image of size = {SIDE}, but it is 64: leave --image-size open"):
        resolve(Image(size=64), f"onnx:{path}")
    larger = image_model(tmp_path / "larger.onnx", side=32)
    with pytest.raises(UsageError, match="takes image of size = 32, but it is 24"):
        resolve(Image(), f"onnx:{path}+onnx:{larger}")


def test_what_is_put_side_by_side_wants_what_one_of_them_wants() -> None:
    assert SideBySide((Wanting(Input()), Wanting(Input(size=5, fit="crop")))).input == Input(size=5, fit="crop")
    assert SideBySide((Wanting(Input(sample_rate=8)), Wanting(Input()))).input == Input(sample_rate=8)
    assert SideBySide((Wanting(Input()),)).input == Input()


@dataclass(frozen=True)
class Wanting:
    input: Input
    modality: str = "image"
    space: Space = Space("wanting", "1", 1)

    def setup(self) -> None: ...

    def encode(self, batch: Sequence[Any]) -> Any:
        return np.ones((len(batch), 1), np.float32)


def test_a_dataclass_with_a_field_of_the_modality_gets_the_users_value() -> None:
    assert resolve(Audio(sample_rate=8000), "builtin") == (Audio(sample_rate=8000), AudioStatistics(8000))
    assert resolve(Audio(), "builtin") == (Audio(sample_rate=16_000), AudioStatistics())


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = EntryPoints(EntryPoint("net", value, "mmembed.encoders") for value in values)
    monkeypatch.setattr(mmembed.encoders, "entry_points", lambda **names: points.select(**names))


def test_packages_offer_encoders_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "small_encoders:SmallText")
    assert resolve(Text(), "net")[1] == SmallText()
    assert resolve(Text(), "net+ngrams")[1].space.dim == 24 + 512
    offer(monkeypatch, "small_encoders:SmallText", "small_encoders:SmallImage")
    with pytest.raises(UsageError, match="several packages offer it: small_encoders:SmallText, small_encoders:SmallI"):
        resolve(Text(), "net")


def test_an_entry_point_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "somebody-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mmembed.encoders]\nsomebodys = somebodys_encoder:Net\n")
    (tmp_path / "somebodys_encoder.py").write_text("from small_encoders import SmallText as Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    try:
        assert resolve(Text(), "somebodys")[1] == SmallText()
    finally:
        sys.modules.pop("somebodys_encoder", None)


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "nonsense",
            r"can't make the text encoder 'nonsense': .*no encoder has this name \(known are builtin,",
        ),
        ("ngrams+", r"can't make the text encoder 'ngrams\+'"),
        ("image-statistics", "the encoder 'image-statistics' is for image, not for text"),
        ("small_encoders:SmallImage", "is for image, not for text"),
        ("tests_nowhere:Encoder", "ModuleNotFoundError.*put the folder of its module on PYTHONPATH"),
        ("models/net.onnx", "did you mean onnx:models/net.onnx?"),
        ("test_resolve_incomplete:Encoder", "has no attribute 'input'"),
    ],
)
def test_what_cannot_be_made_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    lines = ["class Encoder:", "    modality = space = 'text'", "    def setup(self): ..."]
    (tmp_path / "test_resolve_incomplete.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=message):
        resolve(Text(), spec)


def test_paths_are_kept_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text_model(tmp_path / "m" / "net.onnx")
    tokenizer(tmp_path / "m")
    assert absolute("onnx:m/net.onnx?input=m&pooling=max+ngrams") == (
        f"onnx:{tmp_path}/m/net.onnx?input={tmp_path}/m&pooling=max+ngrams"
    )
    assert absolute("hf:m") == f"hf:{tmp_path}/m"
    assert absolute("hf:openai/clip") == "hf:openai/clip"
    assert absolute("builtin+small_encoders:SmallText") == "builtin+small_encoders:SmallText"
    config = with_absolute_paths(from_json(Config(), {"extract": {"text_encoder": "onnx:m/net.onnx"}}))
    assert config.extract.text_encoder == f"onnx:{tmp_path}/m/net.onnx"
    assert config.extract.image_encoder == "builtin"
