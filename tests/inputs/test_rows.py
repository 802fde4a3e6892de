from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from reading import read_all, texts, write

from mmembed.errors import UsageError
from mmembed.inputs import Choice, open_source
from mmembed.inputs.rows import MANIFEST_COLUMNS, Rows


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    return write(folder / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_columns_are_those_that_the_user_names(tmp_path: Path) -> None:
    row = {"key": 7, "picture": "a.png", "de": "Frosch", "en": "frog", "text": "mine", "id": "x"}
    choice = Choice("key", {"image": ("picture",), "text": ("de", "en"), "audio": ()})
    [record], failures = read_all(manifest(tmp_path, row), choice=choice)
    assert (record.id, texts(record), record.media["image"][0].path) == ("7", ["Frosch", "frog"], "a.png")
    assert record.metadata == {"text": "mine", "id": "x"}
    assert [media.column for media in record.media["text"]] == ["de", "en"]
    assert not failures


def test_a_list_holds_several_captions_and_a_wrong_one_is_a_failure_of_its_own(tmp_path: Path) -> None:
    [record], failures = read_all(manifest(tmp_path, {"id": "a", "text": ["one", 2, None, "three", [4]]}))
    assert texts(record) == ["one", "three"]
    assert [(failure.modality, failure.medium) for failure in failures] == [("text", -2), ("text", -4)]


def test_a_column_that_no_row_has_is_told_before_anything_is_done(tmp_path: Path) -> None:
    source = open_source(str(manifest(tmp_path, {"id": "a", "text": "A"})), Choice(media_columns={"text": ("txt",)}))
    with pytest.raises(UsageError, match="none of the first 1 records has the column 'txt'; they have id, text"):
        source.check(source.units(5)[0])
    fine = open_source(str(tmp_path / "in.jsonl"), Choice("id", {"text": ("text",)}))
    fine.check(fine.units(5)[0])


@pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "a/../../x.png", "..", "a/b/../../../x"])
def test_a_path_that_leaves_the_manifests_folder_is_refused_unless_allowed(tmp_path: Path, path: str) -> None:
    file = manifest(tmp_path / "folder", {"id": "a", "image": path, "text": "A"})
    [record], [failure] = read_all(file)
    assert list(record.media) == ["text"]
    assert failure.message == f"{path} lies outside the folder of its manifest: allow that with --allow-outside"
    [record], failures = read_all(file, choice=Choice(allow_outside=True))
    assert record.media["image"][0].path == path and not failures


@pytest.mark.parametrize("path", ["x.png", "a/../x.png", "./x.png", "..x/y.png", "INSIDE"])
def test_a_path_that_stays_in_the_folder_is_fine(tmp_path: Path, path: str) -> None:
    path = str(tmp_path / "x.png") if path == "INSIDE" else path
    [record], failures = read_all(manifest(tmp_path, {"id": "a", "image": path}))
    assert record.media["image"][0].path == path and not failures


def test_urls_are_no_paths_that_leave_a_folder(tmp_path: Path) -> None:
    urls = ["https://example.org/../a.png", "gs://bucket/a.png"]
    [record], failures = read_all(manifest(tmp_path, {"id": "a", "image": urls}))
    assert [media.location for media in record.media["image"]] == urls and not failures


def test_without_an_id_it_is_a_hash_of_the_content_wherever_that_lies(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        write(tmp_path / name / "x.png", b"picture")
    write(tmp_path / "y.png", b"other")
    rows: list[dict[str, Any]] = [{"image": "a/x.png", "text": "A"}, {"image": "b/c/x.png", "text": "A", "n": 1}]
    rows += [
        {"image": "y.png", "text": "A"},
        {"image": "a/x.png", "text": "B"},
        {"image": "missing.png"},
        {"text": "A"},
    ]
    found, failures = read_all(manifest(tmp_path, *rows), records=1)
    ids = [record.id for record in found]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5 and all(len(id) == 32 for id in ids)
    assert not failures
    assert [record.id for record in read_all(tmp_path / "in.jsonl", records=10)[0]] == list(dict.fromkeys(ids))


def test_an_id_column_that_is_named_must_be_filled(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"key": "a", "text": "A"}, {"text": "B"}, {"key": None, "text": "C"}]
    found, failures = read_all(manifest(tmp_path, *rows), choice=Choice("key"))
    assert [record.id for record in found] == ["a"]
    assert [failure.message for failure in failures] == [
        "a record needs an id (key) that is a non-empty string, not None"
    ] * 2


