"""Bad records, bad calls and failing machines: what was good is kept, and one line says what was wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import ENVIRONMENT, IN_PROCESS, arguments, complaint, content, members, mmembed, started, times, wait_for
from conftest import UNIT
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.shards import TEMPORARY_SUFFIX
from mmembed.verify import verify


def ids(out: Path, modality: str) -> set[str]:
    return set(pq.read_table(out / "features" / modality).column("id").to_pylist())


def test_each_bad_thing_is_a_row_of_errors_that_names_it(built: Path) -> None:
    found = pq.read_table(built / "errors").select(["id", "modality", "stage", "error", "source"]).to_pylist()
    assert sorted(map(tuple, map(dict.values, found))) == [
        ("", "", "read", "ReadError", "manifest.jsonl:61"),
        ("scene-000021", "image", "segment", "DecodeError", "manifest.jsonl:22"),
        ("scene-000041", "audio", "segment", "ReadError", "manifest.jsonl:42"),
    ]


def test_messages_of_errors_name_the_file(built: Path) -> None:
    messages = {row["id"]: row["message"] for row in pq.read_table(built / "errors").to_pylist()}
    assert "corrupt.jpg" in messages["scene-000021"]
    assert "missing.flac" in messages["scene-000041"]
    assert "JSON" in messages[""]


def test_the_other_modalities_of_a_record_with_a_bad_file_stay(built: Path) -> None:
    assert "scene-000021" in (ids(built, "text") & ids(built, "audio")) - ids(built, "image")
    assert "scene-000041" in (ids(built, "text") & ids(built, "image")) - ids(built, "audio")


def test_counts_of_the_summary_leave_nothing_out(built: Path, faulty: Path) -> None:
    lines = faulty.read_text("utf-8").splitlines()
    given = [json.loads(line) for line in lines[:60] + lines[61:]]
    summary = Dataset.open(built).stage("extract").summary
    assert (summary["rows"], summary["records"], summary["errors"]) == (201, 200, 3)
    assert summary["media"] == {name: sum(name in row for row in given) for name in ("image", "text", "audio")}
    lost = {"image": 1, "text": 0, "audio": 1}
    assert summary["used"] == {name: count - lost[name] for name, count in summary["media"].items()}
    assert summary["segments"] == {name: pq.read_table(built / "features" / name).num_rows for name in lost}


def unfinished(out: Path) -> bool:
    """Whether some units are done."""
    return any(out.glob("records/part-*.parquet"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_process_ends_the_run_with_one_line(manifest: Path, tmp_path: Path, victim: int) -> None:
    with started("extract", manifest, tmp_path, "--unit-records", 4, "--workers", 2) as process:
        wait_for(lambda: unfinished(tmp_path), 60, "a first unit")
        workers = [pid for pid, words in sorted(members(process.pid).items()) if "mmembed.worker:" in words]
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        wait_for(lambda: not members(process.pid), 5, "the end of the process that starts workers")
    line = complaint(subprocess.CompletedProcess([], 1, "", errors))
    assert "a worker process was killed by signal 9" in line
    assert not (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_ends_the_run_with_one_line(
    manifest: Path, rows: list[dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    # Without sounds: where the interruption meets a callback of libsndfile, cffi swallows it, and it takes another one.
    silent = manifest.with_name(f"silent-{workers}.jsonl")
    silent.write_text("".join(json.dumps(row | {"audio": None}) + "\n" for row in rows * 5), "utf-8")
    out = tmp_path / "out"
    with started("extract", silent, out, "--unit-records", 4, "--workers", workers) as process:
        wait_for(lambda: unfinished(out), 60, "a first unit")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        wait_for(lambda: not members(process.pid), 5, "the end of the process that starts workers")
    assert "interrupted" in complaint(subprocess.CompletedProcess([], 130, "", errors))


def test_workers_end_with_a_launcher_that_was_killed(manifest: Path, tmp_path: Path) -> None:
    with started("extract", manifest, tmp_path, "--unit-records", 4, "--workers", 2) as process:
        wait_for(lambda: unfinished(tmp_path), 60, "a first unit")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not members(process.pid), 20, "the workers' end")


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_when_there_is_space(
    little_disk: Path, small: Path, workers: int
) -> None:
    out = little_disk / "out"
    words = ("build", Dataset.open(small).input, out, "--unit-records", UNIT, *FLAGS)
    line = complaint(mmembed(*words, "--workers", workers, expect=1))
    assert "No space left on device" in line
    assert not list(out.rglob(f"*{TEMPORARY_SUFFIX}"))
    before = {path: data for path, data in content(out, ("features", "records")).items() if path.endswith(".parquet")}
    complete = content(small, ("features", "records"))
    assert before.items() <= complete.items()  # and so none is cut off
    stamps = times(out, "records")

    subprocess.run(["mount", "-o", "remount,size=20m", str(little_disk)], check=True)
    mmembed(*words, *IN_PROCESS)
    assert content(out) == content(small)
    assert stamps.items() <= times(out, "records").items()
    assert verify(Dataset.open(out)) == []


WRONG = {
    "a misspelt flag": (["build", "MANIFEST", "OUT", "--dimension", "5"], 2, "--dimension"),
    "a flag without its value": (["build", "MANIFEST", "OUT", "--dim"], 2, "--dim"),
    "a value of the wrong type": (["build", "MANIFEST", "OUT", "--dim", "many"], 2, "many"),
    "a value out of range": (["build", "MANIFEST", "OUT", "--holdout", "1.5"], 2, "holdout"),
    "no workers": (["build", "MANIFEST", "OUT", "--workers", "0"], 2, "workers"),
    "an unknown encoder": (["build", "MANIFEST", "OUT", "--image-encoder", "no.module:Class"], 2, "no.module"),
    "no such input": (["build", "nowhere.jsonl", "OUT"], 2, "nowhere.jsonl"),
    "an input of no known form": (["build", "OTHER", "OUT"], 2, "other.txt"),
    "an empty input": (["build", "EMPTY", "OUT"], 2, "empty.jsonl"),
    "an unknown flag of Beam": (["build", "MANIFEST", "OUT", "--", "--runer=FnApiRunner"], 2, "--runer"),
    "OUT that is a file": (["build", "MANIFEST", "EMPTY"], 2, "empty.jsonl"),
    "OUT below a file": (["build", "MANIFEST", "EMPTY/out"], 2, "empty.jsonl"),
    "OUT that holds something else": (["build", "MANIFEST", "FOLDER"], 2, "empty.jsonl"),
    "maps of no data set": (["build", "MANIFEST", "OUT", "--maps", "nowhere"], 2, "nowhere"),
    "a stage without a data set": (["fit", "OUT"], 2, "out"),
    "no such configuration": (["build", "MANIFEST", "OUT", "--config", "nowhere.toml"], 2, "nowhere.toml"),
    "no command": ([], 2, "COMMAND"),
}


@pytest.mark.parametrize("words, code, named", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_call_is_one_line_that_names_what_is_wrong(
    words: list[str], code: int, named: str, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "other.txt").write_text("{}\n")
    places = {
        "MANIFEST": Dataset.open(small).input,
        "OUT": tmp_path / "out",
        "EMPTY": tmp_path / "empty.jsonl",
        "EMPTY/out": tmp_path / "empty.jsonl" / "out",
        "OTHER": tmp_path / "other.txt",
        "FOLDER": tmp_path,
    }
    flags = FLAGS if words[:1] == ["build"] and "--image-encoder" not in words else ()
    place = words.index("--") if "--" in words else len(words)
    words = [*words[:place], *flags, *words[place:]]
    assert named in complaint(mmembed(*(places.get(word, word) for word in words), expect=code))


def test_a_wrong_call_leaves_a_data_set_as_it_was(small: Path) -> None:
    before = times(small)
    mmembed("fit", small, "--dim", -1, expect=2)
    mmembed("build", Dataset.open(small).input, small, *FLAGS, "--maps", "nowhere", "--unit-records", UNIT, expect=2)
    assert times(small) == before


Extract = Callable[[str, int], str]


@pytest.fixture
def extract_with(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """What is said where the text encoder's `encode(self, batch)` has one line, which fails, with so many workers."""
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)]))

    def extract(encode: str, workers: int) -> str:
        (tmp_path / "faulty_encoder.py").write_text(
            "import os\n"
            "from small_encoders import SmallText\n"
            "class Faulty(SmallText):\n"
            "    def encode(self, batch):\n"
            f"        {encode}\n"
        )
        words = ("extract", Dataset.open(small).input, tmp_path / "out", "--unit-records", UNIT, *FLAGS)
        flags = ("--text-encoder", "faulty_encoder:Faulty", "--workers", workers)
        return complaint(mmembed(*words, *flags, expect=1))

    return extract


