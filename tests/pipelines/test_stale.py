"""Whatever happened to a data set before, what is served fits what it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import IN_PROCESS, complaint, content, mmembed
from conftest import UNIT
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.shards import read_footer
from mmembed.verify import verify


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A data set that a test may spoil."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


def build(out: Path, *flags: object) -> str:
    words = ("build", Dataset.open(out).input, out, "--unit-records", UNIT, *FLAGS, *flags)
    return mmembed(*words, *IN_PROCESS).stderr


def test_a_receipt_never_vouches_for_files_of_another_configuration(small: Path, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = ("--unit-records", UNIT, *FLAGS, "--image-fit", "crop")
    mmembed("extract", Dataset.open(small).input, other, *words, *IN_PROCESS)
    part = "features/image/part-00001.parquet"
    mark = (read_footer(other / part) or {})["fingerprint"]
    assert mark != (read_footer(copy / part) or {})["fingerprint"]
    shutil.copy(other / part, copy / part)  # as a run that was killed before its receipt leaves it
    (copy / "dataset.json").unlink()
    (copy / "README.md").unlink()
    (copy / "evaluation.json").unlink()
    (copy / "report.html").unlink()
    mmembed("build", Dataset.open(small).input, copy, "--unit-records", UNIT, *FLAGS, *IN_PROCESS)
    assert content(copy) == content(small)


@pytest.mark.parametrize(
    "path",
    [
        "records/part-00000.parquet",
        "features/image/part-00001.parquet",
        "maps/text.safetensors",
        "embeddings/text/part-00002.parquet",
        "index/image.faiss",
        "index/index.json",
        "evaluation.json",
        "report.html",
    ],
)
def test_a_damaged_file_that_was_deleted_as_told_is_made_again(small: Path, copy: Path, path: str) -> None:
    data = bytearray((copy / path).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / path).write_bytes(data)
    (problem, *_) = verify(Dataset.open(copy))
    assert problem.startswith(path)
    (copy / path).unlink()
    build(copy)
    assert content(copy) == content(small)
    assert verify(Dataset.open(copy)) == []


def test_a_stage_that_fails_leaves_no_claim_on_what_it_was_to_replace(copy: Path) -> None:
    line = complaint(mmembed("fit", copy, "--holdout", 0.99, *IN_PROCESS, expect=2))
    assert "at least 10" in line
    assert list(Dataset.open(copy).stages) == ["extract"]
    assert "the stage project" in complaint(mmembed("query", copy, "--text", "a star", expect=2))
    assert not (copy / "evaluation.json").exists()
    assert not (copy / "report.html").exists()
    assert not (copy / "maps/moments").exists()


@pytest.mark.parametrize("path", ["records/diary.txt", "errors/list.parquet", "maps/old/fit.json", "notes.md"])
def test_a_folder_with_files_of_the_user_is_refused(small: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("mine")
    line = complaint(mmembed("extract", Dataset.open(small).input, tmp_path, *FLAGS, expect=2))
    assert path in line
    assert (tmp_path / path).read_text() == "mine"


def test_a_file_of_the_user_in_a_data_set_stays(copy: Path) -> None:
    (copy / "maps/notes.txt").write_text("mine")
    mmembed("fit", copy, "--dim", 3, *IN_PROCESS)
    assert (copy / "maps/notes.txt").read_text() == "mine"


def test_a_later_stage_takes_only_its_own_tables_of_a_configuration_file(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text('[extract.image]\ntiles = "2x2"\n[fit]\ndim = 3\n')
    mmembed("fit", copy, "--config", tmp_path / "all.toml", *IN_PROCESS)
    config = Dataset.open(copy).config
    assert config["extract"]["image"]["tiles"] == ""
    assert config["fit"]["dim"] == 3


def test_with_the_maps_of_another_data_set_its_held_out_records_are_held_out(copy: Path, tmp_path: Path) -> None:
    input, out = Dataset.open(copy).input, tmp_path / "out"
    words = ("--unit-records", UNIT, *FLAGS)
    mmembed("build", input, copy, *words, "--holdout", 0.4, *IN_PROCESS)
    mmembed("build", input, out, *words, "--maps", copy, *IN_PROCESS)
    ours, theirs = Dataset.open(out), Dataset.open(copy)
    assert ours.config["fit"]["holdout"] == theirs.config["fit"]["holdout"] == 0.4
    assert json.loads(ours.read("evaluation.json")) == json.loads(theirs.read("evaluation.json"))
    assert ours.config["fit"]["maps"] == str(copy.resolve())


@pytest.mark.parametrize("flags", [["--dim", "128"], ["--config", "fit.toml"]])
def test_what_comes_with_the_maps_of_another_data_set_can_not_be_chosen(
    small: Path, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fit.toml").write_text("[fit]\nholdout = 0.3\n")
    words = ("build", Dataset.open(small).input, tmp_path / "out", *FLAGS, "--maps", small, *flags)
    assert "can't be chosen with the maps of" in complaint(mmembed(*words, expect=2))


def test_a_data_set_does_not_take_its_own_maps(copy: Path) -> None:
    words = ("build", Dataset.open(copy).input, copy, *FLAGS, "--maps", copy)
    assert "must be another data set" in complaint(mmembed(*words, expect=2))
    assert "index" in Dataset.open(copy).stages


def test_flags_for_beam_are_refused_where_no_pipeline_runs(small: Path) -> None:
    for command in ("info", "verify", "evaluate"):
        assert "no flags for Beam" in complaint(mmembed(command, small, "--", "--foo", expect=2))


def test_unknown_flags_for_beam_are_refused_where_nothing_is_to_be_done(small: Path) -> None:
    assert "--rnner" in complaint(mmembed("index", small, "--", "--rnner=Foo", expect=2))


def test_an_input_that_was_moved_is_known_at_its_new_place(copy: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(Path(Dataset.open(copy).input).parent, tmp_path / "moved", symlinks=True))
    words = ("build", moved / "manifest.jsonl", copy, "--unit-records", UNIT, "--workers", 1, *FLAGS)
    assert "extract: up to date" in mmembed(*words).stderr
    assert Dataset.open(copy).input == str(moved / "manifest.jsonl")


@pytest.mark.parametrize("words", [("gs://bucket/m.jsonl", "out"), ("MANIFEST", "gs://bucket/out")])
def test_a_remote_place_is_refused_at_once(small: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    places = {"MANIFEST": Dataset.open(small).input, "out": tmp_path / "out"}
    given = [places.get(word, word) for word in words]
    assert "gs:/" in complaint(mmembed("extract", *given, *FLAGS, expect=2))
    assert not Path("gs:").exists()
