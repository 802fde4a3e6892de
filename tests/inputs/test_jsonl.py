from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmembed.inputs.lines
from mmembed.errors import UsageError
from mmembed.inputs import open_source
from mmembed.tables import records_table
from mmembed.types import Failure, Media, Record

A, B, C = b'{"id": "a", "text": "A"}', b'{"id": "b", "text": "B"}', b'{"id": "c", "text": "C"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def read(path: Path, content: bytes, records: int = 2) -> tuple[list[Record], list[Failure]]:
    """All of a file, unit by unit; what was read can always be written."""
    path.write_bytes(content)
    source = open_source(str(path))
    parts = [source.read(unit) for unit in source.units(records)]
    found = [record for records, _ in parts for record in records]
    assert records_table(found, {}).num_rows == len(found)
    return found, [failure for _, failures in parts for failure in failures]


def sources(found: list[Record]) -> list[tuple[str, str]]:
    return [(record.id, record.source) for record in found]


def test_a_line_becomes_a_record_with_media_and_metadata(path: Path) -> None:
    line = {"id": "frog", "image": "frog.png", "text": "Frosch", "audio": None, "legs": 4, "tags": ["green", {"a": 1}]}
    found, failures = read(path, json.dumps(line).encode())
    image, text = Media("frog.png", folder=str(path.parent), column="image"), Media(content="Frosch", column="text")
    media = {"image": (image,), "text": (text,)}
    assert found == [Record("frog", media, {"legs": 4, "tags": ["green", {"a": 1}]}, "in.jsonl:1")]
    assert not failures


@pytest.mark.parametrize(
    "content",
    [
        b"\n".join([A, b"", b"  ", B, C]),
        b"\n".join([A, b"", b"\t", B, C, b"", b""]),
        b"\r\n".join([A, b"", b"", B, C, b""]),
    ],
    ids=["no last newline", "empty lines at the end", "CRLF"],
)
def test_lines_are_counted_as_an_editor_does(path: Path, content: bytes) -> None:
    found, failures = read(path, content)
    assert sources(found) == [("a", "in.jsonl:1"), ("b", "in.jsonl:4"), ("c", "in.jsonl:5")]
    assert not failures
    assert sum(unit.records for unit in open_source(str(path)).units(2)) == 3  # blank lines are no records


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x1c", "\u000b", "\u000c"])
def test_signs_that_end_lines_elsewhere_do_not_end_a_record(path: Path, sign: str) -> None:
    text = f"one{sign}two"
    lines = [json.dumps({"id": "a", "text": text}, ensure_ascii=sign < " "), B.decode()]
    found, failures = read(path, "\n".join(lines).encode())
    assert found[0].media["text"][0].content == text
    assert sources(found) == [("a", "in.jsonl:1"), ("b", "in.jsonl:2")]
    assert not failures


def test_a_carriage_return_between_keys_is_a_blank(path: Path) -> None:
    found, failures = read(path, A.replace(b" ", b"\r") + b"\n" + B + b"\n" + C)
    assert sources(found) == [("a", "in.jsonl:1"), ("b", "in.jsonl:2"), ("c", "in.jsonl:3")]
    assert not failures


def test_a_byte_order_mark_is_passed_over(path: Path) -> None:
    assert sources(read(path, b"\xef\xbb\xbf" + A)[0]) == [("a", "in.jsonl:1")]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"id": "x", "text": ', "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "\xff"}', "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "\\ud800"}', "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "\xed\xa0\x80"}', "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "x", "k": "\\udfff"}', "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "x", "k": ' + b"9" * 5000 + b"}", "the line is no JSON in UTF-8"),
        (b'{"id": "x", "text": "x", "k": ' + b"[" * 100 + b"]" * 100 + b"}", "the line is nested more than 100"),
        (b"[" * 100_000, "the line is nested more than 100 levels deep"),
        (b"[1]", "a record is an object of keys, not list"),
        (b"null", "a record is an object of keys, not NoneType"),
        (b'{"id": "", "text": "x"}', "a record needs an id (id) that is a non-empty string, not ''"),
        (b'{"id": 7.5, "text": "x"}', "a record needs an id (id) that is a non-empty string, not 7.5"),
        (b'{"id": true, "text": "x"}', "a record needs an id (id) that is a non-empty string, not True"),
        (b'{"id": "x", "k": 1}', "the record has none of image, text, audio"),
        (b'{"id": "x", "text": null}', "the record has none of image, text, audio"),
    ],
)
def test_a_line_that_is_no_record_is_a_failure_that_names_it(path: Path, line: bytes, message: str) -> None:
    found, [failure] = read(path, b"\n".join([A, line, B]))
    assert sources(found) == [("a", "in.jsonl:1"), ("b", "in.jsonl:3")]
    assert (failure.stage, failure.error, failure.source) == ("read", "ReadError", "in.jsonl:2")
    assert failure.message.startswith(message)
    assert failure.modality == ""


