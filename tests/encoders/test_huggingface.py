"""Against transformers itself, on models of a few random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Shared
from numpy.typing import NDArray
from tiny_models import clap, clip, dinov2, sentences, siglip, tokenizer, wav2vec2, write

from mmembed.encoders import Encoder, resolve
from mmembed.errors import EncodeError, UsageError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.testing import check_encoder
from mmembed.types import Media

MODALITIES: dict[str, Any] = {"image": Image(), "text": Text(), "audio": Audio(window=1.0)}
TEXTS = ["a red frog", "the picture of two frogs on the left", "two", "green " * 40]


def fused_clap(folder: Path) -> Path:
    return clap(folder, fused=True)


MAKERS = {
    "clip": clip,
    "siglip": siglip,
    "dinov2": dinov2,
    "bert": sentences,
    "wav2vec2": wav2vec2,
    "clap": clap,
    "fused": fused_clap,
}


@pytest.fixture(scope="session")
def models(shared: Shared) -> Path:
    return shared("models", lambda folder: [make(folder / name) for name, make in MAKERS.items()])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As on workers. Threads of processes that run beside each other wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encoder(modality: str, spec: str) -> Encoder:
    return resolve(MODALITIES[modality], spec)[1]


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth, as photographs are: resampling filters hardly differ."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    return np.stack([127 + 120 * np.sin(x + phase) * np.cos(y - phase) for phase in (0, 1, 2)], -1).astype(np.uint8)


def sounds() -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, size).astype(np.float32) for size in (48_000, 24_000, 48_000)]


@pytest.mark.parametrize(
    "name, modality",
    [
        ("clip", "image"),
        ("clip", "text"),
        ("siglip", "image"),
        ("siglip", "text"),
        ("dinov2", "image"),
        ("bert", "text"),
        ("wav2vec2", "audio"),
        ("clap", "audio"),
        ("clap", "text"),
        ("fused", "audio"),
    ],
)
def test_every_kind_keeps_its_promises(models: Path, name: str, modality: str) -> None:
    check_encoder(encoder(modality, f"hf:{models / name}"))


@pytest.mark.parametrize("name, size", [("clip", (80, 50)), ("siglip", (80, 50)), ("dinov2", (40, 70))])
def test_pictures_give_the_features_that_transformers_gives(
    models: Path, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    from PIL import Image as pillow
    from transformers import AutoModel, BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

    path = tmp_path / "photo.png"
    pillow.fromarray(photo(*size)).save(path)
    modality, ours = resolve(Image(), f"hf:{models / name}")
    decoded = modality.decode(Media(path=str(path)))
    found = ours.encode([modality.normalize(next(modality.segment(decoded))[1])])[0]
    kind = {"clip": CLIPImageProcessor, "siglip": SiglipImageProcessor, "dinov2": BitImageProcessor}[name]
    pixels = kind.from_pretrained(models / name)(pillow.open(path), return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(models / name).eval()
    with torch.inference_mode():
        if name == "dinov2":
            expected = model(pixel_values=pixels).pooler_output
        else:
            expected = model.get_image_features(pixel_values=pixels).pooler_output
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(found), expected[0], dim=0)
    assert cosine > 0.999


def test_texts_give_the_features_that_transformers_gives(models: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    for name in ("clip", "siglip", "clap"):
        tokens = AutoTokenizer.from_pretrained(models / name)
        model = AutoModel.from_pretrained(models / name).eval()
        found = encoder("text", f"hf:{models / name}").encode(TEXTS)
        how: Any = {"padding": "max_length"} if name == "siglip" else {"padding": True}
        fed = dict(tokens(TEXTS, truncation=True, max_length=16, return_tensors="pt", **how))
        fed = {key: fed[key] for key in ("input_ids", *(["attention_mask"] if name != "siglip" else []))}
        with torch.inference_mode():
            expected = model.get_text_features(**fed).pooler_output.numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_sentence_encoders_are_pooled_as_sentence_transformers_does_it(models: Path) -> None:
    ours, theirs = (encoder("text", f"{kind}:{models / 'bert'}") for kind in ("hf", "sentence-transformers"))
    check_encoder(theirs)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours.encode(TEXTS), axis=1), 1, rtol=1e-5)
    first = encoder("text", f"hf:{models / 'bert'}?pooling=cls&normalize=false")
    assert first.space != ours.space
    assert not np.allclose(first.encode(TEXTS), ours.encode(TEXTS), atol=0.1)


def test_sounds_give_the_features_that_transformers_gives(models: Path) -> None:
    from transformers import AutoModel, ClapFeatureExtractor, Wav2Vec2FeatureExtractor

    with torch.inference_mode():
        model = AutoModel.from_pretrained(models / "wav2vec2").eval()
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(models / "wav2vec2")
        expected = [
            model(**extractor(s, sampling_rate=16_000, return_tensors="pt")).last_hidden_state.mean(1)[0].numpy()
            for s in sounds()
        ]
        found = encoder("audio", f"hf:{models / 'wav2vec2'}").encode([np.pad(s, (0, 99)) for s in sounds()])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        clap_model = AutoModel.from_pretrained(models / "clap").eval()
        spectrograms = ClapFeatureExtractor.from_pretrained(models / "clap")
        expected = [
            clap_model.get_audio_features(**spectrograms(s, sampling_rate=48_000, return_tensors="pt"))
            .pooler_output[0]
            .numpy()
            for s in sounds()
        ]
        np.testing.assert_allclose(encoder("audio", f"hf:{models / 'clap'}").encode(sounds()), expected, atol=1e-4)


def test_whatever_says_how_it_is_fed_is_part_of_the_space(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "bert", tmp_path / "bert")
    first = encoder("text", f"hf:{folder}")
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    second = encoder("text", f"hf:{folder}")
    tokenizer(folder, most=4)
    third = encoder("text", f"hf:{folder}")
    assert len({found.space for found in (first, second, third)}) == 3
    with pytest.raises(UsageError, match="knows no option 'output'"):
        encoder("text", f"hf:{folder}?output=x")


def test_a_joint_model_has_one_space_and_is_loaded_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    image, text = (encoder(name, f"hf:{models / 'clip'}") for name in ("image", "text"))
    assert image.space == text.space and image.space.dim == 16
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded again"))
    for found in (image, text):
        found.setup()
    assert text.encode(["a frog"]).shape == (1, 16)


def test_modalities_are_normalized_as_the_model_wants_it(models: Path) -> None:
    assert resolve(Image(), f"hf:{models / 'clip'}")[0] == Image(size=32, fit="crop")
    assert resolve(Image(fit="letterbox"), f"hf:{models / 'clip'}")[0] == Image(size=32, fit="letterbox")
    assert resolve(Image(), f"hf:{models / 'siglip'}")[0] == Image(size=32, fit="stretch")
    assert resolve(Audio(), f"hf:{models / 'clap'}")[0] == Audio(sample_rate=48_000)
    with pytest.raises(UsageError, match="takes image of size = 32, but it is 64: leave --image-size open"):
        resolve(Image(size=64), f"hf:{models / 'clip'}")


def test_a_sound_that_the_model_would_cut_is_an_error_of_its_record(models: Path) -> None:
    with pytest.raises(EncodeError, match="takes 2 seconds, not 2.5: use --audio-window 2"):
        encoder("audio", f"hf:{models / 'clap'}").encode([np.ones(120_000, np.float32)])
    with pytest.raises(EncodeError, match="the model wav2vec2 failed"):
        encoder("audio", f"hf:{models / 'wav2vec2'}").encode([np.ones(3, np.float32)])


def test_a_model_that_was_downloaded_is_found_by_its_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    home = tmp_path / "models--somebody--clip"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots").mkdir()
    (home / "snapshots" / ("0" * 40)).symlink_to(models / "clip")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert encoder("text", "hf:somebody/clip").space == encoder("text", f"hf:{models / 'clip'}").space


def test_what_is_not_there_says_what_to_download() -> None:
    name = "openai/clip-vit-base-patch32"
    with pytest.raises(UsageError, match=f"{name} is no folder.*hf download {name} --local-dir FOLDER"):
        encoder("image", f"hf:{name}")


@pytest.mark.parametrize("name", ["/no/such/folder", "no-model", "./no/model"])
def test_what_is_no_name_of_the_hub_is_a_folder_that_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is no folder, and a model of the hub is named OWNER/NAME"):
        encoder("image", f"hf:{name}")


def test_weights_that_would_be_unpickled_are_refused(models: Path, tmp_path: Path) -> None:
    for file in (models / "clip").iterdir():
        if file.suffix != ".safetensors":
            os.symlink(file, tmp_path / file.name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no \*\.safetensors; other forms hold pickled objects"):
        encoder("text", f"hf:{tmp_path}")


@pytest.mark.parametrize(
    "name, modality, message",
    [
        ("bert", "image", "has no preprocessor_config.json that says how large pictures are"),
        ("dinov2", "text", "can't read AutoTokenizer|can't encode text"),
        ("dinov2", "audio", "can't read AutoFeatureExtractor|can't encode audio"),
        ("empty", "text", r"has no \*\.safetensors"),
    ],
)
def test_a_model_without_the_modality_is_a_usage_error(
    models: Path, tmp_path: Path, name: str, modality: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty" if name == "empty" else models / name
    with pytest.raises(UsageError, match=message) as raised:
        encoder(modality, f"hf:{folder}")
    assert "\n" not in str(raised.value)
