from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import contents, read_all, texts, write

from mmembed.errors import UsageError
from mmembed.inputs import Choice, open_source

LINE = '{"id": "%s", "text": "%s"}\n'


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Four files of lines, three of them numbered, one in a folder of its own."""
    for name in ("part-00000", "part-00001", "part-00002", "sub/deep"):
        write(tmp_path / f"{name}.jsonl", LINE % (name, name) * 1)
    return tmp_path


@pytest.mark.parametrize(
    "pattern, ids",
    [
        ("part-00001.jsonl", ["part-00001"]),
        ("part-*.jsonl", ["part-00000", "part-00001", "part-00002"]),
        ("part-{00000..00002}.jsonl", ["part-00000", "part-00001", "part-00002"]),
        ("{part-00002,sub/deep}.jsonl", ["part-00002", "sub/deep"]),
        ("**/*.jsonl", ["part-00000", "part-00001", "part-00002", "sub/deep"]),
        ("part-0000[12].jsonl", ["part-00001", "part-00002"]),
        ("", ["part-00000", "part-00001", "part-00002", "sub/deep"]),
    ],
)
def test_a_location_names_files_in_order(several: Path, pattern: str, ids: list[str]) -> None:
    found, failures = read_all(several / pattern)
    assert [record.id for record in found] == ids
    assert not failures


def test_sources_tell_files_apart_that_have_one_name(several: Path) -> None:
    write(several / "sub/part-00000.jsonl", LINE % ("x", "x"))
    found, _ = read_all(several / "**/part-00000.jsonl")
    assert [record.source for record in found] == ["part-00000.jsonl:1", "sub/part-00000.jsonl:1"]


def test_media_are_relative_to_their_own_manifest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "m.jsonl", json.dumps({"id": name, "image": "x.png"}))
        write(tmp_path / name / "x.png", name)
    found, _ = read_all(tmp_path / "*/m.jsonl")
    assert [contents(record, "image") for record in found] == [[b"a"], [b"b"]]


def test_a_relative_location_is_found_from_anywhere(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(several)
    source = open_source("part-00000.jsonl")
    monkeypatch.chdir("/")
    assert source.read(source.units(2)[0])[0][0].id == "part-00000"


def test_signs_of_patterns_in_a_name_are_meant(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "b{1,2}.jsonl", "c*.jsonl"):
        write(tmp_path / name, LINE % (name, "t"))
        assert [record.id for record in read_all(tmp_path / name)[0]] == [name]


@pytest.mark.parametrize(
    "location, message",
    [
        ("missing.jsonl", "can't read the input .*missing.jsonl: there is no such file or folder"),
        ("missing-*.jsonl", "no file is named by .*missing-"),
        ("part-{00000..00003}.jsonl", "can't read the input .*part-00003.jsonl: there is no such file"),
        ("part-{00000..", "braces .* don't match|there is no such file"),
        ("letter.doc", "can't tell the form of .*letter.doc: a manifest's name ends in .jsonl"),
        ("empty", "holds neither media nor a manifest"),
        ("mixed", r"holds files of several forms \(delimited, jsonl\): name those that you mean"),
        ("broken", r"is no Parquet file"),
    ],
)
def test_what_can_not_be_read_is_one_line(several: Path, location: str, message: str) -> None:
    (several / "empty").mkdir()
    for name, content in (
        ("letter.doc", b""),
        ("broken/a.parquet", b"PAR1"),
        ("mixed/a.jsonl", b""),
        ("mixed/b.csv", b""),
    ):
        write(several / name, content)
    with pytest.raises(UsageError, match=message) as caught:
        open_source(str(several / location)).units(2)
    assert "\n" not in str(caught.value)


def test_one_broken_file_among_many_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    for name in "abc":
        pq.write_table(pa.table({"id": [name, f"{name}2"], "text": ["t", "t"]}), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    write(tmp_path / "b.parquet", whole[:-20])
    found, [failure] = read_all(tmp_path)
    assert [record.id for record in found] == ["a", "a2", "c", "c2"]
    assert failure.source == "b.parquet" and "is no Parquet file" in failure.message
    broken = open_source(str(tmp_path)).units(2)
    write(tmp_path / "b.parquet", whole)
    mended = open_source(str(tmp_path)).units(2)
    assert [old.fingerprint == new.fingerprint for old, new in zip(broken, mended)] == [True, False, True]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_folder_of_hugging_face_names_its_files_in_its_metadata(tmp_path: Path, form: str) -> None:
    rows = [
        {"file_name": "cats/1.png", "text": "a cat", "sound_file_name": "1.wav", "legs": 4},
        {"file_name": "2.jpg", "text": None, "sound_file_name": None, "legs": 2},
        {"file_name": "3.exe", "text": "what", "sound_file_name": None, "legs": 0},
    ]
    for name in ("cats/1.png", "2.jpg", "1.wav", "unnamed.png"):
        write(tmp_path / "train" / name, name)
    path = tmp_path / f"train/metadata.{form}"
    if form == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        write(path, "file_name,text,sound_file_name,legs\ncats/1.png,a cat,1.wav,4\n2.jpg,,,2\n3.exe,what,,0\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found, [failure] = read_all(tmp_path)
    assert [record.id for record in found] == ["cats/1.png", "2.jpg"]
    assert contents(found[0], "image") == [b"cats/1.png"] and contents(found[0], "audio") == [b"1.wav"]
    assert texts(found[0]) == ["a cat"]
    assert [str(record.metadata["legs"]) for record in found] == ["4", "2"]
    assert "file_name" not in found[0].metadata
    assert failure.message.startswith("file_name is '3.exe': it must name a file that ends in one of jpg")


def test_elsewhere_a_file_name_is_metadata(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", '{"id": "a", "text": "A", "file_name": "x.png"}')
    [record], _ = read_all(tmp_path / "in.jsonl")
    assert record.metadata == {"file_name": "x.png"} and list(record.media) == ["text"]


def test_media_beside_manifests_are_not_guessed_at(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINE % ("a", "A"))
    write(tmp_path / "README.txt", "about")
    with pytest.raises(UsageError, match=r"media and manifests \(a.jsonl, for instance\): name the manifest"):
        open_source(str(tmp_path))


def test_a_state_json_among_media_is_metadata_and_a_folder_may_have_braces(tmp_path: Path) -> None:
    for name in ("state.jpg", "clip.flac", "clip.frames/x.jpg", "clip.jpg"):
        write(tmp_path / "d{1,2}" / name, name)
    write(tmp_path / "d{1,2}/state.json", "{}")
    found, failures = read_all(tmp_path / "d{1,2}")
    assert [record.id for record in found] == ["clip", "state", "clip.frames/x"]
    assert list(found[0].media) == ["image", "audio"] and not failures


def test_text_files_that_are_named_are_read(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,key\na.txt,k\nb.txt,\n")
    write(tmp_path / "a.txt", "a text")
    found, _ = read_all(tmp_path)
    assert contents(found[0], "text") == [b"a text"] and found[0].id == "a.txt"
    found, [failure] = read_all(tmp_path, choice=Choice("key"))
    assert [record.id for record in found] == ["k"] and failure.source == "metadata.csv:3"


def test_a_file_that_two_patterns_name_is_read_once(several: Path) -> None:
    found, failures = read_all(several / "{part-00000,part-*}.jsonl")
    assert [record.id for record in found] == ["part-00000", "part-00001", "part-00002"] and not failures
