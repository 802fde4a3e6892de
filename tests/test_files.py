"""Files of this machine, and of a real S3 server on it through Beam."""

from __future__ import annotations

import glob
import gzip
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import s3_server

from mmembed import files, remote
from mmembed.errors import ReadError
from mmembed.files import NO_FILE, Stamp


@pytest.mark.parametrize(
    "folder, path, location",
    [
        ("/data", "a/b.png", "/data/a/b.png"),
        ("/data", "/else/b.png", "/else/b.png"),
        ("/data", "gs://bucket/b.png", "gs://bucket/b.png"),
        ("gs://bucket/data/", "a/b.png", "gs://bucket/data/a/b.png"),
        ("gs://bucket", "b.png", "gs://bucket/b.png"),
        ("s3://bucket/meta", "../images/./b.png", "s3://bucket/images/b.png"),
        ("s3://bucket/a//b/../c", "./b..png", "s3://bucket/a/c/b..png"),
        ("s3://bucket/a//b/../c", "b..png", "s3://bucket/a//b/../c/b..png"),
        ("", "b.png", "b.png"),
    ],
)
def test_a_path_is_joined_to_its_folder(folder: str, path: str, location: str) -> None:
    assert files.join(folder, path) == location


@pytest.mark.parametrize("location", ["s3://a/b", "http://x", "HTTPS://x/y", "hdfs://a", "a+b-c.d1://x"])
def test_a_url_is_known_by_its_scheme(location: str) -> None:
    assert files.is_url(location)
    assert remote.is_web(location) == location.lower().startswith("http")


@pytest.mark.parametrize(
    "path", ["a/b", "see http://x", "../a://b/../../c", "/a://b", "://a", "1://a", "é://a", "http:/a"]
)
def test_a_path_that_holds_the_signs_of_a_url_is_a_path(path: str) -> None:
    assert not files.is_url(path) and not remote.is_web(path)


def test_a_file_is_opened_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text"))
    with files.open_binary(str(tmp_path / "a.gz")) as file:
        assert file.read(2) == b"\x1f\x8b"
        assert file.seek(0) == 0


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    names = ("", "pipe", "missing", "loop", "broken", "n" * 300, "pipe/inside")
    for path in (*(str(tmp_path / name) for name in names), "/dev/null", "/dev/zero", "a\0b", "https://x/y", ""):
        with pytest.raises(ReadError) as caught:
            files.open_binary(path)
        assert "\n" not in str(caught.value)


def test_a_name_that_is_no_utf_8_is_opened_and_its_error_can_be_written(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ReadError, match=r"can't open .*/caf\\udce9: No such file") as caught:
        files.open_binary(path)
    assert str(caught.value).encode()
    Path(path).write_bytes(b"abc")
    with files.open_binary(path) as file:
        assert file.read() == b"abc"
    assert [files.is_text(name) for name in files.below(str(tmp_path))] == [False]
    with pytest.raises(ReadError) as caught:
        list(files.below(path))
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    "name, text",
    [("a", True), ("é", True), ("\U0001f438", True), ("a\udce9", False), ("\ud83d", False), ("a\nb", True)],
)
def test_a_name_is_text_if_it_can_be_written_as_utf_8(name: str, text: bool) -> None:
    assert files.is_text(name) == text


@pytest.mark.parametrize(
    "location, folder",
    [("/a/b.png", "/a"), ("b.png", ""), ("s3://bucket/b.png", "s3://bucket"), ("s3://bucket/a/b.png", "s3://bucket/a")],
)
def test_the_parent_of_a_file_is_its_folder(location: str, folder: str) -> None:
    assert files.parent(location) == folder


def test_a_stamp_changes_with_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.stamp(str(path)) == NO_FILE == files.stamp("a\0b")
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 7))
    assert files.stamp(str(path)) == Stamp(3, 7)


def test_urls_are_not_asked_for_their_stamps() -> None:
    assert files.stamp("s3://nowhere/a") == files.stamp("http://nowhere/a") != NO_FILE


def test_a_file_exists_and_a_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert files.exists(str(tmp_path / "a")) and not files.exists(str(tmp_path))
    assert files.is_folder(str(tmp_path)) and not files.is_folder(str(tmp_path / "a"))


def test_files_below_a_folder_come_sorted_without_hidden_ones_or_circles(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a.txt", ".git/x", "b/.hidden", "c/d/e.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c/d/up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "me").symlink_to("me")  # to itself: neither a folder nor a file
    found = list(files.below(str(tmp_path)))
    assert found == ["a.txt", "b/10.png", "b/2.png", "c/d/e.wav", "link/10.png", "link/2.png", "me"]


