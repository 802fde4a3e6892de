from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from dataset_builder import build, input_space, random_rows
from hypothesis import given
from hypothesis import strategies as st

from mmembed.dataset import MANIFEST, STAGES, Dataset, File, Stage, describe, locked
from mmembed.errors import DatasetError, UsageError
from mmembed.features import read_records
from mmembed.shards import TEMPORARY_SUFFIX, checksum, inside


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build(tmp_path, random_rows(6, ["image", "text"], 6))


def test_a_data_set_comes_back_from_its_manifest(dataset: Dataset) -> None:
    assert Dataset.open(dataset.folder) == dataset
    assert list(dataset.stages) == list(STAGES[:4])


def test_every_file_of_the_folder_is_in_the_manifest_with_bytes_checksum_and_rows(dataset: Dataset) -> None:
    names = {path.relative_to(dataset.folder).as_posix() for path in dataset.folder.rglob("*") if path.is_file()}
    assert names == {*dataset.files, MANIFEST}
    for name, file in dataset.files.items():
        data = (dataset.folder / name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), checksum(data))
    assert [file.rows for file in dataset.below("records").values()] == [4, 2]
    assert dataset.files["maps/fit.json"].rows is None


def test_a_manifest_written_again_has_the_same_bytes(dataset: Dataset) -> None:
    before = (dataset.folder / MANIFEST).read_bytes()
    Dataset.open(dataset.folder).save()
    assert (dataset.folder / MANIFEST).read_bytes() == before


def test_a_folder_without_a_manifest_is_new_and_can_only_be_opened_as_such(tmp_path: Path) -> None:
    assert Dataset.open_or_new(tmp_path) == Dataset(tmp_path)
    assert Dataset.open_or_new(tmp_path / "missing").stages == {}
    with pytest.raises(UsageError, match=r"holds no data set .* `mmembed build INPUT"):
        Dataset.open(tmp_path)


def test_a_killed_first_run_can_be_gone_on_with(tmp_path: Path) -> None:
    for folder in ("features", "records", "errors"):
        (tmp_path / folder).mkdir()
    (tmp_path / f".dataset.json.x{TEMPORARY_SUFFIX}").touch()
    assert Dataset.open_or_new(tmp_path).stages == {}


def test_a_folder_of_something_else_is_not_built_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"not empty \(it holds thesis\.tex\): choose another folder"):
        Dataset.open_or_new(tmp_path)
    with pytest.raises(UsageError, match="can't build into"):
        Dataset.open_or_new(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no valid JSON"),
        (b"\xff", "no valid JSON"),
        (b"[]", "format version None"),
        (b"{}", "format version None"),
        (b'{"format_version": 1}', "format version 1, this mmembed .* reads 2.* --overwrite"),
        (b'{"format_version": 2}', "lacks what a manifest needs"),
        (b'{"format_version": 2, "input": "", "config": {}, "stages": {}, "files": {"a": {}}}', "lacks what"),
        (b'{"format_version": 2, "input": "", "config": {}, "stages": [], "files": {}}', "lacks what"),
    ],
)
def test_a_damaged_manifest_is_a_dataset_error_and_no_new_data_set(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    for opened in (Dataset.open, Dataset.open_or_new):
        with pytest.raises(DatasetError, match=message):
            opened(tmp_path)


LEAVING = [
    *("", "/", "/etc/passwd", "..", "../other", "maps/../../other", "maps/..", "./maps", "maps//a", "maps/"),
    *("maps\\a", "..\\other", "C:/a", "C:a", "gs://bucket/a", "file:a", "maps/a\0", "\0"),
]


@pytest.mark.parametrize("path", LEAVING)
def test_what_leaves_the_folder_is_refused_wherever_a_manifest_names_it(dataset: Dataset, path: str) -> None:
    """A data set may come from a stranger."""
    manifest = dataset.folder / MANIFEST
    summary = {"folders": ["maps"], "spaces": {}}
    strange: list[dict[str, Any]] = [
        {"files": {**dataset.files, path: File(1, "x")}},
        {"stages": {"fit": Stage("f", summary | {"folders": [path]})}},
        {"stages": {"fit": Stage("f", summary | {"spaces": {path: {}}})}},
    ]
    for changes in strange:
        replace(dataset, **changes).save()
        with pytest.raises(DatasetError, match="don't use it") as caught:
            Dataset.open(dataset.folder)
        assert repr(path) in str(caught.value)
        with pytest.raises(DatasetError, match="don't use it"):
            Dataset.parse(manifest.read_bytes(), dataset.root, str(manifest))


@pytest.mark.parametrize("name", ["image/more", "..", "a/../../b", "/a"])
def test_a_modality_is_no_path(dataset: Dataset, name: str) -> None:
    replace(dataset, stages={"fit": Stage("f", {"folders": ["maps"], "spaces": {name: {}}})}).save()
    with pytest.raises(DatasetError, match="don't use it"):
        Dataset.open(dataset.folder)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.parquet", "...", "ä b"]), min_size=1, max_size=5))
def test_paths_that_pass_stay_within_the_folder_and_no_others_do(parts: list[str]) -> None:
    path = "/".join(parts)
    stays = os.path.normpath(f"/out/{path}") == f"/out/{path}"
    try:
        assert inside(path) == path and stays
    except DatasetError:
        assert not stays


def test_what_this_user_may_not_read_or_write_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / MANIFEST).mkdir(parents=True)  # can't be read as a file, whoever tries
    with pytest.raises(UsageError, match=f"can't read .*{MANIFEST}"):
        Dataset.open(tmp_path / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="can't build into .*: this user may not read and write in it"):
        Dataset.open_or_new(tmp_path / "new")


