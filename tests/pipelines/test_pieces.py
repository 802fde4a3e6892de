"""Sounds of which one would hold up all workers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from command import ENVIRONMENT, complaint, content, kill_group, mmembed, started, wait_for
from small_encoders import FLAGS

from mmembed.encoders.audio import AudioStatistics
from mmembed.modalities.audio import LONG, PIECE, Audio
from mmembed.pieces import LEAST_BYTES
from mmembed.tables import vectors_from_arrow
from mmembed.types import Media

RATE, SECONDS = 4_000, 2_500
COUNT = 5
WORDS = ("--audio-window", "20", "--audio-hop", "15", "--audio-sample-rate", str(RATE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long sound, one of the same kind that breaks off, and a short one with a text; all in one unit."""
    folder = tmp_path_factory.mktemp("long")
    time = np.arange(SECONDS * RATE) / RATE
    sound = 0.3 * np.sin(2 * np.pi * (300 + 200 * np.sin(time / 9)) * time) * (np.sin(time / 31) > -0.8)
    sound[: 3 * RATE] = 0
    soundfile.write(folder / "long.wav", sound, RATE, subtype="PCM_16")
    assert (folder / "long.wav").stat().st_size > LEAST_BYTES and SECONDS >= LONG > PIECE
    soundfile.write(folder / "short.wav", sound[10 * RATE : 14 * RATE], RATE, subtype="PCM_16")
    (folder / "short.txt").write_text("a short one")
    soundfile.write(folder / "whole.flac", sound, RATE, subtype="PCM_16")
    data = (folder / "whole.flac").read_bytes()
    (folder / "broken.flac").write_bytes(data[: len(data) // 2])
    (folder / "whole.flac").unlink()
    return folder


@pytest.fixture(scope="module")
def extracted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extracted") / "out"
    mmembed("extract", folder, out, *WORDS, "--workers", 2, "--max-error-rate", 1)
    return out


def test_its_segments_and_features_are_those_of_the_whole(folder: Path, extracted: Path) -> None:
    audio, encoder = Audio(window=20.0, hop=15.0, sample_rate=RATE), AudioStatistics(RATE)
    media = Media(path=str(folder / "long.wav"))
    assert audio.pieces(media) == COUNT
    whole = list(audio.segment(audio.decode(media)))
    assert len(whole) > 100
    table = pq.read_table(extracted / "features/audio/part-00000.parquet")
    table = table.filter(np.array(table["id"].to_pylist()) == "long")
    assert table["segment"].to_pylist() == list(range(len(whole)))
    assert [tuple(span) for span in table["span"].to_pylist()] == [span for span, _ in whole]
    assert set(table["content_hash"].to_pylist()) == {media.content_hash}
    features = encoder.encode([audio.normalize(samples) for _, samples in whole])
    np.testing.assert_allclose(vectors_from_arrow(table["feature"]), features, atol=1e-4)


def test_one_that_breaks_off_keeps_what_is_before_and_is_one_error(extracted: Path) -> None:
    table = pq.read_table(extracted / "features/audio/part-00000.parquet", columns=["id"])
    ids = table["id"].to_pylist()
    assert 30 < ids.count("broken") < ids.count("long") and ids.count("short") == 1
    [error] = pq.read_table(extracted / "errors/part-00000.parquet").to_pylist()
    assert (error["id"], error["stage"], error["error"]) == ("broken", "segment", "DecodeError")


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    folder: Path, extracted: Path, tmp_path: Path, workers: int
) -> None:
    mmembed("extract", folder, tmp_path, *WORDS, "--workers", workers, "--max-error-rate", 1)
    assert content(tmp_path) == content(extracted)
    assert not (tmp_path / "scratch").exists()


def test_a_killed_run_takes_over_the_pieces_that_were_done(folder: Path, extracted: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "scratch" / "pieces"
    with started("extract", folder, tmp_path, *WORDS, "--workers", 1, "--max-error-rate", 1) as process:
        wait_for(lambda: len(list(pieces.glob("*.parquet"))) >= 2, 60, "two pieces")
        kill_group(process.pid)
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in pieces.glob("*.parquet")}
    assert 2 <= len(done) < 2 * COUNT
    with started("extract", folder, tmp_path, *WORDS, "--workers", 1, "--max-error-rate", 1) as process:
        wait_for(lambda: len(list(pieces.glob("*.parquet"))) > len(done), 60, "another piece")
        assert {path: path.stat().st_mtime_ns for path in done} == done
        process.communicate(timeout=120)
    assert content(tmp_path) == content(extracted)


SLEEPING = """
import time
from small_encoders import SmallText

class Sleeping(SmallText):
    def encode(self, batch):
        if any("STUCK" in text for text in batch):
            time.sleep(3600)
        return super().encode(batch)
"""


@pytest.fixture
def sleeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)]))
    lines = [json.dumps({"id": str(n), "text": f"text {n}" if n != 7 else "STUCK"}) for n in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    words = ("extract", tmp_path / "in.jsonl", tmp_path / "out", *FLAGS, "--text-encoder", "sleeping:Sleeping")
    return (*map(str, words), "--timeout", "1.5")


def the_error(out: Path) -> str:
    [error] = pq.read_table(out / "errors/part-00000.parquet").to_pylist()
    assert (error["id"], error["stage"], error["error"]) == ("7", "encode", "CrashError")
    assert pq.read_table(out / "features/text/part-00000.parquet")["id"].to_pylist() == [
        str(n) for n in range(20) if n != 7
    ]
    return str(error["message"])


def test_a_record_that_hangs_is_an_error_and_the_run_goes_on(sleeping: tuple[str, ...], tmp_path: Path) -> None:
    result = mmembed(*sleeping)
    assert "was stuck for longer than --timeout" in the_error(tmp_path / "out")
    assert "19 segments" in result.stderr


def test_where_workers_run_elsewhere_whoever_takes_the_unit_over_knows(
    sleeping: tuple[str, ...], tmp_path: Path
) -> None:
    """As on a cluster, where a worker that ends is replaced: here by the same command once more."""
    elsewhere = ("--", "--runner=FnApiRunner")
    for _ in range(2):  # a batch, then the one of it
        result = mmembed(*sleeping, *elsewhere, expect=75)
        assert "stuck for 1.5 seconds" in complaint(result)
    mmembed(*sleeping, *elsewhere)
    assert "stuck for 1.5 seconds at the stage encode" in the_error(tmp_path / "out")
