"""Encryption of single files: what is sealed comes back, and nothing that was changed does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed import encryption
from mmembed.encryption import VARIABLE, sealing, use
from mmembed.errors import DatasetError, UsageError
from mmembed.shards import fetched, is_sealed, read_bytes, read_footer, read_table, replacing, write_bytes, write_table

TABLE = pa.table({"id": ["jane", "joe"], "value": [1.0, 2.0]})


class Service(parquet.KmsClient):  # type: ignore[misc]
    """A key service that counts what it is asked; it "wraps" by turning bytes around."""

    asked: ClassVar[list[str]] = []

    def __init__(self, config: parquet.KmsConnectionConfig) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
        self.asked.append(f"wrap {master_key_identifier}")
        return key_bytes[::-1].hex()

    def unwrap_key(self, wrapped_key: str | bytes, master_key_identifier: str) -> bytes:
        self.asked.append(f"unwrap {master_key_identifier}")
        return bytes.fromhex(wrapped_key if isinstance(wrapped_key, str) else wrapped_key.decode())[::-1]


class Broken(Service):
    """A key service that wraps, and is out of reach when it is to unwrap."""

    def unwrap_key(self, wrapped_key: str | bytes, master_key_identifier: str) -> bytes:
        raise ConnectionError("no route to host")


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(VARIABLE, "")
    path = tmp_path / "key"
    path.write_text(os.urandom(32).hex() + "\n")
    use(str(path))
    yield path


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_what_is_sealed_comes_back(data: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "_CHUNK_BYTES", size)
        sealed = encryption.seal(data)
        assert encryption.is_sealed(sealed)
        assert encryption.unsealed(sealed, "it") == data
        assert len(data) < 16 or data not in sealed


def test_no_two_sealed_files_are_alike() -> None:
    assert encryption.seal(b"the same") != encryption.seal(b"the same")


def test_nothing_changed_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "_CHUNK_BYTES", 16)
    sealed = encryption.seal(bytes(range(64)))
    begin = len(sealed) - 4 * 32  # of the chunks, each 16 bytes and its tag
    flipped = (sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(8, len(sealed), 7))
    cut = (sealed[:-32], sealed[:-1], sealed[:begin])
    moved = sealed[:begin] + sealed[begin + 32 : begin + 64] + sealed[begin : begin + 32] + sealed[begin + 64 :]
    for damaged in (*flipped, *cut, moved, sealed + b"\0"):
        with pytest.raises((DatasetError, UsageError)):
            encryption.unsealed(damaged, "it")


def test_tables_are_encrypted_by_parquet_itself(tmp_path: Path, key: Path) -> None:
    with sealing(True):
        write_table(tmp_path / "a.parquet", TABLE, {"said": "secret words"})
    data = (tmp_path / "a.parquet").read_bytes()
    assert data[:4] == data[-4:] == b"PARE"
    assert not [word for word in (b"jane", b"value", b"secret words") if word in data]
    assert read_table(data).equals(TABLE)
    assert read_footer(tmp_path / "a.parquet") == {"said": "secret words"}
    with pytest.raises(OSError, match="encrypted"):
        pq.read_table(tmp_path / "a.parquet")


def test_files_written_by_others_never_lie_on_disk_unencrypted(tmp_path: Path) -> None:
    with sealing(True), replacing(tmp_path / "a.bin") as local:
        local.write_bytes(b"some words")
        assert not local.is_relative_to(tmp_path)
        assert not any(path.name.startswith("mmembed") for path in tmp_path.iterdir())
    assert is_sealed(tmp_path / "a.bin") and read_bytes(tmp_path / "a.bin") == b"some words"
    with fetched(tmp_path / "a.bin") as local:
        assert local.read_bytes() == b"some words"
        assert not local.is_relative_to(tmp_path)


def test_outside_of_sealing_nothing_changes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"words")
    with sealing(True):
        write_bytes(tmp_path / "b", b"words", plain=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"words"
    with fetched(tmp_path / "a") as local:
        assert local == tmp_path / "a"


def test_without_the_key_it_is_said(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sealing(True):
        write_bytes(tmp_path / "a", b"words")
        write_table(tmp_path / "a.parquet", TABLE, {})
    for read in (
        lambda: read_bytes(tmp_path / "a"),
        lambda: read_table((tmp_path / "a.parquet").read_bytes()),
        lambda: read_footer(tmp_path / "a.parquet"),
    ):
        monkeypatch.setenv(VARIABLE, "")
        with pytest.raises(UsageError, match="is encrypted: name its key with --encryption-key"):
            read()
        (tmp_path / "other").write_text("0" * 64)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
        with pytest.raises(UsageError, match="with another key than that of"):
            read()
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UsageError, match="to encrypt, a key is needed"), sealing(True):
        pass


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ("nowhere", "can't open nowhere"),
        ("no_such_module:Client", "No module named 'no_such_module'"),
        ("json:JSONDecoder", "it is no subclass of pyarrow.parquet.encryption.KmsClient"),
        ("json:nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_key_that_is_none_is_said(location: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        use(location)


@pytest.mark.parametrize("content", ["", "0" * 63, "0" * 65, "x" * 64])
def test_a_key_file_has_64_hex_digits(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError, match="must be 64 hex digits"):
        use(str(tmp_path / "key"))


def test_a_key_service_wraps_the_keys_of_all_files(tmp_path: Path) -> None:
    use(f"{__name__}:Service@projects/p/key-7")
    Service.asked.clear()
    with sealing(True):
        write_bytes(tmp_path / "a", b"words")
        write_table(tmp_path / "a.parquet", TABLE, {})
    assert read_bytes(tmp_path / "a") == b"words"
    assert read_table((tmp_path / "a.parquet").read_bytes()).equals(TABLE)
    assert set(Service.asked) == {"wrap projects/p/key-7", "unwrap projects/p/key-7"}


def test_a_key_service_that_is_out_of_reach_is_no_missing_file(tmp_path: Path) -> None:
    """What is missing is made again, and what `forget` can't read is removed."""
    use(f"{__name__}:Broken")
    with sealing(True):
        write_table(tmp_path / "a.parquet", TABLE, {})
        write_bytes(tmp_path / "a.json", b"{}")
    for read in (lambda: read_footer(tmp_path / "a.parquet"), lambda: read_bytes(tmp_path / "a.json")):
        with pytest.raises(UsageError, match=r"the key service failed \(ConnectionError: no route to host\)"):
            read()


def test_another_key_is_no_missing_file(tmp_path: Path) -> None:
    with sealing(True):
        write_table(tmp_path / "a.parquet", TABLE, {})
    (tmp_path / "other").write_text(os.urandom(32).hex())
    use(str(tmp_path / "other"))
    with pytest.raises(UsageError, match="encrypted with another key"):
        read_footer(tmp_path / "a.parquet")


def test_workers_are_told_where_the_key_is_whatever_their_folder(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(key.parent)
    use(key.name)
    assert encryption.state().location == str(key)
    for url in ("gs://bucket/key", "tests.keys:Service@name"):
        monkeypatch.setenv(VARIABLE, url)
        assert encryption.state().location == url
