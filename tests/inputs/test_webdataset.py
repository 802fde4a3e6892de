from __future__ import annotations

import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import contents, read_all, write

from mmembed.errors import ReadError, UsageError
from mmembed.inputs import open_source, webdataset

Member = tuple[str, bytes] | tarfile.TarInfo


def archive(path: Path, *members: Member, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, type: bytes, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = type
    for key, value in values.items():
        setattr(info, key, value)
    return info


def header(name: str, type: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """A header as GNU writes it; of a size below 0 as well."""
    return sealed(special(name, type).tobuf(tarfile.GNU_FORMAT), 124, (size % 256**12).to_bytes(12, "big"), size)


def sealed(block: bytes, place: int, field: bytes, size: int = 0) -> bytes:
    """A header with another field and the checksum that fits it; of a size in binary, the first byte says so."""
    if place == 124 and size >= 0:
        field = b"\x80" + field[1:]
    changed = block[:place] + field + block[place + len(field) :]
    changed = changed[:148] + b" " * 8 + changed[156:]
    return changed[:148] + b"%06o\0 " % sum(changed[:512]) + changed[156:]


def raw(path: Path, *blocks: bytes) -> Path:
    """An archive of one good record, and some blocks after it."""
    good = header("f0.jpg", size=4) + b"frog".ljust(512, b"\0")
    return write(path, good + b"".join(blocks) + bytes(1024))


def frogs(count: int) -> list[Member]:
    return [
        (f"f{number}.{ending}", f"{number} {ending}".encode()) for number in range(count) for ending in ("jpg", "txt")
    ]


def test_members_of_one_key_are_a_record(tmp_path: Path) -> None:
    metadata = json.dumps({"legs": 4, "jpg": "never", "text": "a frog"}).encode()
    members = [("set/f.1.jpg", b"picture"), ("set/f.txt", b"words"), ("set/f.cls", b"7\n"), ("set/f.json", metadata)]
    members += [("./g.FLAC", b"sound"), ("g.seg.png", b"mask"), ("g.cls", b"toad")]
    path = archive(tmp_path / "a.tar", special("set", tarfile.DIRTYPE), *members)
    found, failures = read_all(path)
    assert [record.id for record in found] == ["set/f", "g"]
    first, second = found
    assert contents(first, "text") == [b"words", b"a frog"]
    assert first.metadata == {"cls": 7, "legs": 4, "1.jpg": "a.tar/set/f.1.jpg"}
    assert contents(second, "audio") == [b"sound"]
    assert second.metadata == {"cls": "toad", "seg.png": "a.tar/g.seg.png"}
    assert [record.source for record in found] == ["a.tar/set/f", "a.tar/g"]
    assert not failures


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("records", [1, 2, 3, 100])
def test_a_unit_is_read_alone_whatever_headers_its_members_have(tmp_path: Path, format: int, records: int) -> None:
    long = "d" * 90 if format == tarfile.USTAR_FORMAT else "d" * 200
    members: list[Member] = [(f"{long}/f{number}.jpg", b"%d" % number * 600) for number in range(5)]
    found, failures = read_all(archive(tmp_path / "a.tar", *members, format=format), records)
    assert [contents(record, "image") for record in found] == [[b"%d" % number * 600] for number in range(5)]
    assert not failures


EVIL = {
    "../../x.jpg": "leads out of the archive",
    "/etc/x.jpg": "leads out of the archive",
    "a/../../x.jpg": "leads out of the archive",
}


@pytest.mark.parametrize("name, message", EVIL.items())
def test_a_name_that_leaves_the_archive_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    found, [failure] = read_all(archive(tmp_path / "a.tar", *frogs(1), (name, b"x"), ("g.jpg", b"g")))
    assert [record.id for record in found] == ["f0", "g"]
    assert message in failure.message and name in failure.message


@pytest.mark.parametrize(
    "member",
    [
        special("x.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"),
        special("x.jpg", tarfile.LNKTYPE, linkname="f0.jpg"),
        special("x.jpg", tarfile.CHRTYPE, devmajor=1, devminor=5),
        special("x.jpg", tarfile.BLKTYPE),
        special("x.jpg", tarfile.FIFOTYPE),
    ],
    ids=["symbolic link", "hard link", "device", "block device", "pipe"],
)
def test_what_is_no_regular_file_is_an_error(tmp_path: Path, member: tarfile.TarInfo) -> None:
    found, [failure] = read_all(archive(tmp_path / "a.tar", *frogs(1), member, ("g.jpg", b"g")))
    assert [record.id for record in found] == ["f0", "g"]
    assert "is no regular file" in failure.message and failure.source == "a.tar/x"


@pytest.mark.parametrize("size", [5 << 30, 1 << 60, 3000])
def test_a_member_larger_than_it_can_be_is_an_error_and_nothing_of_it_is_held(tmp_path: Path, size: int) -> None:
    path = archive(tmp_path / "a.tar", *frogs(2))
    with path.open("r+b") as file:
        file.seek(4 * 1024)  # where the archive ends
        info = special("x.jpg", tarfile.REGTYPE, size=size)
        file.write(info.tobuf(tarfile.GNU_FORMAT) + b"the beginning")
        file.truncate()
    found, failures = read_all(path)
    assert [record.id for record in found] == ["f0", "f1"]
    assert "x.jpg" in failures[0].message


@pytest.mark.parametrize("cut", [3100, 3500, 5 * 512 + 100])
def test_an_archive_that_is_cut_off_keeps_what_came_before(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path / "a.tar", *frogs(4))
    write(path, path.read_bytes()[:cut])
    found, failures = read_all(path, 100)
    assert [record.id for record in found][:1] == ["f0"]
    assert len(found) <= 2
    assert any("cut off" in failure.message or "can't be read from its byte" in failure.message for failure in failures)


def test_a_broken_header_in_the_midst_says_from_where_it_can_not_be_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *frogs(4))
    data = bytearray(path.read_bytes())
    data[4 * 1024 : 4 * 1024 + 100] = b"\xff" * 100
    write(path, bytes(data))
    found, [failure] = read_all(path, 100)
    assert [record.id for record in found] == ["f0", "f1"]
    assert "can't be read from its byte" in failure.message


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\0" * 100, b"PK\x03\x04" * 400])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.tar", content)
    with pytest.raises(UsageError, match="is no tar archive"):
        open_source(str(tmp_path / "a.tar")).units(2)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_metadata_that_can_not_be_read_cost_their_record_alone(tmp_path: Path, content: bytes) -> None:
    found, [failure] = read_all(archive(tmp_path / "a.tar", ("a.jpg", b""), ("a.json", content), ("b.jpg", b"")))
    assert [record.id for record in found] == ["b"]
    assert failure.source == "a.tar/a" and failure.message.startswith("a.json is ")


