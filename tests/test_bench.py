from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command import COLD, mmembed
from numpy.typing import NDArray
from small_encoders import FLAGS, SmallText

from mmembed import bench as module
from mmembed.bench import SEGMENTS, SIZES, bench, check, normalized_segments
from mmembed.config import ExtractConfig, Parts
from mmembed.errors import UsageError
from mmembed.inputs import open_source

SMALL = ExtractConfig(
    image_encoder="small_encoders:SmallImage",
    text_encoder="small_encoders:SmallText",
    audio_encoder="small_encoders:SmallAudio",
)


def test_every_encoder_is_measured_at_every_size() -> None:
    rows = list(bench("", SMALL))
    assert [row["modality"] for row in rows] == ["image", "text", "audio"]
    for row in rows:
        assert list(row["per_second"]) == list(SIZES) and row["segments"] == SEGMENTS
        assert all(speed > 0 for speed in row["per_second"].values())
        assert row["batch"] in SIZES


class Slow(SmallText):
    """A call costs as much as four texts."""

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        end = time.process_time() + 0.001 * (4 + len(batch))
        while time.process_time() < end:
            pass
        return super().encode(batch)


def test_the_smallest_batch_that_is_fast_enough_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module._measured(Slow(), ["a", "b"] * 64)
    speeds = found["per_second"]
    assert speeds[1] < speeds[8] < speeds[128]
    assert found["batch"] >= 32
    monkeypatch.setattr(module, "SECONDS", 0.001)
    assert module._measured(Slow(), ["a", "b"] * 64)["per_second"][1] == pytest.approx(200, rel=0.5)


def test_segments_of_an_input_are_those_that_a_build_encodes(manifest: Path) -> None:
    modalities = {name: modality for name, (modality, _) in Parts(SMALL).items()}
    found = normalized_segments(open_source(str(manifest), SMALL.choice), SMALL.unit_records, modalities)
    assert {name: len(some) for name, some in found.items()} == {"image": SEGMENTS, "text": SEGMENTS, "audio": SEGMENTS}
    assert all(picture.shape == (128, 128, 3) for picture in found["image"])
    assert all(isinstance(text, str) for text in found["text"])
    with pytest.raises(UsageError, match="nowhere"):
        list(bench("nowhere.jsonl", SMALL))


def test_the_command_prints_a_table_and_what_to_choose(manifest: Path) -> None:
    said = mmembed("encoders", "bench", manifest, *FLAGS).stdout
    assert "image: small-image@1[27], 128 segments, one core" in said
    assert said.count("-batch ") == 3 and "--text-batch" in said
    rows = [json.loads(line) for line in mmembed("encoders", "bench", *FLAGS, "--json").stdout.splitlines()]
    assert {row["encoder"] for row in rows} == {"small-image@1[27]", "small-text@1[24]", "small-audio@1[20]"}


def test_checks_name_the_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(found.fault, found.modality) for found in check(SMALL)] == [("", "image"), ("", "text"), ("", "audio")]
    found = {each.modality: each for each in check(ExtractConfig(text_encoder="test_testing:Constant"))}
    assert "all have the same feature" in found["text"].fault
    assert not found["image"].fault and found["image"].exact


def test_the_command_ends_with_1_where_an_encoder_is_wrong() -> None:
    assert mmembed("encoders", "check", *FLAGS, python=COLD).stdout.count(": ok") == 3
    result = mmembed("encoders", "check", *FLAGS, "--text-encoder", "test_testing:Constant", expect=1)
    assert "text: base@1[2]: 6 different segments all have the same feature" in result.stdout
    result = mmembed("encoders", "check", "--image-encoder", "onnx:nowhere.onnx", expect=2)
    assert "can't read" in result.stderr and result.stderr.count("\n") == 1


def test_parts_are_made_when_they_are_asked_for() -> None:
    parts = Parts(ExtractConfig(image_encoder="no.such:Thing"))
    assert parts["text"] is parts["text"]
    assert list(parts) == ["image", "text", "audio"] and len(parts) == 3
    with pytest.raises(UsageError, match="no.such:Thing"):
        _ = parts["image"]
