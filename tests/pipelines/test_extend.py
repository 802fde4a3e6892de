"""What is there is kept: runs that are killed anywhere, inputs that grow and change, errors that are mended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from command import ENVIRONMENT, IN_PROCESS, complaint, content, kill_group, members, mmembed, started, times, wait_for
from conftest import UNIT
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.verify import verify

Rows = list[dict[str, Any]]


class Input:
    """A manifest with media of its own, which a test may change."""

    def __init__(self, folder: Path, rows: Rows, media: Path) -> None:
        self.folder, self.out = folder, folder.parent / "out"
        self.rows = [dict(row) for row in rows]  # which other tests look at too
        for row in rows:
            for key in ("image", "audio"):
                if row.get(key):
                    (folder / row[key]).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(media / row[key], folder / row[key])
        self.write()

    def write(self) -> None:
        (self.folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")

    @property
    def words(self) -> tuple[object, ...]:
        return ("build", self.folder / "manifest.jsonl", self.out, "--unit-records", UNIT, *FLAGS)

    def build(self, *flags: object, expect: int = 0) -> str:
        return mmembed(*self.words, *flags, *IN_PROCESS, expect=expect).stderr

    def fresh(self, *flags: object) -> dict[str, bytes]:
        """The content of a data set that is made at once from what the input is now."""
        out = self.folder.parent / "fresh"
        shutil.rmtree(out, ignore_errors=True)
        words = ("build", self.folder / "manifest.jsonl", out, "--unit-records", UNIT, *FLAGS)
        mmembed(*words, "--max-error-rate", 1, *flags, *IN_PROCESS)
        return content(out)

    def summary(self) -> dict[str, Any]:
        return dict(Dataset.open(self.out).stage("extract").summary)


@pytest.fixture
def input(manifest: Path, rows: Rows, tmp_path: Path) -> Input:
    """The first 60 records of the sample."""
    return Input(tmp_path / "input", rows[:60], manifest.parent)


def counted(summary: dict[str, Any]) -> None:
    """Everything that went in came out somewhere."""
    for name, count in summary["media"].items():
        outcomes = ("used", "filtered", "duplicates", "failed")
        assert count == sum(summary[what][name] for what in outcomes), (name, summary)


def kill_at_random(words: tuple[object, ...], rng: random.Random, seconds: float) -> bool:
    """Start a build and kill all of it, its parent or a worker within some seconds; whether it ended before."""
    with started(*words, "--workers", 2) as process:
        end = time.monotonic() + rng.uniform(0.05, 1) * seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0
            return True
        workers = [pid for pid, line in members(process.pid).items() if "mmembed.worker:" in line]
        victim = rng.choice(["all", "parent", "worker"])
        if victim == "worker" and workers:
            try:
                os.kill(rng.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                return False
            process.wait(timeout=30)  # it says so and ends, or was past needing that worker
            return process.returncode == 0
        if victim == "parent":
            os.kill(process.pid, signal.SIGKILL)
        else:
            kill_group(process.pid)
        process.wait()
        wait_for(lambda: not members(process.pid), 10, "the end of the killed processes")
    return False


def seconds_of(input: Input) -> float:
    """What the same build takes on this machine when nobody kills it."""
    out = input.folder.parent / "undisturbed"
    if input.out.exists():
        shutil.copytree(input.out, out)
    start = time.monotonic()
    mmembed(*(out if word == input.out else word for word in input.words), "--max-error-rate", 1, "--workers", 2)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def undisturbed() -> dict[bool, float]:
    """What builds take when nobody kills them: such as extend a data set, and such as don't."""
    return {}


@pytest.mark.parametrize("seed", range(3))
def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(
    input: Input, rows: Rows, undisturbed: dict[bool, float], seed: int
) -> None:
    rng = random.Random(seed)
    words = (*input.words, "--max-error-rate", 1)
    if seed:  # killed while an earlier data set is extended
        whole = input.rows
        input.rows = whole[:20] + whole[30:]
        input.write()
        input.build()
        input.rows = [whole[40], *whole[:40], *whole[41:]]
        input.write()
        picture = input.folder / next(row["image"] for row in whole if row.get("image"))
        shutil.copy(input.folder / next(row["image"] for row in reversed(whole) if row.get("image")), picture)
    extends, kills = bool(seed), 0
    if extends not in undisturbed:
        undisturbed[extends] = seconds_of(input)
    # The first two come before any machine can be done, the others anywhere in what is left.
    while not kill_at_random(words, rng, undisturbed[extends] * (0.4 if kills < 2 else 1)) and kills < 12:
        kills += 1
    mmembed(*words, "--workers", 2)
    assert kills >= 2
    assert content(input.out) == input.fresh()
    assert verify(Dataset.open(input.out)) == []
    assert not (input.out / "scratch").exists()
    counted(input.summary())


