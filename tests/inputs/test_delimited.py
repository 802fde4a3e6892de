from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read_all, texts, write

from mmembed.errors import ReadError, UsageError
from mmembed.inputs import delimited, lines, open_source

HEADER = b"id,text,n\n"


def test_a_row_becomes_a_record_by_the_names_of_the_header(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", 'id,image,text,n\na,a.png,"one, two",1\nb,,"she said ""hi""",\n')
    [first, second], failures = read_all(tmp_path / "in.csv")
    assert (first.id, first.media["image"][0].path, texts(first), first.metadata) == (
        "a",
        "a.png",
        ["one, two"],
        {"n": "1"},
    )
    assert (second.id, texts(second), second.metadata) == ("b", ['she said "hi"'], {"n": None})
    assert list(second.media) == ["text"]
    assert [first.source, second.source] == ["in.csv:2", "in.csv:3"]
    assert not failures


@pytest.mark.parametrize("name", ["in.tsv", "in.tsv.gz", "in.csv.gz", "IN.CSV"])
def test_the_ending_tells_the_sign_between_fields_and_the_packing(tmp_path: Path, name: str) -> None:
    content = "\ufeffid\ttext\na\tA,B\n" if "tsv" in name else '\ufeffid,text\na,"A,B"\n'
    write(tmp_path / name, gzip.compress(content.encode()) if name.endswith("gz") else content)
    [record], failures = read_all(tmp_path / name)
    assert (record.id, texts(record)) == ("a", ["A,B"])
    assert not failures


def test_fields_may_hold_line_breaks_and_lines_are_counted_by_where_a_row_begins(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", 'id,text\r\na,"one\r\ntwo\n\nfive"\r\n\r\nb,B\r\n"c",C')
    found, failures = read_all(tmp_path / "in.csv", records=1)
    assert [(record.id, record.source) for record in found] == [("a", "in.csv:2"), ("b", "in.csv:7"), ("c", "in.csv:8")]
    assert texts(found[0]) == ["one\r\ntwo\n\nfive"]
    assert not failures


@pytest.mark.parametrize(
    "row, message",
    [
        (b"x,X", "the row has 2 fields, but the header names 3 columns"),
        (b"x,X,1,2", "the row has 4 fields"),
        (b"x,\xff\xfe,1", "the row is no UTF-8 at its byte 2"),
        (b'x,"X"Y,1', "the row is not well quoted"),
        (b",X,1", ""),
    ],
)
def test_a_broken_row_is_a_failure_with_its_line_and_the_others_stay(tmp_path: Path, row: bytes, message: str) -> None:
    write(tmp_path / "in.csv", HEADER + b"a,A,1\n" + row + b"\nb,B,2\n")
    found, failures = read_all(tmp_path / "in.csv")
    assert [record.id for record in found if record.id in "ab"] == ["a", "b"]
    if message:
        [failure] = failures
        assert failure.source == "in.csv:3"
        assert failure.message.startswith(message)
    else:
        assert len(found) == 3  # an empty id is none: the content gives it


def test_a_quote_that_is_never_closed_costs_its_line_alone(tmp_path: Path) -> None:
    rows = b"".join(b"r%d,text,1\n" % number for number in range(50))
    write(tmp_path / "in.csv", HEADER + b'a,"never closed,1\n' + rows)
    found, [failure] = read_all(tmp_path / "in.csv", records=7)
    assert len(found) == 50
    assert failure.source == "in.csv:2"


def test_a_field_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_FIELD", 1000)
    write(tmp_path / "in.csv", HEADER + b'a,"' + b"word\n" * 500 + b'b,B,"x"\n')
    found, failures = read_all(tmp_path / "in.csv", records=100)
    assert [record.id for record in found] == ["b"]
    assert len(failures) == 500 and failures[0].source == "in.csv:2"


@pytest.mark.parametrize("content", [b"", b"id,id\na,b\n", b"id,,text\n", b'"id\n'])
def test_a_file_without_a_usable_header_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "in.csv", content)
    with pytest.raises(UsageError, match="in.csv|holds no"):
        open_source(str(tmp_path / "in.csv")).units(2)


def test_appended_rows_leave_earlier_full_units_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", HEADER + b"a,A,1\nb,B,2\nc,C,3\n")
    before = open_source(str(path)).units(2)
    with path.open("ab") as file:
        file.write(b"d,D,4\n")
    after = open_source(str(path)).units(2)
    assert after[0] == before[0] and after[1].fingerprint != before[1].fingerprint
    write(path, path.read_bytes().replace(b"id,text,n", b"id,text,m"))
    assert not {unit.fingerprint for unit in open_source(str(path)).units(2)} & {unit.fingerprint for unit in after}


def test_a_truncated_archive_gives_its_lines_and_says_where_it_ends(tmp_path: Path) -> None:
    rows = b"".join(b"r%d,%d,1\n" % (number, number**9) for number in range(3000))
    packed = gzip.compress(HEADER + rows)
    write(tmp_path / "in.csv.gz", packed[: len(packed) // 2])
    source = open_source(str(tmp_path / "in.csv.gz"))
    units = source.units(100)
    assert len(units) > 2 and units[-1].form == "broken"
    [failure] = source.read(units[-1])[1]
    assert "can't read" in failure.message and "to its end" in failure.message
    found = [record.id for unit in units[:-1] for record in source.read(unit)[0]]
    assert found == [f"r{number}" for number in range(len(found))]
    assert len(found) % 100  # the rows right before the end count too


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=6)


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(st.tuples(FIELDS, FIELDS), max_size=12), records=st.integers(1, 5))
def test_what_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], records: int
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [("id", "text", "k"), *((f"r{n}", *row) for n, row in enumerate(rows))]
    )
    path = write(tmp_path_factory.getbasetemp() / "back.csv", buffer.getvalue())
    source = open_source(str(path))
    parts = [source.read(unit) for unit in source.units(records)]
    found = {record.id: record for records, _ in parts for record in records}
    lost = sum(len(failures) for _, failures in parts)
    assert len(found) + lost == len(rows)
    for number, (text, value) in enumerate(rows):
        if f"r{number}" in found:
            record = found[f"r{number}"]
            assert texts(record) == [text] and record.metadata == {"k": value or None}
        else:
            assert not text  # a record without any medium


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 400), cut=st.integers(0, 30), inserted=st.binary(max_size=10), records=st.integers(1, 9))
def test_no_damage_does_more_than_cost_rows(
    tmp_path_factory: pytest.TempPathFactory, place: int, cut: int, inserted: bytes, records: int
) -> None:
    good = HEADER + b"".join(b'r%d,"text, %d\nmore",%d\n' % (n, n, n) for n in range(15))
    path = write(tmp_path_factory.getbasetemp() / "fuzz.csv", good[:place] + inserted + good[place + cut :])
    try:
        plans = list(delimited.plan(str(path), records))
    except ReadError:
        return
    for rows, _, where in plans:
        assert len(list(delimited.rows(str(path), "fuzz.csv", where))) == rows


def test_many_broken_rows_cost_no_more_than_their_lines(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", "id,text\n" + "".join(f'{number},"a"b\n' for number in range(20_000)) + "ok,fine\n")
    plans = list(delimited.plan(str(tmp_path / "in.csv"), 256))
    assert sum(rows for rows, _, _ in plans) == 20_001
    last = list(delimited.rows(str(tmp_path / "in.csv"), "in.csv", plans[-1][2]))
    assert last[-1] == ("in.csv:20002", {"id": "ok", "text": "fine"})


def test_a_line_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 10_000)
    write(tmp_path / "in.csv.gz", gzip.compress(HEADER + b"a,A,1\n" + b"x" * 10_000_000))
    units = open_source(str(tmp_path / "in.csv.gz")).units(1)
    assert [unit.form for unit in units] == ["delimited", "broken"]
    assert "a line has more than 10,000 bytes" in units[1].place[0]


@pytest.mark.parametrize(
    "content",
    [b"id,text,\xff\na,A,1\n", "id,text\na,A\n".encode("utf-16"), b"\nid,text\na,A\n", b"\xef\xbb\xbf"],
)
def test_a_header_of_another_encoding_or_without_names_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "in.csv", content)
    with pytest.raises(ReadError, match="is not UTF-8: convert it|first line .* is empty|names a column twice"):
        list(delimited.plan(str(tmp_path / "in.csv"), 10))


def test_quotes_that_never_close_in_any_row_take_no_time_by_the_square(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", "id,text\n" + 'x","y\n' * 30_000)
    plans = list(delimited.plan(str(tmp_path / "in.csv"), 256))
    assert sum(rows for rows, _, _ in plans) == 30_000
    for rows, _, where in plans[:3]:
        found = list(delimited.rows(str(tmp_path / "in.csv"), "in.csv", where))
        assert len(found) == rows and all(isinstance(values, ReadError) for _, values in found)


def test_a_row_of_tabs_is_a_row(tmp_path: Path) -> None:
    write(tmp_path / "in.tsv", "id\ttext\na\tA\n\t\n")
    found, [failure] = read_all(tmp_path / "in.tsv")
    assert [record.id for record in found] == ["a"] and failure.source == "in.tsv:3"


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    write(tmp_path / "IN.TSV.GZ", gzip.compress(b"id\ttext\na\tA\n"))
    [record], failures = read_all(tmp_path / "IN.TSV.GZ")
    assert texts(record) == ["A"] and not failures