def test_a_worker_that_ends_of_itself_ends_the_run(extract_with: Extract) -> None:
    assert "a worker process ended with exit code 0" in extract_with("os._exit(0)", 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_encoder_that_breaks_its_promise_stops_the_run_with_one_line(extract_with: Extract, workers: int) -> None:
    assert "small-text" in extract_with("return super().encode(batch)[:, :3]", workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_an_encoder_is_named_with_its_kind_and_place(extract_with: Extract, workers: int) -> None:
    line = extract_with("raise RuntimeError('no GPU here')", workers)
    assert re.search(r"RuntimeError: no GPU here.*faulty_encoder.py:5", line)


def peak_memory(manifest: Path, out: Path) -> int:
    """The most that a process held while it extracted, in bytes."""
    words = ("extract", manifest, out, "--unit-records", UNIT, "--workers", 1, *FLAGS)
    process = subprocess.Popen(arguments(*words), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_memory_does_not_grow_with_the_number_of_records(
    manifest: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    few, many = (manifest.with_name(f"{count}.jsonl") for count in (200, 1000))
    for path, repeats in ((few, 1), (many, 5)):
        lines = [row | {"id": f"{row['id']}-{copy}"} for copy in range(repeats) for row in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    growth = peak_memory(many, tmp_path / "many") - peak_memory(few, tmp_path / "few")
    assert pq.read_table(tmp_path / "many" / "records").num_rows == 1000
    decoded = 800 * 256 * 256 * 3  # what 800 more pictures take: 157 MB
    assert growth < decoded / 8