def test_nesting_of_100_levels_and_many_brackets_side_by_side_are_fine(path: Path) -> None:
    deep = b'{"id": "a", "text": "A", "k": ' + b"[" * 99 + b"]" * 99 + b"}"
    wide = b'{"id": "b", "text": "B", "k": [' + b",".join([b"[]"] * 300) + b"]}"
    found, failures = read(path, deep + b"\n" + wide)
    assert [record.id for record in found] == ["a", "b"]
    assert not failures


def test_a_number_too_large_for_a_float_is_missing_as_infinity_is(path: Path) -> None:
    [record], _ = read(path, b'{"id": "a", "text": "A", "x": 1e999, "y": -1e999, "z": [Infinity, 0.5, 1e3]}')
    assert record.metadata == {"x": None, "y": None, "z": [None, 0.5, 1000.0]}


def test_a_unit_is_bounded_in_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmembed.inputs.lines, "UNIT_BYTES", 2 * len(A) + 5)
    lines = [A, B, C, b'{"id": "d", "text": "' + b"D" * 100 + b'"}', b'{"id": "e", "text": "E"}']
    found, failures = read(path, b"\n".join(lines), 10)
    assert [unit.records for unit in open_source(str(path)).units(10)] == [2, 1, 1, 1]
    assert sources(found) == [(id, f"in.jsonl:{number}") for number, id in enumerate("abcde", 1)]
    assert not failures


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("image", 7, "a file is a path"),
        ("image", [["a.png"]], "a file is a path"),
        ("audio", "", "a file needs a path or bytes"),
        ("audio", {"bytes": None, "path": None}, "a file needs a path or bytes"),
        ("audio", {"bytes": "AAAA", "path": "a.wav"}, "a file is a path"),
        ("text", 7, "a text is a string, not int"),
    ],
)
def test_wrong_media_are_failures_and_the_others_of_the_record_stay(
    path: Path, key: str, value: Any, message: str
) -> None:
    good = {"image": "good.png", "text": "good", "audio": "good.wav"}
    [record], [failure] = read(path, json.dumps({"id": "x", **good, key: value}).encode())
    assert set(record.media) == set(good) - {key}
    assert (failure.id, failure.modality) == ("x", key)
    assert failure.message.startswith(message)


def test_an_id_used_twice_is_a_failure_that_names_both_places(path: Path) -> None:
    found, [failure] = read(path, b"\n".join([A, B, A.replace(b"A", b"C")]), records=3)
    assert sources(found) == [("a", "in.jsonl:1"), ("b", "in.jsonl:2")]
    assert failure.source == "in.jsonl:3"
    assert "'a' was used before, at in.jsonl:1" in failure.message


def test_numbers_that_are_none_count_as_missing(path: Path) -> None:
    [record], failures = read(path, b'{"id": "a", "text": "A", "x": NaN, "y": -Infinity}')
    assert record.metadata == {"x": None, "y": None}
    assert not failures


LINES = st.lists(st.sampled_from([b"", b"  ", b"\r", b"{}", b"[1]", b'{"id": "a", "text": "A"}', b'{"id"', b"\xff"]))


@settings(deadline=None, max_examples=60)
@given(lines=LINES, records=st.integers(1, 5), ends=st.booleans())
def test_units_cover_a_file_exactly_and_each_row_has_one_fate(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], records: int, ends: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "units.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    source = open_source(str(path))
    units = source.units(records)
    assert [unit.number for unit in units] == list(range(len(units)))
    end = 0
    for unit in units:
        assert unit.place[0] == end
        end += unit.place[1]
        found, failures = source.read(unit)
        assert len(found) + len(failures) == unit.records <= records
    assert end == path.stat().st_size
    assert sum(unit.records for unit in units) == sum(bool(line.strip()) for line in lines)


def test_appended_lines_leave_earlier_full_units_as_they_are(path: Path) -> None:
    path.write_bytes(b"\n".join([A, B, C, b""]))
    before = open_source(str(path)).units(2)
    with path.open("ab") as file:
        file.write(b'{"id": "d", "text": "D"}\n')
    after = open_source(str(path)).units(2)
    assert after[0] == before[0]
    assert after[1].fingerprint != before[1].fingerprint


def test_a_changed_line_changes_the_fingerprint_of_its_unit_alone(path: Path) -> None:
    path.write_bytes(b"\n".join([A, B, C, b""]))
    before = [unit.fingerprint for unit in open_source(str(path)).units(1)]
    path.write_bytes(b"\n".join([A, B.replace(b"B", b"X"), C, b""]))
    after = [unit.fingerprint for unit in open_source(str(path)).units(1)]
    assert [old == new for old, new in zip(before, after)] == [True, False, True]


def test_a_reader_travels_to_workers(path: Path) -> None:
    path.write_bytes(A)
    source = open_source(str(path))
    [unit] = source.units(1)
    assert pickle.loads(pickle.dumps(source)).read(unit) == source.read(unit)


@pytest.mark.parametrize(
    "name, message", [("missing.jsonl", "there is no such file"), ("in.doc", "can't tell the form")]
)
def test_what_is_no_manifest_is_a_usage_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "in.doc").touch()
    with pytest.raises(UsageError, match=message):
        open_source(str(tmp_path / name))
