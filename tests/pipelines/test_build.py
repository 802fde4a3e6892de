"""A whole build: the same bytes whoever does it, and no more work than what changed asks for."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import COLD, IN_PROCESS, complaint, content, kill_group, members, mmembed, started, times, wait_for
from conftest import UNIT, build_small
from small_encoders import FLAGS

from mmembed.dataset import STAGES, Dataset
from mmembed.verify import verify


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A data set that a test may change."""
    return Path(shutil.copytree(small, tmp_path / "out"))


def source_of(out: Path) -> str:
    return Dataset.open(out).input


def said(*words: object, python: tuple[str, ...] = ()) -> list[str]:
    """The lines of a build, without its table."""
    return mmembed("build", *words, python=python).stderr.splitlines()


def test_the_shared_data_set_has_several_units_and_failures(built: Path) -> None:
    dataset = Dataset.open(built)
    assert len(dataset.below("records")) == 13
    assert dataset.below("errors")
    assert verify(dataset) == []


def test_one_worker_gives_the_bytes_of_two(built: Path, faulty: Path, tmp_path: Path) -> None:
    mmembed("build", faulty, tmp_path, "--unit-records", UNIT, "--workers", 1, python=COLD)
    expected = content(built)
    assert content(tmp_path) == expected
    assert {path.split("/")[0] for path in expected} == {"features", "records", "errors", "maps", "embeddings", "index"}


def test_a_killed_build_goes_on_and_gives_the_same_bytes(built: Path, faulty: Path, tmp_path: Path) -> None:
    words = ("build", faulty, tmp_path, "--unit-records", UNIT, "--workers", 2)
    with started(*words) as process:
        wait_for(lambda: any(tmp_path.glob("records/part-*.parquet")), 60, "a first unit")
        kill_group(process.pid)
        process.wait()
        wait_for(lambda: not members(process.pid), 10, "the end of the killed processes")
    finished = times(tmp_path, "records")
    finished = {path: time for path, time in finished.items() if not Path(path).name.startswith(".")}
    assert 0 < len(finished) < 13

    with started(*words) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0
        wait_for(lambda: not members(process.pid), 5, "the end of the process that starts workers")
    assert f"{len(finished)} of 13 units are there, going on with the others" in errors
    assert finished.items() <= times(tmp_path, "records").items()
    assert content(tmp_path) == content(built)
    assert verify(Dataset.open(tmp_path)) == []  # and so no file of a stopped writer is left


def test_a_second_build_does_nothing_says_so_and_is_quick(built: Path, faulty: Path) -> None:
    before = times(built)
    start = time.monotonic()
    lines = said(faulty, built, "--unit-records", UNIT, python=COLD)
    assert time.monotonic() - start < 3
    assert [line.split(" (")[0] for line in lines] == [f"{stage}: up to date" for stage in STAGES]
    assert times(built) == before


def test_a_second_build_loads_no_beam(small: Path) -> None:
    words = ("build", source_of(small), small, "--unit-records", UNIT, *FLAGS)
    modules = mmembed(*words, python=("-X", "importtime", "-m", "mmembed")).stderr
    assert "mmembed.stages" in modules
    assert "apache_beam" not in modules


def test_the_budget_of_the_indexes_holds_until_another_is_given(copy: Path) -> None:
    mmembed("index", copy, "--memory", "1GB", *IN_PROCESS)
    build_small(Path(source_of(copy)), copy)
    assert Dataset.open(copy).config["index"]["memory"] == "1GB"
    build_small(Path(source_of(copy)), copy, "--memory", "")
    assert Dataset.open(copy).config["index"]["memory"] == ""


def test_a_budget_that_was_refused_is_forgotten(copy: Path, tmp_path: Path) -> None:
    words = ("build", source_of(copy), tmp_path / "out", "--unit-records", UNIT, *FLAGS, *IN_PROCESS)
    assert "--memory" in complaint(mmembed(*words, "--memory", "1KB", expect=2))
    assert mmembed(*words).stderr.startswith("extract: up to date")
    assert verify(Dataset.open(tmp_path / "out")) == []