def test_keys_that_come_back_are_told_with_both_places(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", ("a.jpg", b""), ("b.jpg", b""), ("a.txt", b"late"))
    found, [failure] = read_all(path, 100)
    assert [record.id for record in found] == ["a", "b"]
    assert failure.error == "RepeatedIdError" and "a.tar/a" in failure.message


def test_names_that_are_no_utf8_are_errors_that_can_be_written(tmp_path: Path) -> None:
    found, [failure] = read_all(
        archive(tmp_path / "a.tar", ("b\udcff.jpg", b""), ("a.jpg", b""), format=tarfile.GNU_FORMAT)
    )
    assert [record.id for record in found] == ["a"]
    f"{failure.source} {failure.message}".encode()
    assert "is no UTF-8" in failure.message


def test_the_fingerprint_of_a_unit_is_that_of_its_members(tmp_path: Path) -> None:
    before = open_source(str(archive(tmp_path / "a.tar", *frogs(4)))).units(2)
    after = open_source(str(archive(tmp_path / "a.tar", *frogs(5)))).units(2)
    assert [old.fingerprint == new.fingerprint for old, new in zip(before, after)] == [True, True]
    changed = open_source(str(archive(tmp_path / "a.tar", *frogs(3), ("x.jpg", b"longer")))).units(2)
    assert [old.fingerprint == new.fingerprint for old, new in zip(before, changed)] == [True, False]


@pytest.mark.parametrize("size", [2 << 20, 1 << 33, 1 << 60, -1024])
@pytest.mark.parametrize("type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_are_not_held_whatever_size_they_claim(tmp_path: Path, type: bytes, size: int) -> None:
    [record], [failure] = read_all(raw(tmp_path / "a.tar", header("x", type, size), header("g.jpg")), 100)
    assert record.id == "f0" and failure.source == "a.tar"
    assert "can't be read from its byte 1,024 on" in failure.message


@pytest.mark.parametrize("size", [-1, -512, -1024, -1536, -(1 << 40)])
def test_a_size_below_0_leads_into_no_circle(tmp_path: Path, size: int) -> None:
    found, [failure] = read_all(raw(tmp_path / "a.tar", header("e.jpg"), header("x.jpg", size=size)), 100)
    assert [record.id for record in found] == ["f0", "e"]
    assert f"'x.jpg' claims {size:,} bytes" in failure.message


@pytest.mark.parametrize("records", [1, 100])
@pytest.mark.parametrize("size", [4096, 1 << 60, 1 << 80])
def test_a_member_of_no_known_kind_that_claims_too_much_is_the_last(tmp_path: Path, size: int, records: int) -> None:
    found, [failure] = read_all(raw(tmp_path / "a.tar", header("x.jpg", b"Z", size), header("g.jpg")), records)
    assert [record.id for record in found] == ["f0"] and "'x.jpg' is no regular file" in failure.message


@pytest.mark.parametrize("type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_headers_without_end_are_an_error(tmp_path: Path, type: bytes) -> None:
    chain = (header("x", type, 512) + b"12 a=abcdef\n".ljust(512, b"\0")) * 1500
    [record], [failure] = read_all(raw(tmp_path / "a.tar", chain, header("g.jpg")), 100)
    assert record.id == "f0" and "can't be read from its byte 1,024 on" in failure.message


def test_hidden_files_are_passed_over_and_part_no_record(tmp_path: Path) -> None:
    hidden: list[Member] = [("._a.jpg", b"mac"), (".DS_Store", b"mac"), (".git/a.txt", b"no")]
    members = [("./._a.jpg", b"mac"), ("./a.jpg", b"picture"), *hidden, ("./a.txt", b"words")]
    [record], failures = read_all(archive(tmp_path / "a.tar", *members))
    assert record.id == "a" and not failures
    assert (contents(record, "image"), contents(record, "text")) == ([b"picture"], [b"words"])


@pytest.mark.parametrize(
    "content, value",
    [
        (b"-5\n", -5),
        (b"--5", "--5"),
        (b"", ""),
        (b"7" * 5000, "7" * 5000),
        ("\u0665".encode(), "\u0665"),
        (b"\xff", "\ufffd"),
    ],
    ids=["a number", "two signs", "nothing", "too many digits", "another digit", "no UTF-8"],
)
def test_a_class_is_a_number_or_else_a_text(tmp_path: Path, content: bytes, value: int | str) -> None:
    [record], failures = read_all(archive(tmp_path / "a.tar", ("a.jpg", b""), ("a.cls", content)))
    assert record.metadata == {"cls": value} and not failures


@pytest.mark.parametrize("order", [1, -1])
def test_metadata_replace_neither_key_nor_class_nor_medium(tmp_path: Path, order: int) -> None:
    evil = json.dumps({"__key__": "z", "cls": 9, "jpg": "../x.jpg", "n": 1}).encode()
    members: list[Member] = [("a.cls", b"5"), ("a.json", evil), ("a.jpg", b"picture")]
    [record], failures = read_all(archive(tmp_path / "a.tar", *members[::order]))
    assert (record.id, contents(record, "image"), record.metadata) == ("a", [b"picture"], {"cls": 5, "n": 1})
    assert not failures


def test_metadata_that_are_too_large_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_JSON_BYTES", 100)
    path = archive(tmp_path / "a.tar", ("a.jpg", b""), ("a.json", b'{"a": "%s"}' % (b"x" * 100)), ("b.jpg", b""))
    [record], [failure] = read_all(path)
    assert record.id == "b" and failure.message == "a.json has 109 bytes: metadata have at most 100"


def test_a_unit_is_bounded_by_the_metadata_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "UNIT_BYTES", 250)
    members = [(f"{n}.{ending}", b"%-100s" % b"{}") for n in range(7) for ending in ("jpg", "json")]
    path = archive(tmp_path / "a.tar", *members)
    assert [unit.records for unit in open_source(str(path)).units(100)] == [2, 2, 2, 1]
    found, failures = read_all(path, 100)
    assert [record.id for record in found] == [str(n) for n in range(7)] and not failures


@pytest.mark.parametrize("records", [1, 100])
def test_an_archive_cut_between_two_members_is_told(tmp_path: Path, records: int) -> None:
    path = archive(tmp_path / "a.tar", *frogs(2))
    write(path, path.read_bytes()[: 4 * 1024])
    found, [failure] = read_all(path, records)
    assert [record.id for record in found] == ["f0", "f1"] and "it is cut off" in failure.message


def test_zeros_in_the_midst_are_not_taken_for_the_end(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *frogs(4))
    data = path.read_bytes()
    write(path, data[: 4 * 1024] + bytes(1024) + data[5 * 1024 :])
    found, [failure] = read_all(path, 100)
    assert [record.id for record in found] == ["f0", "f1"] and "from its byte 4,096 on" in failure.message


def test_zeros_after_the_end_are_no_error(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *frogs(2))
    write(path, path.read_bytes() + bytes(3 << 20))
    found, failures = read_all(path)
    assert len(found) == 2 and not failures


def test_only_the_headers_of_one_unit_are_held(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *frogs(3000))
    list(webdataset.plan(str(path), 10))  # what is imported and kept on a first call counts for nothing
    tracemalloc.start()
    try:
        assert sum(1 for _ in webdataset.plan(str(path), 10)) == 300
        assert tracemalloc.get_traced_memory()[1] < 500_000  # 6,000 headers alone are some megabytes
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), changes=st.integers(1, 4), records=st.integers(1, 5))
def test_no_header_that_lies_does_more_than_cost_records(
    tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int, records: int
) -> None:
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "lies.tar"
    long: list[Member] = [("n" * 150 + ".jpg", b"x"), ("\u00fc" * 80 + ".json", b"{}")]
    format = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    data = archive(path, *frogs(2), *long, *frogs(2), format=format).read_bytes()
    for _ in range(changes):
        place = 512 * rng.randrange(len(data) // 512)
        size = rng.choice([0, 1, 511, 512, 2048, 1 << 33, 1 << 60, -1, -512, -1024, -2048])
        block = data[place : place + 512]
        changed = rng.choice(
            [
                sealed(block, 124, (size % 256**12).to_bytes(12, "big"), size),
                sealed(block, 156, rng.choice([b"0", b"1", b"2", b"5", b"7", b"x", b"g", b"L", b"K", b"S", b"Z"])),
                sealed(block, rng.randrange(100), rng.randbytes(2)),
                sealed(block, 345 + rng.randrange(150), rng.randbytes(4)),
            ]
        )
        data = data[:place] + changed + data[place + 512 :]
    write(path, data)
    try:
        plans = list(webdataset.plan(str(path), records))
    except ReadError:
        return
    assert sum(rows for rows, _, _ in plans) < 50  # no circle
    for rows, _, where in plans:
        assert len(list(webdataset.rows(str(path), "lies.tar", where))) <= rows


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), changes=st.integers(1, 6), records=st.integers(1, 5))
def test_no_damage_does_more_than_cost_records(
    tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int, records: int
) -> None:
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "fuzz.tar"
    data = bytearray(archive(path, *frogs(4), ("m.json", b'{"a": 1}'), ("n" * 150 + ".jpg", b"x")).read_bytes())
    for _ in range(changes):
        place = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randrange(600)]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randrange(20))
        else:
            data[place : place + 12] = rng.choice([b"77777777777\0", b"\xff" * 12, b"-1         \0", b"\0" * 12])
    write(path, bytes(data))
    try:
        plans = list(webdataset.plan(str(path), records))
    except ReadError:
        return
    for rows, _, where in plans:
        assert len(list(webdataset.rows(str(path), "fuzz.tar", where))) == rows
