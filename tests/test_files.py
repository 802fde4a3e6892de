"""Files of this machine, and of a real S3 server on it through Beam."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed import files
from mmembed.errors import ReadError
from mmembed.files import NO_FILE, Stamp


@pytest.mark.parametrize(
    "folder, path, location",
    [
        ("/data", "a/b.png", "/data/a/b.png"),
        ("/data", "/else/b.png", "/else/b.png"),
        ("/data", "gs://bucket/b.png", "gs://bucket/b.png"),
        ("gs://bucket/data/", "a/b.png", "gs://bucket/data/a/b.png"),
        ("", "b.png", "b.png"),
    ],
)
def test_a_path_is_joined_to_its_folder(folder: str, path: str, location: str) -> None:
    assert files.join(folder, path) == location


def test_a_file_is_opened_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text"))
    with files.open_binary(str(tmp_path / "a.gz")) as file:
        assert file.read(2) == b"\x1f\x8b"
        assert file.seek(0) == 0


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), str(tmp_path / "pipe"), "/dev/null", str(tmp_path / "missing"), "a\0b", "https://x/y"):
        with pytest.raises(ReadError) as caught:
            files.open_binary(path)
        assert "\n" not in str(caught.value)


def test_a_stamp_changes_with_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.stamp(str(path)) == NO_FILE == files.stamp("a\0b")
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 7))
    assert files.stamp(str(path)) == Stamp(3, 7)


def test_files_below_a_folder_come_sorted_without_hidden_ones_or_circles(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a.txt", ".git/x", "b/.hidden", "c/d/e.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c/d/up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found = list(files.below(str(tmp_path)))
    assert found == ["a.txt", "b/10.png", "b/2.png", "c/d/e.wav", "link/10.png", "link/2.png"]


def test_a_folder_that_can_not_be_listed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="can't list .*missing: No such file"):
        list(files.below(str(tmp_path / "missing")))


def test_a_pattern_names_files_and_a_file_of_such_a_name_itself(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "a1.jsonl", "sub/a2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert not files.is_pattern(str(tmp_path / "a[1].jsonl"))
    assert files.is_pattern(str(tmp_path / "a[2].jsonl"))
    assert files.matching(f"{tmp_path}/**/*2.jsonl") == [str(tmp_path / "sub/a2.jsonl")]
    assert files.matching(f"{tmp_path}/a?.jsonl") == [str(tmp_path / "a1.jsonl")]


STEPS = st.lists(
    st.one_of(st.tuples(st.just("seek"), st.integers(0, 60)), st.tuples(st.just("read"), st.integers(-1, 40)))
)


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 50), size=st.integers(0, 60), steps=STEPS)
def test_a_slice_is_the_same_bytes_as_a_file_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, start: int, size: int, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "whole"
    path.write_bytes(bytes(range(100)))
    alone = io.BytesIO(bytes(range(100))[start : start + size])
    with files.open_slice(str(path), start, size) as part:
        for step, value in steps:
            assert getattr(part, step)(value) == getattr(alone, step)(value)
            assert part.tell() == alone.tell()
        if start + size <= 100:
            assert part.seek(0, 2) == alone.seek(0, 2)


def test_a_slice_closes_its_file_and_refuses_what_is_before_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    part = files.open_slice(str(tmp_path / "a"), 1, 2)
    with pytest.raises(ValueError, match="before the beginning"):
        part.seek(-1)
    raw: Any = part.raw  # type: ignore[attr-defined]
    part.close()
    assert raw._file.closed


def test_local_files_need_no_beam() -> None:
    program = f"import sys, mmembed.files as f; list(f.below({os.getcwd()!r})); sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_file_system_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.io.filesystems import FileSystems

    def unknown(path: str) -> None:
        raise ValueError("Unable to get filesystem from specified path, please use the correct path or ensure …")

    monkeypatch.setattr(FileSystems, "get_filesystem", unknown)
    for use in (files.open_binary, files.is_folder):
        with pytest.raises(ReadError, match=r"gs://bucket/a.*: Beam reads gs:// .*: pip install 'apache-beam\[gcp\]'"):
            use("gs://bucket/a")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with a few files on an S3 server of this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="listing")
        for name in ("in/a.jsonl", "in/pictures/1.png", "in/pictures/2.png", "in/.hidden", "other.txt"):
            client.put_object(Bucket="listing", Key=name, Body=f"content of {name}".encode())
        yield "s3://listing"
    server.stop()


def test_remote_files_are_listed_and_opened(bucket: str) -> None:
    assert list(files.below(f"{bucket}/in")) == ["a.jsonl", "pictures/1.png", "pictures/2.png"]
    assert files.matching(f"{bucket}/in/*.png") == []
    assert files.matching(f"{bucket}/in/*/?.png") == [f"{bucket}/in/pictures/{n}.png" for n in (1, 2)]
    assert files.matching(f"{bucket}/**/[1].png") == [f"{bucket}/in/pictures/1.png"]
    assert files.exists(f"{bucket}/in/a.jsonl") and not files.exists(f"{bucket}/in/b.jsonl")
    assert files.is_folder(f"{bucket}/in") and not files.is_folder(f"{bucket}/in/a.jsonl")
    with files.open_binary(f"{bucket}/in/a.jsonl") as file:
        assert file.read(7) == b"content"
        file.seek(11)
        assert file.read() == b"in/a.jsonl"
    with files.open_slice(f"{bucket}/in/a.jsonl", 8, 2) as part:
        assert part.read() == b"of"


def test_a_remote_file_that_is_not_there_is_one_line(bucket: str) -> None:
    for location in (f"{bucket}/missing", "s3://nowhere/a"):
        with pytest.raises(ReadError, match=f"can't open {location}") as caught, files.open_binary(location) as file:
            file.read()
        assert "\n" not in str(caught.value)
