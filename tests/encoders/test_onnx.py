from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command import ENVIRONMENT
from numpy.typing import NDArray
from tiny_models import (
    AUDIO_DIM,
    BYTES,
    FLOAT,
    HALF,
    IMAGE_DIM,
    INTEGERS,
    RATE,
    SIDE,
    TEXT_DIM,
    WORDS,
    audio_model,
    image_model,
    save,
    text_model,
    tokenizer,
    weights,
    write,
)

from mmembed.encoders import Encoder, resolve
from mmembed.encoders import onnx as module
from mmembed.encoders.onnx import OnnxModel
from mmembed.errors import EncodeError, UsageError
from mmembed.modalities.audio import Audio
from mmembed.modalities.image import Image
from mmembed.modalities.text import Text
from mmembed.testing import check_encoder, segments

MODALITIES: dict[str, Any] = {"image": Image(), "text": Text(), "audio": Audio()}


def encoder(modality: str, spec: str) -> Encoder:
    return resolve(MODALITIES[modality], spec)[1]


def pictures(count: int = 3, side: int = SIDE) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype(np.uint8))


def convolved(values: NDArray[Any]) -> NDArray[np.float64]:
    """What `image_model` computes of (n, 3, h, w), slowly."""
    kernels = weights(IMAGE_DIM, 3, 4, 4).astype(np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(values, (4, 4), axis=(2, 3))[:, :, ::4, ::4]
    sums: NDArray[np.float64] = np.einsum("nchwij,dcij->nd", patches, kernels)
    return np.asarray(sums / (patches.shape[2] * patches.shape[3]))


def test_pictures_are_fed_as_the_json_says_and_features_are_the_models(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    said = {"modality": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "output": "pooled"}
    write(tmp_path / "net.json", said)
    found = encoder("image", f"onnx:{path}").encode(pictures())
    values = (np.stack(pictures()) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(found, convolved(values.transpose(0, 3, 1, 2)), rtol=1e-4, atol=1e-5)


def test_a_map_of_features_is_pooled(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    pooled, mean = (encoder("image", f"onnx:{path}?output={name}").encode(pictures()) for name in ("pooled", "map"))
    np.testing.assert_allclose(mean, pooled, rtol=1e-5)
    largest = encoder("image", f"onnx:{path}?output=map&pooling=max").encode(pictures())
    assert (largest > mean).all()
    unit = encoder("image", f"onnx:{path}?output=map&normalize=true").encode(pictures())
    np.testing.assert_allclose(unit, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [FLOAT, HALF, BYTES])
def test_any_layout_type_and_number_of_rows(tmp_path: Path, batch: Any, layout: str, kind: int) -> None:
    path = image_model(tmp_path / "net.onnx", batch=batch, layout=layout, kind=kind)
    found = encoder("image", f"onnx:{path}?output=pooled")
    assert found.space.dim == IMAGE_DIM and found.input.size == SIDE
    features = found.encode(pictures())
    values = np.stack(pictures()).transpose(0, 3, 1, 2).astype(np.float64)
    expected = convolved(values if kind == BYTES else values / 255)
    np.testing.assert_allclose(features, expected, rtol=2e-2 if kind == HALF else 1e-4, atol=2e-3)
    check_encoder(found)


def test_texts_are_pooled_over_their_own_tokens(tmp_path: Path) -> None:
    path = text_model(tmp_path / "net.onnx")
    tokenizer(tmp_path)
    texts = ["a red frog", "two", "the picture of two green frogs on the left"]
    table = weights(len(WORDS), TEXT_DIM)
    for how, pool in (("mean", np.mean), ("max", np.max)):
        found = encoder("text", f"onnx:{path}?pooling={how}").encode(texts)
        for text, feature in zip(texts, found, strict=True):
            words = ["[CLS]", *text.split(), "[SEP]"]
            vectors = table[[WORDS.index(word) if word in WORDS else 1 for word in words]]
            np.testing.assert_allclose(feature, pool(vectors + vectors.sum(axis=0), axis=0), rtol=1e-5)


def test_a_model_of_so_many_tokens_gets_padded_texts_and_the_same_features(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    texts = ["a frog", "two red frogs", " ".join(["frog"] * 50)]
    free = encoder("text", f"onnx:{text_model(tmp_path / 'free.onnx')}?max_tokens=8")
    fixed = encoder("text", f"onnx:{text_model(tmp_path / 'fixed.onnx', tokens=8)}")
    assert fixed.input.max_tokens == 8
    np.testing.assert_allclose(fixed.encode(texts), free.encode(texts), rtol=1e-5)


def test_long_texts_are_cut_at_the_limit(tmp_path: Path) -> None:
    path = text_model(tmp_path / "net.onnx")
    tokenizer(tmp_path, most=6)
    found = encoder("text", f"onnx:{path}")
    assert np.array_equal(found.encode(["a a a a"]), found.encode(["a a a a a a a a a"]))
    assert not np.array_equal(found.encode(["a a a"]), found.encode(["a a a a"]))


def test_sounds_are_fed_without_their_padding(tmp_path: Path) -> None:
    path = audio_model(tmp_path / "net.onnx")
    found = encoder("audio", f"onnx:{path}?sample_rate={RATE}")
    sound = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    features = found.encode([np.pad(sound, (0, 500)), sound[: RATE // 2], sound])
    assert features.shape == (3, AUDIO_DIM)
    np.testing.assert_allclose(features[0], features[2], rtol=1e-6)
    check_encoder(found)


def test_a_sound_that_the_model_cannot_take_is_an_error_of_its_record(tmp_path: Path) -> None:
    found = encoder("audio", f"onnx:{audio_model(tmp_path / 'net.onnx')}?sample_rate={RATE}")
    with pytest.raises(EncodeError, match="the model net failed"):
        found.encode([np.ones(10, np.float32)])  # shorter than the kernel
    fixed = encoder("audio", f"onnx:{audio_model(tmp_path / 'fixed.onnx', samples=RATE)}?sample_rate={RATE}")
    assert fixed.encode([np.ones(RATE // 2, np.float32)]).shape == (1, AUDIO_DIM)
    with pytest.raises(EncodeError, match=f"takes {RATE} samples, not {RATE + 1}: use shorter windows"):
        fixed.encode([np.ones(RATE + 1, np.float32)])


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_kind_keeps_its_promises(tmp_path: Path, modality: str) -> None:
    tokenizer(tmp_path)
    makers: dict[str, Callable[[Path], Path]] = {"image": image_model, "text": text_model, "audio": audio_model}
    path = makers[modality](tmp_path / "net.onnx")
    check_encoder(encoder(modality, f"onnx:{path}" + (f"?sample_rate={RATE}" if modality == "audio" else "")))


def test_a_folder_of_hugging_face_tells_how_a_model_elsewhere_is_fed(tmp_path: Path) -> None:
    path = text_model(tmp_path / "onnx" / "model.onnx")
    tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"onnx has no tokenizer\.json: put it there, or name its folder by \?input"):
        encoder("text", f"onnx:{path}")
    found = encoder("text", f"onnx:{path}?input={tmp_path}")
    assert found.input.max_tokens == 16
    own = write(tmp_path / "how.json", {"tokenizer": "tokenizer.json", "max_tokens": 5})
    assert encoder("text", f"onnx:{path}?input={own}").input.max_tokens == 5


def test_the_version_of_the_space_is_what_decides_its_features(tmp_path: Path) -> None:
    def version() -> str:
        return encoder("image", f"onnx:{path}").space.version

    path = image_model(tmp_path / "net.onnx")
    first = version()
    assert version() == first
    assert encoder("image", f"onnx:{path}?output=pooled").space.version != first
    write(tmp_path / "net.json", {"mean": [0.1, 0.1, 0.1]})
    second = version()
    image_model(path, seed=1)
    third = version()
    assert len({first, second, third}) == 3
    (tmp_path / "elsewhere").mkdir()
    for file in tmp_path.glob("net.*"):
        file.rename(tmp_path / "elsewhere" / file.name)
    path = tmp_path / "elsewhere" / "net.onnx"
    assert version() == third


def test_weights_in_a_second_file_count_too(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    model = onnx.load(path)
    options = {"save_as_external_data": True, "location": "of any name.bin", "size_threshold": 0}
    onnx.save(model, str(path), **options)
    found = encoder("image", f"onnx:{path}?output=pooled")
    features = found.encode(pictures())
    image_model(tmp_path / "other.onnx", seed=1)
    onnx.save(onnx.load(tmp_path / "other.onnx"), str(path), **options)
    changed = encoder("image", f"onnx:{path}?output=pooled")
    assert changed.space != found.space
    assert not np.allclose(changed.encode(pictures()), features)


def test_inputs_in_any_order_get_what_is_theirs(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    path = text_model(tmp_path / "net.onnx")
    expected = encoder("text", f"onnx:{path}").encode(["a red frog"])
    model = onnx.load(path)
    inputs = list(model.graph.input)[::-1]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, str(path))
    assert onnxruntime.InferenceSession(path).get_inputs()[0].name == "attention_mask"
    assert np.array_equal(encoder("text", f"onnx:{path}").encode(["a red frog"]), expected)


def test_a_width_that_depends_on_the_segment_is_an_error_of_its_record(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Abs", ["samples"], ["out"])]
    path = save(tmp_path / "net.onnx", nodes, {"samples": (FLOAT, ["n", "s"])}, {"out": ["n", "s"]}, {})
    found = encoder("audio", f"onnx:{path}?sample_rate={RATE}")
    with pytest.raises(EncodeError, match="gave 5 values, not 8000: pool its output"):
        found.encode([np.ones(5, np.float32)])


def test_a_worker_with_another_model_says_so(tmp_path: Path) -> None:
    path = image_model(tmp_path / "net.onnx")
    found = encoder("image", f"onnx:{path}")
    assert isinstance(found, OnnxModel)
    there = dataclasses.replace(found, hash="0" * 16)
    with pytest.raises(UsageError, match="is another here than where the run began: give all workers the same"):
        there.setup()


def test_a_worker_with_another_tokenizer_says_so_too(tmp_path: Path) -> None:
    path = text_model(tmp_path / "net.onnx")
    tokenizer(tmp_path)
    before = encoder("text", f"onnx:{path}")
    tokenizer(tmp_path, most=4)
    after = encoder("text", f"onnx:{path}")
    assert before.space != after.space
    long = ["a frog a frog a frog"]
    assert not np.array_equal(before.encode(long), after.encode(long))  # neither has the other's tokenizer
    program = (
        f"import pickle; encoder = pickle.loads({pickle.dumps(before)!r})\n"
        "try: encoder.setup()\n"
        "except Exception as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert "is another here than where the run began" in run.stdout


def test_the_model_is_loaded_once_a_process_with_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            loaded.append((path, options.intra_op_num_threads, options.inter_op_num_threads, providers))
            super().__init__(path, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    path = image_model(tmp_path / "net.onnx")
    first = encoder("image", f"onnx:{path}")
    for found in (first, encoder("image", f"onnx:{path}"), pickle.loads(pickle.dumps(first))):
        found.setup()
        found.setup()
        found.encode(pictures())
    assert loaded == [(str(path), 1, 1, ["CPUExecutionProvider"])]
    assert len(pickle.dumps(first)) < 1500


def test_gpus_are_used_where_they_are() -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert module.providers(available) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert module.providers(["AzureExecutionProvider", "CPUExecutionProvider"]) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "modality, name, options, message",
    [
        ("image", "missing.onnx", "", r"can't read .*missing\.onnx: No such file"),
        ("image", "broken.onnx", "", r"can't read the ONNX model .*broken\.onnx"),
        ("image", "net.onnx", "?pooling=sum", "pooling = 'sum'"),
        ("image", "net.onnx", "?output=nothing", "has no output 'nothing', but map, pooled"),
        ("image", "net.onnx", "?size=32", r"takes pictures of 24 pixels, not of 32; its input is"),
        ("image", "two.onnx", "", r"its input 'input_ids', tensor\(int64\) .*, takes no image: of what modality is it"),
        ("text", "net.onnx", "", "takes no text: of what modality"),
        ("audio", "net.onnx", "", "takes no audio: of what modality"),
        ("image", "net.onnx", "?size", "'size' of .* is no key=value"),
        ("image", "any.onnx", "", r"doesn't say how large pictures must be: add \?size="),
        ("audio", "audio.onnx", "", r"at which rate the model takes sounds: add \?sample_rate="),
        ("text", "two.onnx", "", "has an input 'pixels', which text doesn't give: export its part alone"),
        ("image", "net.onnx", "?input=no.json", r"can't read .*no\.json: No such file"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    tmp_path: Path, modality: str, name: str, options: str, message: str
) -> None:
    image_model(tmp_path / "net.onnx")
    image_model(tmp_path / "any.onnx", side="s")
    audio_model(tmp_path / "audio.onnx")
    text_model(tmp_path / "two.onnx", extra="pixels")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    tokenizer(tmp_path)
    with pytest.raises(UsageError, match=message) as raised:
        encoder(modality, f"onnx:{tmp_path / name}{options}")
    assert "\n" not in str(raised.value)


def test_inputs_of_transformers_have_their_values(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    plain = encoder("text", f"onnx:{text_model(tmp_path / 'plain.onnx')}")
    for extra in ("token_type_ids", "position_ids"):
        more = encoder("text", f"onnx:{text_model(tmp_path / f'{extra}.onnx', extra=extra)}")
        assert np.array_equal(more.encode(["a frog", "a"]), plain.encode(["a frog", "a"]))
    assert INTEGERS  # of all of them


def test_segments_that_are_tried_are_of_the_size_that_the_model_takes(tmp_path: Path) -> None:
    modality, found = resolve(Image(), f"onnx:{image_model(tmp_path / 'net.onnx')}")
    assert modality.size == SIDE
    assert {picture.shape for picture in segments("image", found.input)} == {(SIDE, SIDE, 3)}
