from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmembed.errors import DatasetError
from mmembed.shards import (
    TEMPORARY_SUFFIX,
    fingerprint,
    read_checked,
    read_footer,
    read_table,
    remove_temporaries,
    shard_path,
    write_bytes,
    write_json,
    write_table,
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(rows: int = 100) -> pa.Table:
    vectors = np.random.default_rng(0).normal(size=4 * rows).astype(np.float32)
    ids = [f"r{row}" for row in range(rows)]
    return pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4)})


def test_a_shard_is_named_by_its_unit() -> None:
    assert shard_path("features/image", 17) == "features/image/part-00017.parquet"


def test_a_file_is_written_whole_into_folders_made_for_it_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.bin"
    write_bytes(path, b"old, and longer")
    write_bytes(path, b"new")
    assert files(path.parent) == {"c.bin": b"new"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    write_bytes(tmp_path / "a.bin", b"old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_bytes(tmp_path / "a.bin", b"new")
    assert files(tmp_path) == {"a.bin": b"old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, which is always full, on this system")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: real(Path("/dev/full"), mode))
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "a.bin", b"x" * 100_000)
    assert files(tmp_path) == {}


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "from mmembed import shards\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.write_bytes(pathlib.Path(sys.argv[1]), b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.bin")], check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".a.bin.") and left.name.endswith(TEMPORARY_SUFFIX)
    write_bytes(tmp_path / "b.bin", b"x")
    remove_temporaries(tmp_path)
    assert files(tmp_path) == {"b.bin": b"x"}


def test_the_file_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def noted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            calls.append(name)
            real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_bytes(tmp_path / "a.bin", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_json_is_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"grün": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "grün": [\n    1\n  ]\n}\n'


def test_a_table_comes_back_with_its_footer(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", table(), {"fingerprint": "grün", "rows": {"image": 3}})
    assert read_table((tmp_path / "a.parquet").read_bytes()).equals(table())
    assert read_footer(tmp_path / "a.parquet") == {"fingerprint": "grün", "rows": {"image": 3}}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="native threads are counted in /proc")
def test_reading_a_table_starts_no_thread_that_could_outlive_the_interpreter(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", table(), {})
    program = """
import os, sys
import mmembed.shards
data = open(sys.argv[1], "rb").read()
before = os.listdir("/proc/self/task")
assert mmembed.shards.read_table(data).num_rows == 100
assert os.listdir("/proc/self/task") == before, (before, os.listdir("/proc/self/task"))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.parquet")], check=True)


def test_the_same_table_gives_the_same_bytes_however_it_lies_in_memory(tmp_path: Path) -> None:
    whole = table()
    views = [whole, pa.concat_tables([whole.slice(0, 30), whole.slice(30)]), pa.concat_tables([table(7), whole])[7:]]
    for number, view in enumerate(views):
        write_table(tmp_path / str(number), view.replace_schema_metadata({"a": str(number)}), {"x": 1, "y": 2})
    assert len(set(files(tmp_path).values())) == 1


def test_the_order_of_a_footers_keys_does_not_matter(tmp_path: Path) -> None:
    write_table(tmp_path / "a", table(), {"x": 1, "y": 2})
    write_table(tmp_path / "b", table(), {"y": 2, "x": 1})
    assert len(set(files(tmp_path).values())) == 1


def test_row_groups_have_8192_rows_and_zstd(tmp_path: Path) -> None:
    write_table(tmp_path / "a", table(20_000), {})
    metadata = pq.read_metadata(tmp_path / "a")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [8192, 8192, 3616]
    assert {metadata.row_group(0).column(k).compression for k in range(metadata.num_columns)} == {"ZSTD"}


@pytest.mark.parametrize("content", [None, b"", b"no Parquet"])
def test_a_missing_or_foreign_file_has_no_footer(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    assert read_footer(tmp_path / "a") is None


def test_parquet_of_others_has_no_footer_and_neither_has_a_folder(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a")
    assert read_footer(tmp_path / "a") is None
    assert read_footer(tmp_path) is None


def test_a_truncated_table_has_no_footer(tmp_path: Path) -> None:
    write_table(tmp_path / "a", table(), {"x": 1})
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    assert read_footer(tmp_path / "a") is None


def test_a_damaged_footer_is_none(tmp_path: Path) -> None:
    write_table(tmp_path / "a", table(), {"fingerprint": "x", "rows": 3})
    whole = (tmp_path / "a").read_bytes()
    start = whole.index(b'{"fingerprint"')
    for place in range(start, start + len('{"fingerprint": "x", "rows": 3}')):
        (tmp_path / "a").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_footer(tmp_path / "a") is None


@pytest.mark.parametrize("place", [0, 499, 999])
def test_a_single_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    content = bytearray(range(250)) * 4
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "a").write_bytes(content)
    assert read_checked(tmp_path / "a", sha256) == content
    content[place] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DatasetError, match="its checksum differs"):
        read_checked(tmp_path / "a", sha256)


def test_a_missing_file_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is missing: build again"):
        read_checked(tmp_path / "a", "")


def test_a_fingerprint_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})
    assert len({fingerprint(1, 2), fingerprint(2, 1), fingerprint([1, 2]), fingerprint("1", 2), fingerprint(12)}) == 5
    assert len(fingerprint()) == 32
