"""Builds with models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import ENVIRONMENT, IN_PROCESS, complaint, content, mmembed
from small_encoders import FLAGS
from tiny_models import audio_model, clip, image_model, text_model, tokenizer

from mmembed.config import Config, from_json
from mmembed.dataset import Dataset
from mmembed.search import Query, Searcher
from mmembed.tables import vectors_from_arrow
from mmembed.verify import verify

RECORDS = 40


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    image_model(folder / "image.onnx")
    text_model(folder / "text.onnx")
    tokenizer(folder)
    audio_model(folder / "audio.onnx")
    return folder


def flags(models: Path) -> tuple[str, ...]:
    return (
        *("--image-encoder", f"onnx:{models / 'image.onnx'}?output=pooled"),
        *("--text-encoder", f"onnx:{models / 'text.onnx'}+small_encoders:SmallText"),
        *("--audio-encoder", f"onnx:{models / 'audio.onnx'}?sample_rate=8000"),
        *("--unit-records", "10", "--limit", str(RECORDS), "--text-batch", "1"),
    )


def features(root: Path, modality: str) -> dict[str, list[float]]:
    tables = [table for _, table in Dataset.open(root).tables(f"features/{modality}")]
    return {
        id: feature.tolist()
        for table in tables
        for id, feature in zip(table["id"].to_pylist(), vectors_from_arrow(table["feature"]), strict=True)
    }


def test_a_build_with_models_is_the_same_with_any_workers_and_answers_from_any_folder(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    mmembed("build", manifest, one, *flags(models), "--workers", 1)
    monkeypatch.chdir(tmp_path)
    relative = [word.replace(f"{tmp_path}/", "") for word in flags(models)]
    mmembed("build", manifest, two, *relative, "--workers", 2)
    assert content(one) == content(two)
    assert verify(Dataset.open(one)) == []
    assert Dataset.open(one).config["extract"]["image_encoder"] == Dataset.open(two).config["extract"]["image_encoder"]
    spaces = Dataset.open(two).modalities("extract")
    assert {name: (space.name, space.dim) for name, space in spaces.items()} == {
        "image": ("image", 6),
        "text": ("text+small-text", 5 + 24),
        "audio": ("audio", 4),
    }
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = mmembed("query", two, "--text", "two red frogs", "--to", "image", "-k", 3, "--json").stdout
    assert len(found.splitlines()) == 3


def test_the_features_of_a_build_are_those_of_the_bare_model(manifest: Path, models: Path, tmp_path: Path) -> None:
    import onnxruntime
    from PIL import Image as pillow

    out = tmp_path / "out"
    mmembed("extract", manifest, out, *flags(models), *IN_PROCESS)
    session = onnxruntime.InferenceSession(models / "image.onnx")
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()][:RECORDS]
    found = features(out, "image")
    for row in (row for row in rows if row.get("image")):
        with pillow.open(manifest.parent / row["image"]) as picture:
            small = picture.convert("RGB").resize((24, 24), pillow.Resampling.BICUBIC, reducing_gap=2.0)
        pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[np.newaxis] / 255
        expected = session.run(["pooled"], {"pixels": pixels})[0][0]
        np.testing.assert_allclose(found[row["id"]], expected, atol=0.1)  # of 8: a JPEG is reduced by its DCT first


def test_a_changed_model_is_refused_and_overwriting_does_its_modality_alone(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mmembed("extract", manifest, out, *flags(models), *IN_PROCESS)
    before = {name: features(out, name) for name in ("image", "text", "audio")}
    image_model(models / "image.onnx", seed=1)
    said = complaint(mmembed("extract", manifest, out, *flags(models), *IN_PROCESS, expect=2))
    assert "was extracted with the image encoder image@" in said and "--overwrite" in said
    mmembed("extract", manifest, out, *flags(models), "--overwrite", *IN_PROCESS)
    after = {name: features(out, name) for name in ("image", "text", "audio")}
    assert after["text"] == before["text"] and after["audio"] == before["audio"]
    assert after["image"].keys() == before["image"].keys() and after["image"] != before["image"]


ENCODE = """
import os
from small_encoders import SmallImage, SmallText

def note(what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{os.getpid()} {what}\\n")

class Counting(SmallText):
    def setup(self):
        note("setup")
    def encode(self, batch):
        note(f"encode {len(batch)}")
        return super().encode(batch)

class Pictures(SmallImage):
    def encode(self, batch):
        note(f"pictures {len(batch)}")
        return super().encode(batch)
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "noting.py").write_text(ENCODE)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)]))
    monkeypatch.setitem(ENVIRONMENT, "NOTES", str(tmp_path / "notes"))
    return tmp_path / "notes"


