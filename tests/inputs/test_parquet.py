from __future__ import annotations

import datetime
import decimal
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmembed.inputs.parquet
from mmembed.errors import ReadError, UsageError
from mmembed.inputs import Source, open_source
from mmembed.tables import records_table
from mmembed.types import Failure, Media, Record

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], row_group: int = 100) -> Source:
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return open_source(str(path))


def read(source: Source, records: int = 100) -> tuple[list[Record], list[Failure]]:
    parts = [source.read(unit) for unit in source.units(records)]
    return [record for part in parts for record in part[0]], [failure for part in parts for failure in part[1]]


def test_paths_and_structs_become_media(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"png", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None], FILE)
    sounds = pa.array([{"bytes": b"wav", "path": None}, None, None], FILE)
    columns = {"id": ["a", "b", "c"], "image": images, "audio": sounds, "text": [None, "B", "C"], "n": [1, 2, None]}
    found, failures = read(write(tmp_path / "in.parquet", columns))
    folder = str(tmp_path)
    assert found == [
        Record(
            "a",
            {
                "image": (Media("a.png", b"png", folder, column="image"),),
                "audio": (Media("", b"wav", folder, column="audio"),),
            },
            {"n": 1},
            "in.parquet:row 0",
        ),
        Record(
            "b",
            {
                "image": (Media("b.png", None, folder, column="image"),),
                "text": (Media(content="B", column="text"),),
            },
            {"n": 2},
            "in.parquet:row 1",
        ),
        Record("c", {"text": (Media(content="C", column="text"),)}, {"n": None}, "in.parquet:row 2"),
    ]
    assert not failures


def test_a_column_of_strings_holds_paths(tmp_path: Path) -> None:
    [record], _ = read(write(tmp_path / "in.parquet", {"id": ["a"], "image": ["pictures/a.png"]}))
    assert record.media["image"][0].location == str(tmp_path / "pictures/a.png")


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 40), row_group=st.integers(1, 17), records=st.integers(1, 50))
def test_units_cut_row_groups_and_give_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, row_group: int, records: int
) -> None:
    columns = {"id": pa.array([f"r{row}" for row in range(rows)], pa.string()), "text": ["t"] * rows}
    source = write(tmp_path_factory.getbasetemp() / "units.parquet", columns, row_group)
    units = source.units(records)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert all(len(source.read(unit)[0]) == unit.records <= records for unit in units)
    found, failures = read(source, records)
    assert [(record.id, record.source) for record in found] == [
        (f"r{row}", f"units.parquet:row {row}") for row in range(rows)
    ]
    assert not failures


def test_a_unit_within_a_row_group_is_read_alone(tmp_path: Path) -> None:
    ids = [f"r{row}" for row in range(20)]
    source = write(tmp_path / "in.parquet", {"id": ids, "text": ids}, row_group=7)
    units = source.units(3)
    assert [unit.place for unit in units] == [
        (0, 1, 0, 0, 3), (0, 1, 3, 3, 3), (0, 1, 6, 6, 1),
        (1, 1, 0, 7, 3), (1, 1, 3, 10, 3), (1, 1, 6, 13, 1),
        (2, 1, 0, 14, 3), (2, 1, 3, 17, 3),
    ]  # fmt: skip
    found, _ = pickle.loads(pickle.dumps(source)).read(units[4])
    assert [record.id for record in found] == ["r10", "r11", "r12"]


def test_small_row_groups_are_read_together(tmp_path: Path) -> None:
    ids = [f"r{row}" for row in range(40)]
    source = write(tmp_path / "in.parquet", {"id": ids, "text": ids}, row_group=1)
    assert [unit.place for unit in source.units(16)] == [(0, 16, 0, 0, 16), (16, 16, 0, 16, 16), (32, 8, 0, 32, 8)]
    found, _ = source.read(source.units(16)[1])
    assert [record.id for record in found] == ids[16:32]


