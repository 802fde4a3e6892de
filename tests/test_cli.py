"""The command line on a built data set: questions, checks, what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import COLD, ENVIRONMENT, IN_PROCESS, arguments, complaint, mmembed

import mmembed as package
from mmembed.dataset import Dataset
from mmembed.report import path_from_here, short_path

MODALITIES = ("image", "text", "audio")


def answers(out: Path, *words: object) -> list[dict[str, Any]]:
    """What a query finds, from its JSON."""
    return [json.loads(line) for line in mmembed("query", out, *words, "--json").stdout.splitlines()]


def medium(out: Path, modality: str) -> str:
    """A text, or the path of a file, of the third record."""
    source = Path(Dataset.open(out).input)
    value = str(json.loads(source.read_text("utf-8").splitlines()[2])[modality])
    return value if modality == "text" else str(source.parent / value)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_medium_of_the_set_finds_its_own_record_first(small: Path, modality: str) -> None:
    found = answers(small, f"--{modality}", medium(small, modality), "--to", modality, "-k", 4)
    assert found[0]["id"] == "scene-000002"
    assert found[0]["score"] == pytest.approx(1, abs=1e-4)
    assert [row["rank"] for row in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("target", MODALITIES)
def test_a_text_finds_any_modality(small: Path, target: str) -> None:
    found = answers(small, "--text", "three red stars", "--to", target, "-k", 5)
    assert [row["modality"] for row in found] == [target] * 5
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)


def test_any_merges_the_answers_of_all_modalities(small: Path) -> None:
    merged = answers(small, "--text", "three red stars", "--to", "any", "-k", 20)
    alone = [
        row for target in MODALITIES for row in answers(small, "--text", "three red stars", "--to", target, "-k", 20)
    ]
    best = sorted((row["score"] for row in alone), reverse=True)[:20]
    assert [row["score"] for row in merged] == pytest.approx(best)


def test_a_record_finds_others_and_not_itself(small: Path) -> None:
    found = answers(small, "--id", "scene-000002", "--to", "image", "-k", 5)
    assert len(found) == 5
    assert "scene-000002" not in {row["id"] for row in found}


def test_answers_carry_the_metadata_of_their_record(small: Path) -> None:
    rows = {row["id"]: row for row in map(json.loads, Path(Dataset.open(small).input).read_text("utf-8").splitlines())}
    for found in answers(small, "--text", "a blue heart", "--to", "text", "-k", 5):
        assert found["media"] == rows[found["id"]]["text"]
        assert found["metadata"] == {key: rows[found["id"]][key] for key in found["metadata"]}
        assert found["metadata"]["scene"]


def test_a_table_says_what_the_json_says(small: Path) -> None:
    words = ("--text", "a blue heart", "--to", "audio", "-k", 3)
    header, *lines = mmembed("query", small, *words).stdout.splitlines()
    assert header.split()[:4] == ["rank", "score", "modality", "id"]
    assert [line.split()[3] for line in lines] == [row["id"] for row in answers(small, *words)]


def test_parts_of_a_query_stand_in_their_order_with_their_weights(small: Path) -> None:
    words = ["--text", "a blue heart", "--to", "image", "-k", "5"]
    plain, twice = answers(small, *words), answers(small, *words[:2], "--weight", "2", *words[2:])
    assert [row["id"] for row in plain] == [row["id"] for row in twice]
    other = answers(small, *words, "--text", "a red star", "--weight", "-0.7")
    assert [row["score"] for row in other] != [row["score"] for row in plain]
    small_ones = answers(small, *words, "--filter", "size = 'small'", "--fold")
    assert {row["metadata"]["size"] for row in small_ones} == {"small"} and len(small_ones) == 5


@pytest.mark.parametrize(
    "words, named",
    [
        (["--id", "scene-999999"], "scene-999999"),
        (["--text", "a heart", "--to", "smell"], "smell"),
        (["--text", "a heart", "-k", "0"], "k = 0"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--weight", "2", "--text", "a heart"], "--weight stands behind what it is of"),
        (["--text", "a heart", "--text", "a heart", "--weight", "-1"], "cancel each other out"),
        (["--text", "a heart", "--filter", "colour = 1"], "columns are"),
        (["--text", "a heart", "--segments", "some"], "segments = 'some'"),
        ([], "--text"),
    ],
)
def test_a_question_that_can_not_be_asked_is_one_line(small: Path, words: list[str], named: str) -> None:
    result = mmembed("query", small, *words, expect=2)
    assert named in complaint(result)
    assert result.stdout == ""


def test_a_query_of_nothing_built_says_how_to_build(tmp_path: Path) -> None:
    assert "mmembed build" in complaint(mmembed("query", tmp_path, "--text", "a heart", expect=2))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["build", "--help"],
        ["query", "OUT", "--text", "a heart"],
        ["info", "OUT"],
        ["errors", "OUT"],
        ["verify", "OUT"],
    ],
)
def test_light_commands_load_no_beam(small: Path, words: list[str]) -> None:
    python = ("-X", "importtime", "-m", "mmembed")
    modules = mmembed(*(small if word == "OUT" else word for word in words), python=python).stderr
    assert "mmembed.cli" in modules
    assert not {"apache_beam", "librosa", "torch"} & {line.split("|")[-1].strip() for line in modules.splitlines()}


def test_verify_finds_nothing_after_a_build(built: Path) -> None:
    assert "are as the manifest says" in mmembed("verify", built).stdout


@pytest.mark.parametrize("path", ["features/text/part-00001.parquet", "maps/image.safetensors", "index/audio.faiss"])
def test_verify_names_a_file_in_which_one_byte_changed(small: Path, tmp_path: Path, path: str) -> None:
    out = Path(shutil.copytree(small, tmp_path / "out"))
    data = bytearray((out / path).read_bytes())
    data[len(data) // 2] ^= 1
    (out / path).write_bytes(data)
    result = mmembed("verify", out, expect=1)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [path]
    complaint(result)


def test_info_says_what_there_is(built: Path, faulty: Path) -> None:
    said = mmembed("info", built).stdout
    summary = Dataset.open(built).stage("extract").summary
    for word in (
        str(faulty),
        "201 records in the input, 200 read, 0 of them duplicates; 3 with errors (3 rows in errors/)",
        f"{summary['segments']['image']}",
        "features of audio",
        "extract, fit, project, index, evaluate",
    ):
        assert word in said


def test_a_build_ends_with_what_went_in_and_came_out(small: Path) -> None:
    said = mmembed("evaluate", small, python=COLD).stdout
    assert "median rank" in said
    for query in MODALITIES:
        assert query in said


def test_a_configuration_file_does_what_flags_do(small: Path, tmp_path: Path) -> None:
    lines = ["[extract]", "unit_records = 16"]
    lines += [f'{name}_encoder = "small_encoders:Small{name.capitalize()}"' for name in MODALITIES]
    (tmp_path / "config.toml").write_text("\n".join([*lines, "[fit]", "dim = 4"]), "utf-8")
    mmembed(
        "build",
        Dataset.open(small).input,
        tmp_path / "out",
        "--config",
        tmp_path / "config.toml",
        "--dim",
        6,
        *IN_PROCESS,
    )
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.config["extract"] == Dataset.open(small).config["extract"]
    assert dataset.config["fit"]["dim"] == 6  # a flag is stronger than the file
    assert {space.dim for space in dataset.modalities("project").values()} == {6}


def test_errors_are_explained_on_the_screen(built: Path, faulty: Path) -> None:
    said = mmembed("info", built).stdout
    assert "errors/: 1 DecodeError (segment), first manifest.jsonl:22: " in said
    assert "errors/: 2 ReadError (" not in said  # a missing file and a broken line are of different stages
    assert "can't open missing.flac" in said
    assert "errors/: 1 ReadError (read), first manifest.jsonl:61: the line is no JSON" in said


def test_why_no_record_could_be_used_stands_before_what_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1.5, "text": "a"}\n{"id": 2.5, "text": "b"}\n', "utf-8")
    said = mmembed("build", tmp_path / "in.jsonl", tmp_path / "out", *IN_PROCESS, expect=2).stderr
    reason = (
        "extract: 2 ReadError (read), first in.jsonl:1: a record needs an id (id) that is a non-empty string, not 1.5"
    )
    assert reason in said.splitlines()


def test_a_reader_that_has_enough_is_no_error(small: Path) -> None:
    words = arguments("query", small, "--text", "a heart", "-k", 70, "--json")
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "flag, reason",
    [
        ("--runner=Nope", "after `--`"),
        ("--runner=DaskRunner", "loses data and reports success"),
        ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner", "loses data and reports success"),
        ("--runner=PortableRunner", "PortableRunner needs the job server's address"),
        ("--job_endpoint=localhost:1", "nothing answers at --job_endpoint=localhost:1"),
        ("--runner=DataflowRunner", "which Dataflow's workers don't see: give a URL of gs://"),
    ],
)
def test_a_runner_that_can_not_be_had_is_one_line(small: Path, tmp_path: Path, flag: str, reason: str) -> None:
    result = mmembed("extract", Dataset.open(small).input, tmp_path / "out", "--", flag, expect=2)
    assert reason in complaint(result)
    assert "Nope" in flag or not (tmp_path / "out").exists()


def test_a_long_path_is_shown_by_its_end() -> None:
    assert short_path("images/frog.png") == "images/frog.png"
    shown = short_path("pictures/" * 20 + "frog.png")
    assert len(shown) == 60
    assert shown.startswith("…") and shown.endswith("pictures/frog.png")


def test_the_sample_is_written_by_the_command(tmp_path: Path) -> None:
    assert "3 records" in mmembed("sample", tmp_path, "--records", 3, "--seed", 1, python=COLD).stdout
    assert len((tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()) == 3


def test_the_version_is_the_packages() -> None:
    assert mmembed("--version").stdout == f"mmembed {package.__version__}\n"


def test_a_path_in_a_table_can_be_opened_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    file, manifest = tmp_path / "data/images/frog.png", str(tmp_path / "data/manifest.jsonl")
    file.touch()
    Path(manifest).touch()
    monkeypatch.chdir(tmp_path)
    assert path_from_here(manifest, "images/frog.png") == "data/images/frog.png"
    assert path_from_here(str(tmp_path / "data"), "images/frog.png") == "data/images/frog.png"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert path_from_here(manifest, "images/frog.png") == str(file)
    assert path_from_here(manifest, "in/an/archive.png") == "in/an/archive.png"
    assert path_from_here(manifest, "https://example.org/frog.png") == "https://example.org/frog.png"
    assert path_from_here("s3://bucket/manifest.jsonl", "images/frog.png") == "images/frog.png"


def test_a_flag_may_have_a_name_of_its_own() -> None:
    help = mmembed("build", "--help").stdout
    assert "--blur-boxes STR" in help and "--image-blur-boxes" not in help and "--image-boxes STR" in help
