"""The secret of pseudonyms: where it is read, and what is made of it."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from pathlib import Path

import pytest

from mmembed.errors import UsageError
from mmembed.secret import VARIABLE, Secret

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    return Secret(str(tmp_path / "key"))


def test_a_pseudonym_is_hmac_sha_256_of_the_id(secret: Secret) -> None:
    for id in ("frog-1", "ünïcode", "\udcff"):
        expected = hmac.new(KEY, id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
        assert secret.pseudonym(id) == expected


def test_the_environment_gives_the_same_as_a_file(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY.decode())
    assert Secret().pseudonym("a") == secret.pseudonym("a")
    assert Secret().name == secret.name


def test_each_use_has_a_key_of_its_own(secret: Secret) -> None:
    assert len({secret.key("a"), secret.key("b"), secret.read(), bytes.fromhex(secret.pseudonym("a"))}) == 4


def test_what_is_sent_to_workers_never_holds_the_secret(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY.decode())
    secret.pseudonym("a"), Secret().pseudonym("a")
    assert KEY not in pickle.dumps(secret) + pickle.dumps(Secret()) + repr(secret).encode()


def test_a_secret_that_is_missing_or_short_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="--secret FILE, or set MMEMBED_SECRET"):
        Secret().read()
    with pytest.raises(UsageError, match="can't read the secret"):
        Secret(str(tmp_path / "none")).read()
    (tmp_path / "short").write_text("hunter2\n")
    with pytest.raises(UsageError, match="has 7 bytes"):
        Secret(str(tmp_path / "short")).read()