def test_a_unit_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = pa.array([{"bytes": random.bytes(1000), "path": None} for _ in range(30)], FILE)
    source = write(tmp_path / "in.parquet", {"id": [f"r{row}" for row in range(30)], "image": images}, row_group=20)
    assert [unit.records for unit in source.units(100)] == [30]
    monkeypatch.setattr(mmembed.inputs.parquet, "UNIT_BYTES", 7500)
    counts = [unit.records for unit in source.units(100)]
    assert sum(counts) == 30 and max(counts) in (6, 7)  # of a good 1,000 bytes each
    assert [record.id for record in read(source)[0]] == [f"r{row}" for row in range(30)]
    monkeypatch.setattr(mmembed.inputs.parquet, "UNIT_BYTES", 1)
    assert [unit.records for unit in source.units(100)] == [1] * 30


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2**62, 3], pa.timestamp("us")),
        pa.array([1, 2**62, 3], pa.duration("s")),
        pa.array([1, 10**7, 3], pa.date32()),
        pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")),
        pa.array([[1], [2**62], [3]], pa.list_(pa.timestamp("ns"))),
    ],
    ids=["timestamp", "duration", "date", "text", "nested nanoseconds"],
)
def test_a_value_that_python_can_not_hold_is_a_failure_of_its_row_alone(tmp_path: Path, column: pa.Array) -> None:
    found, failures = read(write(tmp_path / "in.parquet", {"id": ["a", "b", "c"], "text": ["t"] * 3, "when": column}))
    assert "a" in {record.id for record in found}
    assert {record.id for record in found} | {"b"} == {"a", "b", "c"}
    assert [failure.source for failure in failures] in ([], ["in.parquet:row 1"])
    assert len(found) + len(failures) == 3


def test_a_decimal_that_python_can_not_hold_is_an_error_of_its_row() -> None:
    number = pa.py_buffer(np.array([15, 0], np.int64))
    decimals = pa.Array.from_buffers(pa.decimal128(9, 10**6), 1, [None, number])
    [error] = mmembed.inputs.parquet.values(pa.record_batch({"price": decimals}))
    assert isinstance(error, ReadError) and "a value of the row can't be read" in str(error)


DAY = datetime.date(2024, 2, 29)


@pytest.mark.parametrize(
    "type, value, metadata",
    [
        (pa.date32(), DAY, "2024-02-29"),
        (pa.timestamp("ns", "UTC"), datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), "2024-02-29T00:00:00+00:00"),
        (pa.time64("us"), datetime.time(12, 30), "12:30:00"),
        (pa.duration("s"), datetime.timedelta(hours=1), "1:00:00"),
        (pa.decimal128(5, 2), decimal.Decimal("1.50"), "1.50"),
        (pa.binary(), b"abc", "YWJj"),
        (pa.list_(pa.date32()), [DAY], ["2024-02-29"]),
        (pa.struct([("day", pa.date32())]), {"day": DAY}, {"day": "2024-02-29"}),
        (pa.map_(pa.string(), pa.date32()), [("day", DAY)], [["day", "2024-02-29"]]),
        (FILE, {"bytes": b"abc", "path": "a"}, "a"),
        (FILE, {"bytes": b"abc", "path": None}, None),
        (pa.binary(), b"fLaC" + bytes(99), None),
        (pa.list_(pa.binary()), [b"\xff\xd8\xff" + bytes(99), b"abc"], [None, "YWJj"]),
        (pa.dictionary(pa.int8(), pa.string()), "frog", "frog"),
        (pa.int64(), 2**62, 2**62),
        (pa.bool_(), True, True),
    ],
    ids=str,
)
def test_metadata_become_values_that_json_has(tmp_path: Path, type: pa.DataType, value: Any, metadata: Any) -> None:
    source = write(tmp_path / "in.parquet", {"id": ["a"], "text": ["A"], "value": pa.array([value], type)})
    [record], failures = read(source)
    assert record.metadata == {"value": metadata}
    assert records_table([record], {}).num_rows == 1
    assert not failures


@pytest.mark.parametrize("ids", [pa.array([7.5]), pa.array([b"a"]), pa.array([""])])
def test_an_id_that_is_no_string_is_a_failure_that_names_the_row(tmp_path: Path, ids: pa.Array) -> None:
    found, [failure] = read(write(tmp_path / "in.parquet", {"id": ids, "text": ["A"]}))
    assert not found
    assert failure.source == "in.parquet:row 0"
    assert failure.message.startswith("a record needs an id")


def test_media_of_another_type_are_failures_and_the_others_stay(tmp_path: Path) -> None:
    columns = {"id": ["a"], "text": pa.array([b"A"]), "image": ["a.png"], "audio": pa.array([{"x": 1.0}])}
    [record], failures = read(write(tmp_path / "in.parquet", columns))
    assert list(record.media) == ["image"]
    assert {(failure.id, failure.modality) for failure in failures} == {("a", "text"), ("a", "audio")}


