"""Data sets that are built on remote file systems."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import ENVIRONMENT, FOLDERS, IN_PROCESS, complaint, content, kill_group, mmembed, started, wait_for
from gcs_server import BUCKET, gcs_server
from s3_server import s3_server

from mmembed.dataset import CARD, MANIFEST, REMOTE_LOCK
from mmembed.remote import RemotePath, _check_credentials, use_flags
from mmembed.shards import is_sealed, write_bytes

FLAGS = ("--unit-records=20", "--limit=80", "--group-column=scene", "--dim=8")


@contextmanager
def found(environment: dict[str, str]) -> Iterator[None]:
    """This process, and those of commands, find the servers of an environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
            patch.setitem(ENVIRONMENT, name, value)
        use_flags(())
        _check_credentials.cache_clear()
        yield
    _check_credentials.cache_clear()


@pytest.fixture(scope="module")
def bucket() -> Iterator[RemotePath]:
    with gcs_server() as environment, found(environment):
        yield RemotePath(f"gs://{BUCKET}")


@pytest.fixture
def s3_bucket() -> Iterator[RemotePath]:
    import boto3

    with s3_server() as environment, found(environment):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield RemotePath(f"s3://{BUCKET}")


@pytest.fixture(scope="module")
def local(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    mmembed("build", faulty, out, *FLAGS)
    return out


def copied(root: RemotePath, folder: Path) -> Path:
    for name in root.sizes():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((root / name).read_bytes())
    return folder


def test_a_bucket_gets_the_bytes_that_a_folder_gets(
    bucket: RemotePath, faulty: Path, local: Path, tmp_path: Path
) -> None:
    out = bucket / "whole"
    mmembed("build", faulty, out, *FLAGS)
    copy = copied(out, tmp_path / "whole")
    assert content(copy) == content(local) and content(copy, ("errors",))
    assert not any(name.startswith("scratch/") or name == REMOTE_LOCK for name in out.sizes())
    mmembed("verify", copy)
    mmembed("verify", out)

    again = mmembed("build", faulty, out, *FLAGS)
    assert "extract: up to date" in again.stderr and "index: up to date" in again.stderr
    asked = ("--text", "three small red stars", "-k", "3", "--json")
    answers = mmembed("query", out, *asked).stdout.splitlines()
    assert answers == mmembed("query", local, *asked).stdout.splitlines() and len(answers) == 3


def test_so_does_one_of_s3(s3_bucket: RemotePath, faulty: Path, local: Path, tmp_path: Path) -> None:
    mmembed("extract", faulty, s3_bucket / "out", "--unit-records=20", "--limit=40", *IN_PROCESS)
    found = content(copied(s3_bucket / "out", tmp_path / "out"))
    assert len(found) == 2 * 4 + 1 and found.items() <= content(local).items()


def test_a_killed_build_in_a_bucket_goes_on(bucket: RemotePath, faulty: Path, local: Path, tmp_path: Path) -> None:
    out = bucket / "killed"
    with started("build", faulty, out, *FLAGS) as process:
        wait_for(lambda: len(list((out / "records").glob("*.parquet"))) > 0, 60, "a unit")
        assert process.poll() is None, "it was done before it could be killed"
        kill_group(process.pid)
    refused = mmembed("build", faulty, out, *FLAGS, expect=2)
    assert "another mmembed" in complaint(refused) and "120 seconds" in complaint(refused)
    done = len(list((out / "records").glob("*.parquet")))
    (out / REMOTE_LOCK).unlink()  # what two minutes of waiting are for
    again = mmembed("build", faulty, out, *FLAGS)
    assert f"extract: {done:,} of 4 units are there" in again.stderr
    assert content(copied(out, tmp_path / "copy")) == content(local)


def test_an_encrypted_data_set_in_a_bucket_lies_open_nowhere(bucket: RemotePath, faulty: Path, tmp_path: Path) -> None:
    out, key = bucket / "sealed", tmp_path / "key"
    key.write_text(os.urandom(32).hex())
    command = ("build", faulty, out, *FLAGS, "--limit=60", "--encrypt", "--encryption-key", key)

    def open_names() -> set[str]:
        return {name for name in out.sizes() if not is_sealed(out / name)}

    with started(*command) as process:
        wait_for(lambda: len(list((out / "records").glob("*.parquet"))) > 0, 60, "a unit")
        assert process.poll() is None, "it was done before it could be killed"
        kill_group(process.pid)
        process.wait()
    assert open_names() == {REMOTE_LOCK} and any(name.startswith("scratch/") for name in out.sizes())
    (out / REMOTE_LOCK).unlink()
    assert "of 3 units are there" in mmembed(*command).stderr
    assert open_names() == {MANIFEST, CARD} and len(out.sizes()) > 20
    asked = ("--text", "three small red stars", "-k", "3", "--json")
    for words in (("verify", out), ("query", out, *asked)):
        assert "is encrypted: name its key" in complaint(mmembed(*words, expect=2))
    mmembed("verify", out, "--encryption-key", key)
    assert len(mmembed("query", out, *asked, "--encryption-key", key).stdout.splitlines()) == 3


def test_a_damaged_file_is_told_and_made_again(bucket: RemotePath, faulty: Path, local: Path, tmp_path: Path) -> None:
    out = bucket / "damaged"
    mmembed("build", faulty, out, *FLAGS)
    name = "embeddings/text/part-00002.parquet"
    write_bytes(out / name, (out / name).read_bytes()[:-1])
    assert name in mmembed("verify", out, expect=1).stdout
    (out / name).unlink()
    mmembed("build", faulty, out, *FLAGS)
    assert content(copied(out, tmp_path / "copy"), FOLDERS) == content(local)


def test_a_folder_that_holds_something_else_is_refused(bucket: RemotePath, faulty: Path) -> None:
    write_bytes(bucket / "other" / "notes.txt", b"mine")
    refused = complaint(mmembed("build", faulty, bucket / "other", expect=2))
    assert f"{bucket}/other is no data set and not empty (it holds notes.txt)" in refused
    assert f"{bucket}/nothing holds no data set" in complaint(mmembed("info", bucket / "nothing", expect=2))


def test_json_of_a_query_names_what_lies_there(bucket: RemotePath, faulty: Path) -> None:
    """Of raw media in a bucket: they are read there, and the hits say where they are."""
    source = bucket / "raw"
    lines = faulty.read_text("utf-8").splitlines()[:12]
    for line in lines:
        record = json.loads(line)
        for path in (record.get("image"), record.get("audio")):
            if path:
                write_bytes(source / path, (faulty.parent / path).read_bytes())
    write_bytes(source / "manifest.jsonl", "\n".join(lines).encode())
    mmembed("build", source / "manifest.jsonl", bucket / "from-raw")
    answer = mmembed("query", bucket / "from-raw", "--text", "stars", "--to", "image", "-k", "1", "--json").stdout
    assert (source / json.loads(answer)["media"]).exists()