def test_a_changed_encoder_of_texts_encodes_no_picture(manifest: Path, notes: Path, tmp_path: Path) -> None:
    words = ("extract", manifest, tmp_path / "out", *FLAGS, "--limit", 30, "--image-encoder", "noting:Pictures")
    mmembed(*words, *IN_PROCESS)
    assert "pictures" in notes.read_text()
    notes.unlink()
    mmembed(*words, "--text-encoder", "ngrams+small_encoders:SmallText", "--overwrite", *IN_PROCESS)
    assert not notes.exists()
    assert Dataset.open(tmp_path / "out").modalities("extract")["text"].dim == 512 + 24
    mmembed(*words, "--text-encoder", "ngrams+small_encoders:SmallText", "--image-batch", 5, "--overwrite", *IN_PROCESS)
    sizes = [int(line.split()[-1]) for line in notes.read_text().splitlines()]
    assert max(sizes) == 5


def test_the_same_picture_in_ten_records_is_encoded_once_a_unit(manifest: Path, notes: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    picture = next(row["image"] for row in lines if row.get("image"))
    rows = [{"id": f"r{n}", "image": picture, "text": f"caption {n // 10}"} for n in range(40)]
    source = tmp_path / "same"
    source.mkdir()
    (source / "images").symlink_to(manifest.parent / "images")
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (*FLAGS, "--image-encoder", "noting:Pictures", "--text-encoder", "noting:Counting", "--unit-records", 20)
    mmembed(
        "extract", source / "rows.jsonl", tmp_path / "out", *flags, "--image-batch", 4, "--text-batch", 4, *IN_PROCESS
    )
    done = [line.split()[1:] for line in notes.read_text().splitlines()]
    assert [words for words in done if words[0] == "pictures"] == [["pictures", "1"]] * 2
    assert sum(int(words[1]) for words in done if words[0] == "encode") == 4
    found = features(tmp_path / "out", "image")
    assert len(found) == 40 and len({tuple(feature) for feature in found.values()}) == 1


def test_a_model_that_was_moved_is_found_by_the_next_build(manifest: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mmembed("build", manifest, out, *flags(models), *IN_PROCESS)
    before = content(out)
    shutil.move(models, tmp_path / "moved")
    assert "can't read" in complaint(mmembed("query", out, "--text", "frog", expect=2))
    said = mmembed("build", manifest, out, *flags(tmp_path / "moved"), *IN_PROCESS).stderr
    assert "extract: up to date" in said and "evaluate: up to date" in said
    assert content(out) == before
    assert mmembed("query", out, "--text", "frog", "--to", "image").stdout


def test_a_query_loads_the_model_of_its_own_modality_alone(manifest: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mmembed("build", manifest, out, *flags(models), *IN_PROCESS)
    (models / "image.onnx").unlink()
    assert Searcher.open(out).search(Query.of(text="a frog"), "image", 3)


def test_a_data_set_that_is_extended_has_the_bytes_of_one_that_is_built_at_once(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    source = tmp_path / "growing"
    source.mkdir()
    for name in ("images", "sounds"):
        (source / name).symlink_to(manifest.parent / name)
    for count in (25, 40):
        (source / "rows.jsonl").write_text("".join(lines[:count]))
        mmembed("build", source / "rows.jsonl", tmp_path / "grown", *flags(models), *IN_PROCESS)
    mmembed("build", source / "rows.jsonl", tmp_path / "fresh", *flags(models), *IN_PROCESS)
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")


def test_a_joint_model_keeps_its_own_space(manifest: Path, tmp_path: Path) -> None:
    model, out = clip(tmp_path / "clip"), tmp_path / "out"
    encoders = ("--image-encoder", f"hf:{model}", "--text-encoder", f"hf:{model}", "--audio-encoder", FLAGS[-1])
    words = (tmp_path / "pairs" / "rows.jsonl", out, *encoders, "--limit", 30)
    spec = manifest.parent / "manifest.jsonl"
    rows = [json.loads(line) for line in spec.read_text("utf-8").splitlines()]
    source = tmp_path / "pairs"
    source.mkdir()
    (source / "images").symlink_to(manifest.parent / "images")
    pairs = [{key: row[key] for key in ("id", "image", "text")} for row in rows if row.get("image") and row.get("text")]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    mmembed("extract", *words, "--workers", 2)  # PyTorch in a worker process
    said = mmembed("build", *words, "--fit", "identity", "--holdout", 0.3, *IN_PROCESS).stderr
    assert "extract: up to date" in said
    assert "into 16 dimensions by identity" in said
    dataset = Dataset.open(out)
    assert len({space for name, space in dataset.modalities("extract").items() if name != "audio"}) == 1
    raw = features(out, "text")
    tables = [table for _, table in dataset.tables("embeddings/text")]
    for table in tables:
        for id, vector in zip(table["id"].to_pylist(), vectors_from_arrow(table["embedding"]), strict=True):
            np.testing.assert_allclose(vector, np.array(raw[id]) / np.linalg.norm(raw[id]), atol=1e-5)
    assert from_json(Config(), dict(dataset.config)).extract.image.size == 0  # it was left to the model
    assert mmembed("query", out, "--text", "frog", "--to", "image", "-k", 2, "--json").stdout.count("\n") == 2
