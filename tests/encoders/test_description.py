from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import CLIP_PICTURES, write

from mmembed.encoders.description import Description, describe
from mmembed.encoders.input import Input
from mmembed.errors import UsageError


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def kind(name: str) -> dict[str, str]:
    return {"image_processor_type": f"{name}Processor"}


HALVES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize(
    "said, size, fit, crop",
    [
        (CLIP_PICTURES, 32, "crop", 32),  # CLIP
        ({"size": 24, "do_center_crop": True, "crop_size": 24, **kind("CLIPFeature")}, 24, "crop", 24),  # CLIP before
        ({"size": square(24)}, 24, "stretch", 0),  # SigLIP, ViT
        ({"size": 24}, 24, "stretch", 0),  # ViT, as it was written before
        ({"size": {"shortest_edge": 40}, "crop_size": square(32), "do_center_crop": True}, 40, "crop", 32),  # DINOv2
        ({"size": square(40), "crop_size": square(32), "do_center_crop": True}, 40, "stretch", 32),
        ({"size": 40, "crop_size": 32, "do_center_crop": True, **kind("DeiTFeature")}, 40, "stretch", 32),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, **kind("ConvNextImage")}, 256, "crop", 224),
        ({"size": 224, "crop_pct": 0.875}, 256, "crop", 224),  # ResNet
        ({"size": {"shortest_edge": 384}, "crop_pct": None, **kind("ConvNextImage")}, 384, "stretch", 0),
    ],
)
def test_sizes_of_hugging_face_in_our_words(tmp_path: Path, said: Any, size: int, fit: str, crop: int) -> None:
    write(tmp_path / "preprocessor_config.json", {**HALVES, **said})
    input = describe(tmp_path, None, {}, "image").input
    assert (input.size, input.fit, input.crop) == (size, fit, crop)


@pytest.mark.parametrize(
    "said, mean, std",
    [
        ({}, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_rescale": False}, (0.5 / 255, 0.4 / 255, 0.3 / 255), (0.2 / 255,) * 3),
        ({"rescale_factor": 2 / 255}, (0.25, 0.2, 0.15), (0.1, 0.1, 0.1)),
    ],
)
def test_means_of_hugging_face_in_our_units(tmp_path: Path, said: Any, mean: Any, std: Any) -> None:
    write(tmp_path / "preprocessor_config.json", {"size": 8, **HALVES, **said})
    input = describe(tmp_path, None, {}, "image").input
    assert input.mean == pytest.approx(mean) and input.std == pytest.approx(std)


def test_a_processor_config_holds_the_same_one_level_deeper(tmp_path: Path) -> None:
    write(tmp_path / "processor_config.json", {"image_processor": CLIP_PICTURES, "processor_class": "CLIPProcessor"})
    assert describe(tmp_path, None, {}, "image").input.size == 32


def test_texts_have_a_tokenizer_a_limit_and_a_pooling(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", {})
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 512})
    found = describe(tmp_path, None, {}, "text")
    assert found == Description(Input(max_tokens=512), str(tmp_path / "tokenizer.json"))
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 256})
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    found = describe(tmp_path, None, {}, "text")
    assert (found.input.max_tokens, found.pooling, found.normalize) == (256, "cls", False)
    write(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Normalize"}])
    found = describe(tmp_path, None, {}, "text")
    assert found.normalize and tmp_path / "modules.json" in found.files
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken", "include_prompt": True})
    assert describe(tmp_path, None, {}, "text").pooling == "last"
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 10**30})
    (tmp_path / "sentence_bert_config.json").unlink()
    assert describe(tmp_path, None, {}, "text").input.max_tokens == 0


@pytest.mark.parametrize(
    "said, message",
    [
        ({"pooling_mode": "weightedmean"}, "1_Pooling pools by weightedmean, which is not known here: name it by sen"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "pools by mean_tokens, max_tokens"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pools by mean_sqrt_len_tokens"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path, said: Any, message: str) -> None:
    write(tmp_path / "1_Pooling" / "config.json", said)
    with pytest.raises(UsageError, match=message):
        describe(tmp_path, None, {}, "text")


def test_modules_that_are_not_known_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(UsageError, match=r"modules that are not known here \(Dense\): name it by sentence-"):
        describe(tmp_path, None, {}, "text")


@pytest.mark.parametrize("said", [{"do_resize": False}, {"do_pad": True}])
def test_a_processor_that_does_something_else_is_refused(tmp_path: Path, said: Any) -> None:
    write(tmp_path / "preprocessor_config.json", {"size": 8, **said})
    with pytest.raises(UsageError, match="does not resize, or pads: say size and fit in options"):
        describe(tmp_path, None, {}, "image")


def test_sounds_have_a_rate_and_spectrograms_are_not_made(tmp_path: Path) -> None:
    said: dict[str, Any] = {"sampling_rate": 8000, "do_normalize": True, "feature_size": 1}
    write(tmp_path / "preprocessor_config.json", said)
    assert describe(tmp_path, None, {}, "audio").input == Input(sample_rate=8000, standardize=True)
    said = {**said, "feature_size": 64, "feature_extractor_type": "ClapExtractor"}
    write(tmp_path / "preprocessor_config.json", said)
    with pytest.raises(UsageError, match="ClapExtractor makes spectrograms.*export a model that takes samples"):
        describe(tmp_path, None, {}, "audio")
    assert describe(tmp_path, None, {}, "audio", spectrograms=True).input.sample_rate == 8000


def test_our_own_json_overrides_hugging_face_and_options_override_both(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", CLIP_PICTURES)
    said = {"modality": "image", "size": 40, "crop": 0, "fit": "letterbox", "normalize": True}
    own = write(tmp_path / "net.json", said)
    options = {"fit": "stretch", "output": "x", "std": "0.5,0.5,0.25", "normalize": "false"}
    found = describe(tmp_path, own, options, "image")
    assert found.input == Input(40, "stretch", mean=(0.48, 0.45, 0.4), std=(0.5, 0.5, 0.25))
    assert (found.output, found.normalize) == ("x", False)
    assert list(found.files) == [tmp_path / "preprocessor_config.json", own]


def test_a_tokenizer_is_found_beside_the_json_that_names_it(tmp_path: Path) -> None:
    own = write(tmp_path / "a" / "net.json", {"tokenizer": "../words.json"})
    assert describe(tmp_path, own, {}, "text").tokenizer == str(tmp_path / "words.json")


@pytest.mark.parametrize(
    "said, options, message",
    [
        ({"sise": 8}, {}, "unknown key 'sise'; known are size, fit"),
        ({"size": "big"}, {}, "size = 'big': must be of type int"),
        ({"size": 8.5}, {}, "size = 8.5: must be of type int"),
        ({"mean": "0,0,x"}, {}, "mean = '0,0,x': must be of type three numbers"),
        ({}, {"normalize": "perhaps"}, "normalize = 'perhaps': must be of type bool"),
        ({"pooling": "sum"}, {}, "pooling = 'sum': must be one of mean, cls, max, last"),
        ({"modality": "text"}, {}, "is of a model of text, not of image"),
        ([], {}, "holds no JSON object"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, said: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        describe(tmp_path, write(tmp_path / "net.json", said), options, "image")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"can't read .*net\.json: No such file"):
        describe(tmp_path, tmp_path / "net.json", {}, "image")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"preprocessor_config\.json is no valid JSON"):
        describe(tmp_path, None, {}, "image")


def test_pictures_that_are_not_square_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", {"size": {"height": 8, "width": 9}})
    with pytest.raises(UsageError, match="only square pictures are known"):
        describe(tmp_path, None, {}, "image")