def test_appended_records_alone_are_decoded_and_encoded(input: Input, rows: Rows, manifest: Path) -> None:
    input.build()
    before = times(input.out, "features")
    for key in ("images", "sounds"):  # what is not needed again is not even read
        (input.folder / key).chmod(0o700)
    more = Input(input.folder, rows[60:70], manifest.parent)
    input.rows += more.rows
    input.write()
    taken = [row for row in input.rows[48:60] if row.get("image")]
    for row in taken:
        os.chmod(input.folder / row["image"], 0)  # root may still read it, but its stamp is the same: nobody does
    said = input.build()
    assert "(10 added, 0 changed, 0 removed)" in said
    assert content(input.out) == input.fresh()
    kept = {path: time for path, time in before.items() if path.endswith((".parquet",)) and "part-00003" not in path}
    assert kept.items() <= times(input.out, "features").items()
    assert verify(Dataset.open(input.out)) == []


ENCODE_ONCE = """
import os
from small_encoders import SmallText

class Counting(SmallText):
    def encode(self, batch):
        with open(os.environ["ENCODED"], "a") as file:
            file.write("".join(text + "\\n" for text in batch))
        return super().encode(batch)
"""


def test_a_text_is_encoded_once_however_often_the_input_changes(
    input: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(ENCODE_ONCE)
    log = tmp_path / "encoded"
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)]))
    monkeypatch.setitem(ENVIRONMENT, "ENCODED", str(log))
    flags = ("--text-encoder", "counting:Counting")
    input.rows = [
        {"id": f"r{n}", "text": f"text number {n}", "image": row["image"]}
        for n, row in enumerate(r for r in input.rows if r.get("image"))
    ]
    texts = {row["text"] for row in input.rows}
    input.write()
    input.build(*flags)
    assert sorted(log.read_text().splitlines()) == sorted(texts)
    log.unlink()
    input.rows = [{"id": "new", "text": "a text at the front", "image": input.rows[0]["image"]}, *input.rows[3:]]
    input.rows[9] = input.rows[9] | {"text": "a changed text"}
    input.write()
    said = input.build(*flags)
    assert sorted(log.read_text().splitlines()) == ["a changed text", "a text at the front"]
    assert "(1 added, 1 changed, 3 removed)" in said
    assert verify(Dataset.open(input.out)) == []


def test_removed_and_changed_records_go_and_the_index_follows(input: Input) -> None:
    input.build()
    changed = next(row for row in input.rows[20:] if row.get("image"))
    other = next(row for row in reversed(input.rows) if row.get("image"))
    shutil.copy(input.folder / other["image"], input.folder / changed["image"])  # the line stays as it is
    del input.rows[5:8]
    input.write()
    assert "(0 added, 1 changed, 3 removed)" in input.build()
    assert content(input.out) == input.fresh()
    found = mmembed("query", input.out, "--id", changed["id"], "--to", "image", "-k", 1, "--json").stdout
    assert json.loads(found)["id"] == other["id"] and json.loads(found)["score"] > 0.5
    history = mmembed("info", input.out, "--history").stdout
    assert "(60 added, 0 changed, 0 removed)" in history and "(0 added, 1 changed, 3 removed)" in history


def test_a_file_that_was_touched_changes_nothing_after_the_features(input: Input) -> None:
    input.build()
    before = times(input.out, "maps", "embeddings", "index")
    for path in input.folder.rglob("*.jpg"):
        os.utime(path)
    said = input.build()
    assert "(0 added, 0 changed, 0 removed)" in said
    assert verify(Dataset.open(input.out)) == []
    assert [
        line.split(":")[1].strip() for line in said.splitlines() if line.startswith(("fit", "project", "index"))
    ] == ["up to date"] * 3
    assert times(input.out, "maps", "embeddings", "index") == before
    assert "extract: up to date" in input.build()


def errors_of(out: Path) -> list[dict[str, Any]]:
    if not (out / "errors").exists():
        return []
    return list(pq.read_table(out / "errors").to_pylist())


