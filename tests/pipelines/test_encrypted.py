"""An encrypted data set, built for real by two processes: all that reads it needs the key, and no file lies open."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dataset_builder
import numpy as np
import pytest
from command import Result, complaint, content, kill_group, mmembed, started, wait_for
from dataset_builder import clustered_rows, index

from mmembed import encryption
from mmembed.config import IndexConfig
from mmembed.dataset import CARD, LOCK, MANIFEST, Dataset
from mmembed.encryption import VARIABLE
from mmembed.errors import UsageError
from mmembed.index import entry_of, open_modality, vectors_path
from mmembed.reader import open_dataset
from mmembed.search import Searcher
from mmembed.shards import TEMPORARY_SUFFIX, is_sealed, read_bytes, read_table
from mmembed.verify import verify

PLAIN = {MANIFEST, CARD, LOCK}
FLAGS = ("--refine", "none", "--lift", "none", "--unit-records", 32, "--workers", 2)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(os.urandom(32).hex())
    return path


@pytest.fixture(scope="module")
def sealed(small: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sealed") / "out"
    built = build(small, out, key)
    assert "no report.html" in built.stderr
    return out


def words(small: Path, out: Path, key: Path, *flags: object) -> tuple[object, ...]:
    return ("build", small.parent / "manifest.jsonl", out, "--encrypt", "--encryption-key", key, *FLAGS, *flags)


def build(small: Path, out: Path, key: Path, *flags: object) -> Result:
    return mmembed(*words(small, out, key, *flags))


def plain_files(root: Path) -> set[str]:
    paths = (path for path in root.rglob("*") if path.is_file() and not is_sealed(path))
    return {path.relative_to(root).as_posix() for path in paths}


def test_no_file_lies_open(sealed: Path, rows: list[dict[str, Any]]) -> None:
    assert plain_files(sealed) == PLAIN
    assert len([path for path in sealed.rglob("*") if path.is_file()]) > 20
    texts = [row["text"].encode() for row in rows[:80] if "text" in row] + [row["id"].encode() for row in rows[:80]]
    for path in filter(Path.is_file, sealed.rglob("*")):
        assert not [text for text in texts if text in path.read_bytes()], path


def test_every_command_needs_the_key_and_works_with_it(sealed: Path, key: Path, tmp_path: Path) -> None:
    commands: list[tuple[object, ...]] = [
        ("query", sealed, "--text", "red star"),
        ("explain", sealed, "--text", "red star", "--id", "scene-000003"),
        ("verify", sealed),
        ("evaluate", sealed),
        ("compare", sealed, sealed),
        ("fit", sealed),
        ("errors", shutil.copytree(sealed, tmp_path / "copy")),
    ]
    for command in commands[:-1]:
        refused = mmembed(*command, expect=2) if command[0] not in ("evaluate", "fit") else None
        assert refused is None or "is encrypted: name its key" in complaint(refused)
        assert mmembed(*command, "--encryption-key", key).returncode == 0
    needed = mmembed("fit", commands[-1][1], "--dim", 8, expect=2)
    assert "a key is needed: name" in complaint(needed)


def test_the_same_is_found_as_without_encryption(small: Path, sealed: Path, key: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mmembed("build", small.parent / "manifest.jsonl", out, *FLAGS)
    asked = ("--text", "three small red stars", "--json", "-k", 5)
    plain = [json.loads(line) for line in mmembed("query", out, *asked).stdout.splitlines()]
    found = [json.loads(line) for line in mmembed("query", sealed, *asked, "--encryption-key", key).stdout.splitlines()]
    assert found == plain


def test_what_changed_is_done_again_and_no_more(small: Path, sealed: Path, key: Path, tmp_path: Path) -> None:
    out = shutil.copytree(sealed, tmp_path / "out")
    again = build(small, out, key)
    assert again.stderr.count("up to date") == 5
    other = build(small, out, key, "--dim", 8)
    assert "extract: up to date" in other.stderr and "fit: up to date" not in other.stderr
    assert plain_files(out) == PLAIN
    refused = mmembed("build", small.parent / "manifest.jsonl", out, *FLAGS, expect=2)
    assert "was extracted with encrypt = True, now False" in complaint(refused)


def test_what_lay_open_is_encrypted_by_overwrite(small: Path, key: Path, tmp_path: Path) -> None:
    mmembed("build", small.parent / "manifest.jsonl", tmp_path / "out", *FLAGS)
    build(small, tmp_path / "out", key, "--overwrite")
    assert plain_files(tmp_path / "out") == PLAIN


def test_the_reader_and_the_searcher_need_the_key(sealed: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UsageError, match="is encrypted: name its key"):
        open_dataset(sealed, ("image", "text"))
    with pytest.raises(UsageError, match="is encrypted: name its key"):
        Searcher.open(sealed).search(text="red star")
    encryption.use(str(key))
    batch = next(iter(open_dataset(sealed, ("image", "text"), ["embedding", "id"], batch_size=8, shuffle=True)))
    assert np.allclose(np.linalg.norm(batch["image.embedding"], axis=1), 1, atol=1e-5)
    assert len(Searcher.open(sealed).search(text="red star", k=3)) == 3


def test_a_compressed_index_is_encrypted_too(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such an index, the rows themselves, and what it has learned, lie beside it."""
    monkeypatch.setenv(VARIABLE, "")
    encryption.use(str(key))
    rows, budget = clustered_rows(1200, 16), IndexConfig(recall=0.9, memory="90KB")
    held_out = [row.id for row in rows[::4]]
    plain = index(dataset_builder.build(tmp_path / "plain", rows, dim=16, unit=400, held_out=held_out), budget)
    with encryption.sealing(True):
        dataset = index(dataset_builder.build(tmp_path / "out", rows, dim=16, unit=400, held_out=held_out), budget)
    assert plain_files(tmp_path / "out") == {MANIFEST}
    assert (tmp_path / "out" / vectors_path("image")).exists()
    assert entry_of(dataset, "image")["kind"] == entry_of(plain, "image")["kind"] != "Flat"
    queries = np.stack([row.vectors["text"][0] for row in rows[:50]])
    found = [open_modality(one, "image").search(queries, 10)[1] for one in (plain, dataset)]
    assert (found[0] == found[1]).all()
    assert not verify(dataset)


