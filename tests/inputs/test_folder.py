from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import contents, read_all, write

from mmembed.errors import ReadError
from mmembed.inputs import folder, open_source


def test_files_of_one_stem_are_a_record(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat.txt", "cat.ogg", "sub/dog.PNG", "sub/dog.Jpg", "a.b.jpg", "notes.docx", "Thumbs.db"):
        write(tmp_path / name, name)
    write(tmp_path / "cat.json", json.dumps({"legs": 4, "text": "a cat", "jpg": "never", "__key__": "never"}))
    found, failures = read_all(tmp_path)
    records = {record.id: record for record in found}
    assert list(records) == ["a.b", "cat", "sub/dog"]
    assert contents(records["cat"], "image") == [b"cat.jpg"] and contents(records["cat"], "audio") == [b"cat.ogg"]
    assert contents(records["cat"], "text") == [b"cat.txt", b"a cat"]
    assert contents(records["sub/dog"], "image") == [b"sub/dog.Jpg", b"sub/dog.PNG"]
    assert records["cat"].metadata == {"legs": 4} and records["sub/dog"].metadata == {"folder": "sub"}
    assert records["sub/dog"].source == "sub/dog"
    assert open_source(str(tmp_path)).ignored() == {".db": 1, ".docx": 1}
    assert not failures


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b"\xff", b'{"a": "\\ud800"}'])
def test_metadata_that_can_not_be_read_cost_their_record_alone(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "cat.jpg"), write(tmp_path / "cat.json", content), write(tmp_path / "dog.jpg")
    found, [failure] = read_all(tmp_path)
    assert [record.id for record in found] == ["dog"]
    assert failure.source == "cat" and failure.message.startswith("cat.json is ")


def test_metadata_alone_are_an_error_that_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "cat.json", "{}"), write(tmp_path / "dog.jpg")
    _, [failure] = read_all(tmp_path)
    assert failure.source == "cat" and "the record has none of" in failure.message


def test_a_name_that_is_no_utf8_is_an_error(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jpg"))).touch()
    write(tmp_path / "a.jpg")
    found, [failure] = read_all(tmp_path)
    assert [record.id for record in found] == ["a"]
    assert "is no UTF-8: rename the file" in failure.message
    failure.source.encode()


def test_a_file_more_changes_the_units_from_its_place_on(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / f"{number}.jpg")
    before = open_source(str(tmp_path)).units(2)
    write(tmp_path / "6.jpg")
    after = open_source(str(tmp_path)).units(2)
    assert before == after[:3] and after[3].place == ("6.jpg",)
    write(tmp_path / "1.json", "{}")
    assert open_source(str(tmp_path)).units(2)[0].fingerprint != before[0].fingerprint


def test_stamps_are_of_all_files_of_a_unit(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"abc"), write(tmp_path / "a.json", "{}")
    source = open_source(str(tmp_path))
    stamps = source.read_stamped(source.units(2)[0]).stamps
    assert {Path(name).name: stamp.bytes for name, stamp in stamps.items()} == {"a.jpg": 3, "a.json": 2}


NAMES = st.text(st.sampled_from("ab.é"), min_size=1, max_size=4).filter(lambda name: name.strip("."))
FILES = st.dictionaries(NAMES, st.binary(max_size=12), max_size=8)


@settings(deadline=None, max_examples=80)
@given(files=FILES, records=st.integers(1, 3))
def test_any_metadata_give_a_record_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], records: int
) -> None:
    place = tmp_path_factory.mktemp("fuzz")
    for name, content in files.items():
        write(place / f"{name}.json", content), write(place / f"{name}.jpg")
    try:
        plans = list(folder.plan(str(place), records))
    except ReadError:
        return
    values = [value for _, _, where in plans for _, value in folder.rows(str(place), "", where)]
    assert len(values) == sum(rows for rows, _, _ in plans) <= len(files)
    assert all(isinstance(value, dict | ReadError) for value in values)