def test_errors_are_mended_one_by_one(input: Input) -> None:
    spoilt = [row for row in input.rows if row.get("image")][:4]
    whole = {row["id"]: (input.folder / row["image"]).read_bytes() for row in spoilt}
    for row in spoilt:
        (input.folder / row["image"]).write_bytes(b"no picture")
    input.build("--max-error-rate", 1)
    assert {(row["id"], row["attempts"]) for row in errors_of(input.out)} == {(row["id"], 1) for row in spoilt}
    for row in spoilt[:2]:
        (input.folder / row["image"]).write_bytes(whole[row["id"]])
    input.build("--retry-errors", "--max-error-rate", 1)
    assert {(row["id"], row["attempts"]) for row in errors_of(input.out)} == {(row["id"], 2) for row in spoilt[2:]}
    for row in spoilt:
        (input.folder / row["image"]).write_bytes(whole[row["id"]])
    input.build("--retry-errors")
    assert errors_of(input.out) == []
    assert content(input.out) == input.fresh()
    counted(input.summary())


FLAKY = """
import os
from mmembed.errors import EncodeError
from small_encoders import SmallText

class Flaky(SmallText):
    def encode(self, batch):
        if os.path.exists(os.environ["DOWN"]) and any("star" in text for text in batch):
            raise EncodeError("the service is down")
        return super().encode(batch)
"""


def test_errors_that_are_not_the_datas_go_away_when_they_are_retried(
    input: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    (tmp_path / "down").touch()
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)]))
    monkeypatch.setitem(ENVIRONMENT, "DOWN", str(tmp_path / "down"))
    flags = ("--text-encoder", "flaky:Flaky", "--max-error-rate", 1)
    input.build(*flags)
    lost = [row["id"] for row in errors_of(input.out)]
    assert lost
    (tmp_path / "down").unlink()
    assert "extract: up to date" in input.build(*flags)  # nothing of the input has changed
    assert len(errors_of(input.out)) == len(lost)
    input.build(*flags, "--retry-errors")
    assert errors_of(input.out) == []
    assert content(input.out) == input.fresh(*flags)


def test_features_of_a_unit_that_was_killed_before_its_errors_are_not_taken_over(input: Input) -> None:
    sound = next(row for row in input.rows if row.get("audio"))
    samples = np.random.default_rng(0).normal(scale=0.1, size=16_000 * 30).astype(np.float32)
    samples[-100] = np.nan  # after the first windows
    soundfile.write(input.folder / "late.wav", samples, 16_000, subtype="FLOAT")
    sound["audio"] = "late.wav"
    input.write()
    flags = ("--audio-window", 1, "--max-error-rate", 1)
    input.build(*flags)
    [error] = errors_of(input.out)
    assert error["segment"] > 0  # what came before it was kept
    before = content(input.out)
    gone = [*input.out.glob("records/*"), *input.out.glob("errors/*")]
    for path in (
        *gone,
        *(input.out / name for name in ("dataset.json", "README.md", "evaluation.json", "report.html")),
    ):
        path.unlink()
    input.build(*flags)
    assert content(input.out) == before


def test_equal_media_of_one_record_stay_two(input: Input) -> None:
    for row in input.rows:
        row["text"] = [row.get("text") or "none", "the same", "the same"]
    input.write()
    input.build()
    input.rows = [{"id": "new", "text": "a new one"}, *input.rows]
    input.write()
    input.build()
    assert content(input.out) == input.fresh()


def test_too_many_errors_are_exit_code_3_after_all_is_written(input: Input) -> None:
    with_pictures = [row for row in input.rows if row.get("image")]
    for row in with_pictures[:3]:
        (input.folder / row["image"]).unlink()
    input.build("--max-error-rate", 0.05)
    line = complaint(mmembed(*input.words, "--max-error-rate", 0.04, *IN_PROCESS, expect=3))
    assert "5.0% of the records have errors, more than --max-error-rate 0.04" in line
    assert verify(Dataset.open(input.out)) == [] and "evaluate" in Dataset.open(input.out).stages
    said = mmembed("errors", input.out).stdout
    assert "3     segment  ReadError" in said
    assert (
        f"manifest.jsonl:{input.rows.index(with_pictures[0]) + 1} (image {with_pictures[0]['id']}): can't open" in said
    )


def test_two_builds_into_one_folder_do_not_meet(input: Input) -> None:
    with started(*input.words, "--workers", 2) as process:
        wait_for(lambda: any(input.out.glob("records/part-*.parquet")), 60, "a first unit")
        line = complaint(mmembed(*input.words, expect=2))
        assert f"another mmembed (process {process.pid} on " in line and "is writing into" in line
        assert "is writing into" in complaint(mmembed("extract", *input.words[1:], expect=2))
        process.communicate(timeout=120)
        assert process.returncode == 0
    input.build()