def opened(root: Path) -> dict[str, bytes]:
    """What the files of a data set say to whoever has the key; of tables, their rows."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {
        path.relative_to(root).as_posix(): repr(read_table(path.read_bytes()).to_pylist()).encode()
        if path.suffix == ".parquet"
        else bytes(read_bytes(path))
        for path in paths
    }


def test_what_is_forgotten_is_gone_and_all_else_stays_encrypted(
    sealed: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    encryption.use(str(key))
    out, id = shutil.copytree(sealed, tmp_path / "out"), "scene-000003"
    assert [name for name, data in opened(out).items() if id.encode() in data]
    mmembed("forget", out, "--id", id, "--workers", 2, "--encryption-key", key)
    assert plain_files(out) == PLAIN
    assert not [name for name, data in opened(out).items() if id.encode() in data]
    assert not verify(Dataset.open(out))
    asked = ("--id", id, "--encryption-key", key)
    assert "forgotten before" in mmembed("forget", out, *asked).stdout
    assert id in complaint(mmembed("query", out, *asked, expect=2))


def test_nothing_is_removed_for_want_of_the_key(small: Path, sealed: Path, key: Path, tmp_path: Path) -> None:
    out, other = shutil.copytree(sealed, tmp_path / "out"), tmp_path / "other"
    other.write_text(os.urandom(32).hex())
    asked = ("forget", out, "--id", "scene-000003")
    before = content(out), (out / MANIFEST).read_bytes()
    assert "is encrypted: name its key" in complaint(mmembed(*asked, expect=2))
    assert "with another key" in complaint(mmembed(*asked, "--encryption-key", other, expect=2))
    assert "with another key" in complaint(mmembed(*words(small, out, other), expect=2))
    mmembed(*words(small, out, other, "--retry-errors"), expect=2)
    assert (content(out), (out / MANIFEST).read_bytes()) == before


def test_a_killed_build_left_nothing_open_and_goes_on(
    small: Path, sealed: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    encryption.use(str(key))
    out, command = tmp_path / "out", words(small, tmp_path / "out", key)
    with started(*command) as process:
        wait_for(lambda: bool(list(out.glob("records/*.parquet"))), 60, "a unit")
        kill_group(process.pid)
        process.wait()
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert any(name.startswith("scratch/") for name in left) and MANIFEST not in left
    unfinished = {path for path in plain_files(out) if path.endswith(TEMPORARY_SUFFIX)}
    assert plain_files(out) - unfinished == {LOCK}
    assert not [path for path in unfinished if (out / path).stat().st_size]  # killed between its making and its writing
    done = {path: path.stat().st_mtime_ns for path in out.glob("records/*.parquet")}
    again = mmembed(*command)
    assert f"{len(done)} of 3 units are there" in again.stderr
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert plain_files(out) == PLAIN and not (out / "scratch").exists()
    ours, theirs = opened(out), opened(sealed)
    folders = ("records/", "features/", "embeddings/")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.startswith(folders))