def test_two_folders_that_are_linked_within_each_other_are_listed_once_each_way(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / f"{one}.png").touch()
        (tmp_path / one / "other").symlink_to(tmp_path / other)
    expected = ["a/a.png", "a/other/b.png", "b/b.png", "b/other/a.png"]
    assert list(files.below(str(tmp_path))) == expected
    assert files.matching(f"{tmp_path}/**/*.png") == [str(tmp_path / name) for name in expected]


def test_pipes_and_odd_names_are_listed_for_those_who_open_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "two\nlines.png").touch()
    (tmp_path / "broken.png").symlink_to("nowhere")
    assert list(files.below(str(tmp_path))) == ["broken.png", "pipe.png", "two\nlines.png"]


def test_a_folder_that_can_not_be_listed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="can't list .*missing: No such file"):
        list(files.below(str(tmp_path / "missing")))


def test_a_folder_within_that_can_not_be_listed_is_no_shorter_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/shut").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied")  # as root, who runs tests in containers, never sees
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ReadError, match=r"can't list .*/a/shut: Permission denied"):
        list(files.below(str(tmp_path)))


def test_a_pattern_names_files_and_a_file_of_such_a_name_itself(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "a1.jsonl", "sub/a2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert not files.is_pattern(str(tmp_path / "a[1].jsonl"))
    assert files.is_pattern(str(tmp_path / "a[2].jsonl"))
    assert files.matching(f"{tmp_path}/**/*2.jsonl") == [str(tmp_path / "sub/a2.jsonl")]
    assert files.matching(f"{tmp_path}/a?.jsonl") == [str(tmp_path / "a1.jsonl")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in (
        "a.x",
        "b.y",
        "in/a.x",
        "in/b/a.x",
        "in/b/c.y",
        "in/.hidden/a.x",
        "in/b/.x",
        "out/in/a.x",
        "out/[a].x",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


PARTS = st.sampled_from(["**", "*", "in", "b", "?", "*.x", "a.x", "[ab].*", "[!a].?", "[[]*", "o*", "*n", "missing"])


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=4))
def test_patterns_mean_what_they_mean_to_glob(tree: Path, parts: list[str]) -> None:
    pattern = f"{tree}/" + "/".join(parts)
    found = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert files.matching(pattern) == sorted(set(files.matching(pattern)))
    assert {os.path.normpath(path) for path in files.matching(pattern)} == found


def test_a_pattern_may_be_relative(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for pattern in ("**/a.x", "in/**", "*/**/a.x", "*.x"):
        assert files.matching(pattern) == sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.tuples(st.integers(0, 60))),
        st.tuples(st.just("seek"), st.tuples(st.integers(0, 60), st.sampled_from([0, 1]))),
        st.tuples(st.sampled_from(["read", "read1"]), st.tuples(st.integers(-1, 40))),
        st.tuples(st.just("readinto"), st.builds(lambda size: (bytearray(size),), st.integers(0, 40))),
        st.tuples(st.just("readline"), st.just(())),
    )
)


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 50), size=st.integers(0, 60), steps=STEPS)
def test_a_slice_is_the_same_bytes_as_a_file_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, start: int, size: int, steps: list[tuple[str, tuple[Any, ...]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "whole"
    path.write_bytes(bytes(range(100)))
    alone = io.BytesIO(bytes(range(100))[start : start + size])
    with files.open_slice(str(path), start, size) as part:
        for step, values in steps:
            assert getattr(part, step)(*values) == getattr(alone, step)(*values)
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


@pytest.mark.parametrize("scheme, extra", [("gs", "gcp"), ("s3", "aws"), ("hdfs", "hadoop"), ("azfs", "azure")])
def test_a_file_system_that_is_not_installed_says_what_to_install(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.io.filesystem import FileSystem

    monkeypatch.setattr(FileSystem, "get_all_subclasses", list)
    monkeypatch.setattr(remote, "_is_installed", lambda module: False)
    for use in (files.open_binary, files.is_folder, files.exists, files.matching, lambda url: list(files.below(url))):
        with pytest.raises(ReadError, match=rf"{scheme}://b/a.*: Beam reads .*: pip install 'apache-beam\[{extra}\]'$"):
            use(f"{scheme}://b/a")


def test_a_module_is_installed_or_not() -> None:
    assert remote._is_installed("apache_beam.io")
    assert not remote._is_installed("apache_beam.nothing") and not remote._is_installed("nothing.at.all")


def test_a_scheme_that_nobody_knows_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ReadError, match=r"foo:// is no file system; there are gs://, s3://, hdfs://, azfs://$"):
        files.open_binary("foo://bucket/a")
    for use in (files.is_folder, files.exists, files.open_binary):
        with pytest.raises(ReadError, match=r"https://x/m.jsonl.*: web addresses are fetched where media are read"):
            use("https://x/m.jsonl")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with a few files on an S3 server of this machine."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="listing")
        for name in (
            "in/a.jsonl",
            "in/pictures/1.png",
            "in/pictures/2.png",
            "in/.hidden",
            "deep/er/[1].png",
            "é b.txt",
        ):
            client.put_object(Bucket="listing", Key=name, Body=f"content of {name}".encode())
        for name in ("in/", "in/pictures/"):  # as consoles make folders
            client.put_object(Bucket="listing", Key=name, Body=b"")
        client.put_object(Bucket="listing", Key="packed.gz", Body=gzip.compress(b"text"))
        yield "s3://listing"


def test_remote_files_are_listed_and_opened(bucket: str) -> None:
    assert list(files.below(f"{bucket}/in")) == ["a.jsonl", "pictures/1.png", "pictures/2.png"]
    assert files.matching(f"{bucket}/in/*.png") == []
    assert files.matching(f"{bucket}/in/*/?.png") == [f"{bucket}/in/pictures/{n}.png" for n in (1, 2)]
    assert files.matching(f"{bucket}/**/[1].png") == [f"{bucket}/in/pictures/1.png"]
    assert files.exists(f"{bucket}/in/a.jsonl") and not files.exists(f"{bucket}/in/b.jsonl")
    assert files.exists(f"{bucket}/deep/er/[1].png") and not files.exists(f"{bucket}/in/[a].jsonl")
    assert not files.exists(f"{bucket}/in") and not files.exists("s3://nowhere/a")
    assert files.is_folder(f"{bucket}/in") and files.is_folder(f"{bucket}/in/") and files.is_folder(bucket)
    assert files.is_folder(f"{bucket}/deep") and not files.is_folder(f"{bucket}/in/a.jsonl")
    assert not files.is_folder("s3://nowhere") and not files.is_folder(f"{bucket}/de")
    with files.open_binary(f"{bucket}/in/a.jsonl") as file:
        assert file.read(7) == b"content"
        file.seek(11)
        assert file.read() == b"in/a.jsonl"
    with files.open_slice(f"{bucket}/in/a.jsonl", 8, 2) as part:
        assert part.read() == b"of"
    with files.open_binary(f"{bucket}/packed.gz") as file:
        assert gzip.decompress(file.read()) == b"text"
    with files.open_binary(f"{bucket}/é b.txt") as file:
        assert file.read().decode() == "content of é b.txt"


def test_a_bucket_is_found_by_flags_of_beam(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.io.filesystems import FileSystems

    before = FileSystems._pipeline_options
    url = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    flags = ["--s3_access_key_id=a", "--s3_secret_access_key=b", "--s3_region_name=us-east-1"]
    try:
        remote.use_flags([f"--s3_endpoint_url={url}", *flags])
        assert files.exists(f"{bucket}/in/a.jsonl")
    finally:
        FileSystems.set_options(before)


def test_missing_credentials_are_told_at_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else it asks the network that a cloud's machine is in
    remote._check_credentials.cache_clear()
    for use in (files.exists, files.is_folder, files.open_binary):
        with pytest.raises(ReadError, match=r"can't .*: there are no credentials: set AWS_ACCESS_KEY_ID"):
            use(f"{bucket}/in/a.jsonl")


def test_parts_of_a_remote_file_are_read_by_several_threads_without_mixing_them(bucket: str) -> None:
    content = b"content of in/a.jsonl"

    def read(start: int) -> bytes:
        return b"".join(files.read_part(f"{bucket}/in/a.jsonl", (start + n) % len(content), 1) for n in range(200))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(8)))
    assert found == [bytes(content[(start + n) % len(content)] for n in range(200)) for start in range(8)]


def test_a_remote_file_that_failed_once_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("the connection\nis lost")

    opened = iter([Broken(b"abc"), io.BytesIO(b"abc")])
    monkeypatch.setattr(files, "open_binary", lambda location: next(opened))
    with pytest.raises(ReadError, match="can't read s3://bucket/broken: the connection is lost"):
        files.read_part("s3://bucket/broken", 0, 1)
    assert files.read_part("s3://bucket/broken", 1, 2) == b"bc"


def test_a_part_that_is_not_there_is_one_line_and_the_next_is_read(bucket: str) -> None:
    with pytest.raises(ReadError, match=r"can't read .*/a.jsonl: it ends before byte 22"):
        files.read_part(f"{bucket}/in/a.jsonl", 20, 2)
    with pytest.raises(ReadError, match=r"can't open .*/missing: "):
        files.read_part(f"{bucket}/missing", 0, 1)
    assert files.read_part(f"{bucket}/in/a.jsonl", 11, 4) == b"in/a"


def test_a_remote_file_that_is_not_there_is_one_line(bucket: str) -> None:
    for location in (f"{bucket}/missing", "s3://nowhere/a"):
        with pytest.raises(ReadError, match=f"can't open {location}") as caught, files.open_binary(location) as file:
            file.read()
        assert "\n" not in str(caught.value)