def test_rows_and_their_number_decide_a_fingerprint(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "text": ["A", "B"]}
    path = tmp_path / "in.parquet"
    before, same, other = (
        write(path, values).units(1) for values in [columns, columns, {**columns, "text": ["A", "X"]}]
    )
    assert before == same
    assert not {unit.fingerprint for unit in before} & {unit.fingerprint for unit in other}
    assert len({unit.fingerprint for unit in before}) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a Parquet file at all", b'{"id": "a"}\n' * 100])
def test_a_file_that_is_no_parquet_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no Parquet file"):
        open_source(str(path)).units(10)


def test_a_file_cut_short_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    source = write(path, {"id": ["a"], "text": ["A"]})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is no Parquet file"):
        source.units(10)


def test_several_captions_and_plain_bytes_are_media(tmp_path: Path) -> None:
    columns = {"id": ["a"], "text": [["one", "two"]], "image": pa.array([b"png"], pa.binary())}
    columns["audio"] = pa.array([[{"bytes": b"wav", "path": None}]], pa.list_(FILE))
    [record], failures = read(write(tmp_path / "in.parquet", columns))
    assert {name: [media.content for media in items] for name, items in record.media.items()} == {
        "image": [b"png"],
        "text": ["one", "two"],
        "audio": [b"wav"],
    }
    assert not failures


@pytest.mark.parametrize("records", [1, 2, 100])
def test_texts_of_every_arrow_type_are_texts(tmp_path: Path, records: int) -> None:
    columns = {
        "id": pa.array(["a", "b", "c"], pa.large_string()),
        "text": pa.array(["A", "B", "A"]).dictionary_encode(),
        "image": pa.array([b"1", b"2", b"3"], pa.large_binary()),
        "audio": pa.nulls(3),
        "more": pa.array([["x"], None, []], pa.large_list(pa.string())),
    }
    found, failures = read(write(tmp_path / "in.parquet", columns), records)
    assert [record.id for record in found] == ["a", "b", "c"]
    assert [record.media["text"][0].content for record in found] == ["A", "B", "A"]
    assert [record.media["image"][0].content for record in found] == [b"1", b"2", b"3"]
    assert all("audio" not in record.media for record in found)
    assert [record.metadata["more"] for record in found] == [["x"], None, []]
    assert not failures


def test_a_damaged_page_costs_the_rows_of_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    ids = [f"r{row}" for row in range(30)]
    columns = {"id": ids, "text": [f"a text of row {row:02}" for row in range(30)]}
    pq.write_table(
        pa.table(columns), path, row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True,
        write_statistics=False,
    )  # fmt: skip
    data = path.read_bytes()
    assert data.count(b"a text of row 15") == 1
    path.write_bytes(data.replace(b"a text of row 15", b"A text of row 15"))  # a letter, which only a checksum shows
    found, failures = read(open_source(str(path)), 10)
    assert [record.id for record in found] == ids[:10] + ids[20:]
    assert [failure.source for failure in failures] == [f"in.parquet:row {row}" for row in range(10, 20)]
    assert all("can't read in.parquet from here" in failure.message for failure in failures)


def test_a_footer_of_nested_columns_without_end_is_refused(tmp_path: Path) -> None:
    """Thrift by hand: pyarrow writes no such schema, and its own stack overflows when it reads one of 20,000 levels."""

    def length(number: int) -> bytes:
        return bytes([number & 127 | 128]) + length(number >> 7) if number > 127 else bytes([number])

    level = b"\x35\x00\x18\x01a\x15\x02\x00"  # required, its name, one child
    leaf = b"\x15\x02\x25\x00\x18\x01z\x00"
    footer = b"\x15\x02\x19\xfc" + length(20_001) + level * 20_000 + leaf + b"\x16\x00\x19\x0c\x00"
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(UsageError, match="more than 10,000 row groups or columns"):
        open_source(str(path)).units(10)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), records=st.integers(1, 20))
def test_no_damage_does_more_than_cost_rows(tmp_path_factory: pytest.TempPathFactory, seed: int, records: int) -> None:
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "fuzz.parquet"
    images = pa.array([{"bytes": b"x" * 99, "path": None}] * 30, FILE)
    source = write(path, {"id": [f"r{row}" for row in range(30)], "image": images, "n": list(range(30))}, 13)
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(data))
        if rng.random() < 0.7:
            data[place : place + 1] = rng.randbytes(1)
        else:
            del data[place : place + rng.randrange(100)]
    path.write_bytes(bytes(data))
    try:
        units = source.units(records)
    except UsageError:
        return
    for unit in units:
        found, failures = source.read(unit)
        assert len(found) + sum(not failure.modality for failure in failures) == unit.records