def test_another_configuration_is_refused_or_redone(input: Input) -> None:
    input.build()
    before = content(input.out)
    line = complaint(mmembed(*input.words, "--audio-window", 1, "--text-column", "text", expect=2))
    assert (
        "was extracted with text_column = [], now ['text']; audio.window = 10.0, now 1.0: extract into another" in line
    )
    assert content(input.out) == before
    images = times(input.out, "features/image")
    input.build("--audio-window", 0.2, "--overwrite")
    assert content(input.out) == input.fresh("--audio-window", 0.2) != before
    assert times(input.out, "features/image") != images  # written anew, with what was there


def test_a_data_set_of_another_version_is_refused_or_redone(input: Input) -> None:
    input.build()
    before = content(input.out)
    path = input.out / "dataset.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))
    (input.out / "mine.txt").write_text("mine")
    assert "format version 1" in complaint(mmembed(*input.words, expect=1))
    assert "mine.txt" in complaint(mmembed(*input.words, "--overwrite", expect=2))
    (input.out / "mine.txt").unlink()
    input.build("--overwrite")
    assert content(input.out) == before


def crashing(folder: Path, body: str) -> dict[str, str]:
    (folder / "crashing.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(folder)])}


CRASH = """
import ctypes
from small_encoders import SmallText

class Crashing(SmallText):
    def encode(self, batch):
        if any("heart" in text or "CRASH" in text for text in batch if {condition}):
            ctypes.string_at(0)  # a real one: a signal that is sent may come late
        return super().encode(batch)
"""


DECODE_CRASH = """
import ctypes
from mmembed.modalities.text import Text
from small_encoders import SmallText

segment = Text.segment

def fragile(self, decoded, metadata):
    if decoded == "CRASH":
        for number in range(70):  # more than a batch
            yield (0, 5), f"piece {number}"
        ctypes.string_at(0)  # a real one: a signal that is sent may come late
    yield from segment(self, decoded, metadata)

Text.segment = fragile

class Crashing(SmallText):
    pass
"""


@pytest.mark.parametrize("workers, stage", [(1, "encode"), (2, "encode"), (2, "segment")])
def test_a_record_that_crashes_its_worker_is_an_error_and_the_run_survives(
    input: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, stage: str
) -> None:
    body = CRASH.format(condition="'CRASH' in text") if stage == "encode" else DECODE_CRASH
    for name, value in crashing(tmp_path, body).items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    poisoned = [row for row in input.rows if row.get("text")][7]
    poisoned["text"] = "CRASH"
    input.write()
    flags = ("--text-encoder", "crashing:Crashing", "--workers", workers)
    said = mmembed(*input.words, *flags).stderr
    [error] = errors_of(input.out)
    assert (error["id"], error["modality"], error["stage"], error["error"]) == (
        poisoned["id"],
        "text",
        stage,
        "CrashError",
    )
    assert "was killed by signal 11" in error["message"]
    assert error["source"] == f"manifest.jsonl:{input.rows.index(poisoned) + 1}"
    assert "going on without what it was working on" in said
    summary = input.summary()
    counted(summary)
    assert summary["failed"]["text"] == 1 and summary["used"]["text"] == summary["media"]["text"] - 1


def test_an_encoder_that_always_crashes_ends_the_run_with_one_line(
    input: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in crashing(tmp_path, CRASH.replace("if any", "if True or any").format(condition="True")).items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    result = mmembed(*input.words, "--text-encoder", "crashing:Crashing", "--workers", 1, expect=1)
    line = complaint(result)
    assert "was killed by signal 11 during encode of text" in line and "is what decodes or encodes broken?" in line


def test_a_worker_that_is_killed_names_what_it_was_doing(input: Input) -> None:
    with started(*input.words, "--workers", 2) as process:
        wait_for(lambda: any(input.out.glob("records/part-*.parquet")), 60, "a first unit")
        worker = next(pid for pid, line in members(process.pid).items() if "mmembed.worker:" in line)
        os.kill(worker, signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    if process.returncode:  # else it had done its part
        line = complaint(subprocess.CompletedProcess([], 1, "", errors))
        assert (
            "was killed by signal 9 during" in line
            and "manifest.jsonl" in line
            and "run the same command again" in line
        )
    mmembed(*input.words)
    assert content(input.out) == input.fresh()