def test_another_dimension_refits_without_touching_the_features(copy: Path) -> None:
    before, embeddings = times(copy, "features", "records"), content(copy, ("embeddings",))
    lines = said(source_of(copy), copy, "--unit-records", UNIT, *FLAGS, "--dim", 5, *IN_PROCESS)
    assert lines[0].startswith("extract: up to date")
    assert times(copy, "features", "records") == before
    assert content(copy, ("embeddings",)).keys() == embeddings.keys()
    assert {space.dim for space in Dataset.open(copy).modalities("project").values()} == {5}
    assert verify(Dataset.open(copy)) == []


def test_another_holdout_refits_without_touching_the_features(copy: Path) -> None:
    before = times(copy, "features", "records")
    build_small(Path(source_of(copy)), copy, "--holdout", 0.5)
    assert times(copy, "features", "records") == before
    splits = pq.read_table(copy / "embeddings" / "text").column("split").to_pylist()
    assert 0.3 < splits.count("heldout") / len(splits) < 0.7
    assert verify(Dataset.open(copy)) == []


def test_the_stages_one_by_one_give_the_same_bytes_as_build(small: Path, tmp_path: Path) -> None:
    mmembed("extract", source_of(small), tmp_path, "--unit-records", UNIT, *FLAGS)
    for stage in STAGES[1:]:
        mmembed(stage, tmp_path)
    assert content(tmp_path) == content(small)
    assert (tmp_path / "evaluation.json").read_bytes() == (small / "evaluation.json").read_bytes()


def test_appended_records_leave_the_whole_units_before_them_alone(small: Path, rows: list[object], copy: Path) -> None:
    moved = shutil.copytree(Path(source_of(small)).parent, copy.parent / "moved", symlinks=True)
    with (moved / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[80:90])
    before = times(copy, "features", "records")
    build_small(moved / "manifest.jsonl", copy)
    after = times(copy, "features", "records")
    new = [path for path in after if path not in before and path.endswith(".parquet")]
    assert new == [path for path in new if path.endswith("part-00005.parquet")]
    assert len(new) == 4
    units = {path: time for path, time in before.items() if path.endswith(".parquet")}
    assert units.items() <= after.items()
    assert verify(Dataset.open(copy)) == []


def test_larger_units_leave_no_file_of_the_smaller_ones(copy: Path) -> None:
    mmembed("build", source_of(copy), copy, "--unit-records", 50, *FLAGS, "--overwrite", *IN_PROCESS)
    assert [path.name for path in sorted((copy / "records").iterdir())] == ["part-00000.parquet", "part-00001.parquet"]
    assert verify(Dataset.open(copy)) == []


def test_maps_of_another_data_set_are_used_byte_for_byte(small: Path, rows: list[object], tmp_path: Path) -> None:
    others = Path(source_of(small)).with_name("others.jsonl")
    others.write_text("".join(json.dumps(row) + "\n" for row in rows[80:100]), "utf-8")
    build_small(others, tmp_path, "--maps", small)
    assert content(tmp_path, ("maps",)) == content(small, ("maps",))
    assert Dataset.open(tmp_path).modalities("project") == Dataset.open(small).modalities("project")
    assert verify(Dataset.open(tmp_path)) == []


def test_maps_for_other_features_are_refused(built: Path, small: Path, tmp_path: Path) -> None:
    words = ("build", source_of(small), tmp_path, "--unit-records", UNIT, *FLAGS, "--maps", built, *IN_PROCESS)
    line = complaint(mmembed(*words, expect=1))
    assert "small-" in line
    assert not (tmp_path / "maps").exists()


def test_every_pipeline_passes_beams_own_type_checks(manifest: Path, tmp_path: Path) -> None:
    checks = ("--", "--runner=FnApiRunner", "--runtime_type_check")
    strict = (*checks, "--type_check_strictness=ALL_REQUIRED")
    mmembed("extract", manifest, tmp_path, *FLAGS, *strict)
    mmembed("fit", tmp_path, *checks)  # strictly, Beam's own CombineGlobally is refused
    assert "Beam can't run with the flags after `--`" in complaint(
        mmembed("fit", tmp_path, "--dim=4", *strict, expect=2)
    )
    mmembed("fit", tmp_path, *checks)
    mmembed("project", tmp_path, *strict)
    assert "rows" in mmembed("index", tmp_path, *strict).stderr
