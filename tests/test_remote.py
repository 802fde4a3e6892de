from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from gcs_server import BUCKET, gcs_server

from mmembed.dataset import REMOTE_LOCK, locked, make_folder
from mmembed.errors import UsageError
from mmembed.files import place
from mmembed.remote import RemotePath, each
from mmembed.shards import fetched, move, read_footer, remove_folder, replacing, write_bytes


@pytest.fixture(scope="module")
def root() -> Iterator[RemotePath]:
    with gcs_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield RemotePath(f"gs://{BUCKET}") / "remote"


def test_it_is_a_path_without_asking_anybody() -> None:
    path = RemotePath("gs://bucket/a/part-00001.parquet")
    assert path == place("gs://bucket") / "a" / "part-00001.parquet"
    assert (path.name, path.stem, str(path.parent)) == ("part-00001.parquet", "part-00001", "gs://bucket/a")
    assert str(path.relative_to(RemotePath("gs://bucket/"))) == "a/part-00001.parquet"
    assert sorted([path, RemotePath("gs://bucket/a/b")])[0].name == "b"


def test_a_file_is_there_when_all_of_it_has_been_sent(root: RemotePath) -> None:
    path = root / "whole" / "a.bin"

    def chunks() -> Iterator[bytes]:
        yield b"some"
        raise ConnectionError("the line is cut")

    write_bytes(path, b"all of it")
    with pytest.raises(OSError, match="the line is cut") as caught:
        path.write_from(chunks())
    assert caught.value.filename == str(path)
    del caught
    gc.collect()  # Python closes what nobody has any more
    assert path.read_bytes() == b"all of it" and (root / "whole").sizes() == {"a.bin": 9}
    with suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"all of it"
    with replacing(path) as temporary:
        temporary.write_bytes(b"another")
    assert path.read_bytes() == b"another" and (root / "whole").sizes() == {"a.bin": 7}


def test_what_is_not_there_is_as_it_is_on_disk(root: RemotePath) -> None:
    missing = root / "missing"
    for read in (missing.read_bytes, missing.open, lambda: missing.read_text("utf-8")):
        with pytest.raises(FileNotFoundError) as caught:
            read()
        assert caught.value.filename == str(missing)
    assert not missing.exists() and not missing.is_dir() and missing.found() is None
    assert read_footer(missing) is None
    missing.unlink()
    remove_folder(missing)
    with pytest.raises(OSError, match="no file system"):
        RemotePath("nope://bucket/a").read_bytes()


def test_files_are_listed_moved_copied_and_removed(root: RemotePath) -> None:
    folder = root / "folder"
    for name in ("a.txt", "deep/b.txt", "deep/.hidden"):
        write_bytes(folder / name, name.encode())
    assert set(folder.sizes()) == {"a.txt", "deep/b.txt", "deep/.hidden"}
    assert [path.name for path in folder.glob("*.txt")] == ["a.txt"]
    assert folder.is_dir() and not (folder / "deep").exists()
    move(folder / "a.txt", folder / "moved" / "c.txt")
    assert (folder / "moved/c.txt").read_bytes() == b"a.txt" and not (folder / "a.txt").exists()
    with fetched(folder / "deep/b.txt") as local:
        assert local.read_bytes() == b"deep/b.txt"
    assert not local.exists()
    remove_folder(folder)
    assert not folder.is_dir()


def test_only_one_writes_and_a_lock_that_nobody_holds_is_forgotten(
    root: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = root / "locked"
    with locked(out):
        with pytest.raises(UsageError, match="another mmembed") as caught, locked(out):
            pass
        assert str(out) in str(caught.value)
    assert not (out / REMOTE_LOCK).exists()
    write_bytes(out / REMOTE_LOCK, b"of one that was killed\n")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 121)
    with locked(out):
        assert b"killed" not in (out / REMOTE_LOCK).read_bytes()


def test_each_keeps_the_order_and_raises_what_is_raised() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01 * (5 - number % 5))
        if number == 30:
            raise ValueError("30")
        return number

    assert list(each(slow, range(20))) == list(range(20))
    with pytest.raises(ValueError, match="30"):
        list(each(slow, range(40)))


@pytest.mark.parametrize(
    "out, reason",
    [
        ("http://example.com/out", "give a folder, or a URL of a bucket"),
        ("hdfs://host/out", "of hdfs Beam lists one folder"),
        ("nope://bucket/out", "nope:// is no file system"),
    ],
)
def test_where_no_data_set_can_lie_is_a_wrong_call(out: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_folder(place(out))
