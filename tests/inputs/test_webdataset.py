from __future__ import annotations

import io
import json
import random
import tarfile
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


@pytest.mark.parametrize("text", [b"--5", b"9" * 5000, b"", "٣".encode(), b"\xff"])
def test_a_class_that_is_no_number_is_text(tmp_path: Path, text: bytes) -> None:
    [record], failures = read_all(archive(tmp_path / "a.tar", ("a.jpg", b""), ("a.cls", text)))
    assert record.metadata == {"cls": text.decode("utf-8", "replace")} and not failures


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