@pytest.mark.parametrize("stage", STAGES)
def test_a_commit_keeps_the_stages_before_it_and_drops_those_after(dataset: Dataset, stage: str) -> None:
    place = STAGES.index(stage)
    changed = dataset.commit(stage, Stage("new", {"folders": [stage]}), {f"{stage}/a": File(1, "x")}, "what was done")
    assert Dataset.open(dataset.folder) == changed
    assert list(changed.stages) == list(STAGES[: place + 1])
    assert {name: changed.stages[name] for name in STAGES[:place]} == {n: dataset.stages[n] for n in STAGES[:place]}
    owned = {folder for name in STAGES[:place] for folder in dataset.stages[name].summary["folders"]}
    assert set(changed.files) == {p for p in dataset.files if p.split("/")[0] in owned} | {f"{stage}/a"}
    assert list(changed.files) == sorted(changed.files)


def test_a_commit_leaves_the_files_of_later_stages_on_disk(dataset: Dataset) -> None:
    dataset.commit("fit", dataset.stages["fit"], {}, "what was done")
    assert (dataset.folder / "embeddings/text/part-00001.parquet").exists()


def test_a_stage_is_done_with_the_same_fingerprint_and_whole_files(dataset: Dataset) -> None:
    assert dataset.is_done("extract", "e")
    assert not dataset.is_done("extract", "other")
    assert not dataset.is_done("evaluate", "e")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_stage_with_a_missing_or_shortened_file_is_not_done_and_others_are(dataset: Dataset, damage: Any) -> None:
    damage(dataset.folder / "embeddings/text/part-00001.parquet")
    assert [stage for stage, mark in zip(STAGES, "efpi") if dataset.is_done(stage, mark)] == ["extract", "fit", "index"]
    assert dataset.damaged(["embeddings"]) == ["embeddings/text/part-00001.parquet"]


def test_a_stage_that_was_not_run_is_a_usage_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the stage fit of .* has not been run: run `mmembed fit`"):
        build(tmp_path, random_rows(2, ["image"], 6), ["image"], until="extract").modalities("fit")


def test_a_file_is_read_if_it_is_the_one_of_the_manifest(dataset: Dataset) -> None:
    path = "records/part-00000.parquet"
    assert dataset.read(path) == (dataset.folder / path).read_bytes()
    (dataset.folder / path).write_bytes(b"other")
    with pytest.raises(DatasetError, match="its checksum differs"):
        dataset.read(path)
    with pytest.raises(DatasetError, match="not in the manifest"):
        dataset.read("records/part-00007.parquet")


def test_tables_come_in_the_order_of_units_and_of_their_own_folder_alone(dataset: Dataset) -> None:
    found = [(path, table.num_rows) for path, table in dataset.tables("records")]
    assert found == [("records/part-00000.parquet", 4), ("records/part-00001.parquet", 2)]
    assert dataset.below("record") == {}


def test_modalities_have_the_spaces_that_the_stage_left(dataset: Dataset) -> None:
    assert dataset.modalities("extract") == {name: input_space(name, 6) for name in ("image", "text")}


def test_a_file_without_rows_has_none_in_the_manifest(dataset: Dataset) -> None:
    assert describe(dataset.folder, "maps/fit.json") == dataset.files["maps/fit.json"]
    written = json.loads((dataset.folder / MANIFEST).read_text("utf-8"))
    assert "rows" not in written["files"]["maps/fit.json"]
    assert written["files"]["records/part-00000.parquet"] == asdict(dataset.files["records/part-00000.parquet"])


def test_records_come_back_as_the_user_gave_them(dataset: Dataset) -> None:
    ids, records = read_records(dataset, 1)
    assert ids == ["r004", "r005"]
    assert records[0] == {"image": "image/r004", "text": "text/r004"}


def test_a_lock_is_over_though_a_child_of_the_process_lives_on(tmp_path: Path) -> None:
    """Worker processes are forked, and have the open file too."""
    with locked(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        with pytest.raises(UsageError, match="another mmembed"), locked(tmp_path):
            pass
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