def test_bytes_in_a_row_are_media(tmp_path: Path) -> None:
    row = {"id": "a", "image": b"picture", "audio": [{"bytes": b"sound", "path": "s.wav"}]}
    [record], failures = Rows(MANIFEST_COLUMNS, str(tmp_path)).parse([("in:1", row)])
    assert (record.media["image"][0].content, record.media["audio"][0].content) == (b"picture", b"sound")
    assert not failures


def test_metadata_are_what_json_has() -> None:
    row = {
        "id": "a",
        "text": "A",
        "day": datetime.date(2024, 2, 29),
        "raw": b"abc",
        "no": float("nan"),
        "list": [{1: b"x"}],
    }
    [record], _ = Rows(MANIFEST_COLUMNS, "/").parse([("in:1", row)])
    assert record.metadata == {"day": "2024-02-29", "raw": "YWJj", "no": None, "list": [{1: "eA=="}]}


def test_a_sample_is_the_same_records_in_any_order_and_about_its_share(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "text": "t"} for number in range(2000)]
    choice = Choice(sample=0.3)
    forth, _ = read_all(manifest(tmp_path, *rows), 100, choice)
    back, _ = read_all(manifest(tmp_path, *reversed(rows)), 64, choice)
    assert {record.id for record in forth} == {record.id for record in back}
    assert 540 < len(forth) < 660
    broken = write(tmp_path / "broken.jsonl", "{\n" * 1000)
    assert 240 < len(read_all(broken, 100, choice)[1]) < 360  # lines that are no records are sampled too
    more, _ = read_all(tmp_path / "in.jsonl", 100, Choice(sample=0.5))
    assert {record.id for record in forth} < {record.id for record in more}


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 100])
def test_a_limit_is_the_first_rows_and_leaves_whole_units_as_they_are(tmp_path: Path, limit: int) -> None:
    file = manifest(tmp_path, *({"id": f"r{number}", "text": "t"} for number in range(10)))
    found, _ = read_all(file, 4, Choice(limit=limit))
    assert [record.id for record in found] == [f"r{number}" for number in range(min(limit, 10))]
    whole, cut = (open_source(str(file), Choice(limit=count)).units(4) for count in (0, limit))
    assert [a == b for a, b in zip(whole, cut)].count(True) == min(limit, 10) // 4 + (limit >= 10)


def test_hidden_boxes_go_with_the_pictures_of_a_record(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": ["a.png", "b.png"], "text": "A", "faces": [[1, 2, 3, 4]]},
        {"id": "b", "image": "a.png", "faces": []},
        {"id": "c", "image": "a.png", "faces": None},
        {"id": "d", "image": "a.png"},
        {"id": "e", "image": "a.png", "faces": "wrong"},
        {"id": "f", "text": "F", "faces": [[1, 2, 3, 4]]},
    ]
    records, failures = read_all(manifest(tmp_path, *rows), choice=Choice(blur="faces"))
    blur = {record.id: [media.blur for media in record.media.get("image", ())] for record in records}
    boxes = "[[1, 2, 3, 4]]"
    assert blur == {"a": [boxes, boxes], "b": [""], "c": [""], "d": [""], "e": ['"wrong"'], "f": []}
    assert not failures and list(records[-1].media) == ["text"] and records[0].media["text"][0].blur == ""
    assert records[0].metadata == {"faces": [[1, 2, 3, 4]]}
