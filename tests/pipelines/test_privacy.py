"""What must not go out doesn't: built for real by two processes, and looked for in every byte of OUT."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Result, complaint, mmembed

from mmembed.shards import read_footer

KEY = "0123456789abcdef0123456789abcdef"
SMALL = ("--refine", "none", "--lift", "none", "--unit-records", 16, "--workers", 2)
PLANTED = {
    "EMAIL": "jane.doe@mailbox.org",
    "PHONE": "+49 30 901820",
    "CARD": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "IP": "192.0.2.44",
    "URL_CREDENTIALS": "hunter22secret",
    "NATIONAL_ID": "536-22-8726",
    "KEY": "AKIAIOSFODNN7EXAMPLE",
}
SENTENCES = {
    "EMAIL": "write to {}",
    "PHONE": "call {} for more",
    "CARD": "paid with card {}",
    "IBAN": "IBAN {}",
    "IP": "seen from ip {}",
    "URL_CREDENTIALS": "see https://jane:{}@host.example/x",
    "NATIONAL_ID": "social security number {}",
    "KEY": "aws key {}",
}
NAME = "max.muster@firma.de"
"""Planted in names of files, and in ids."""


def everything(root: Path) -> Iterator[tuple[str, bytes]]:
    """All that a data set says: the bytes of its files, and what is packed within them."""
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        name, data = path.relative_to(root).as_posix(), path.read_bytes()
        yield name, path.name.encode() + data
        if path.suffix == ".parquet":
            yield (
                name,
                json.dumps(
                    pq.read_table(path).drop_columns(["embedding", "feature"][:0]).to_pydict(),
                    default=str,
                    ensure_ascii=False,
                ).encode(),
            )
            yield name, json.dumps(read_footer(path), ensure_ascii=False).encode()
        elif path.suffix == ".arrow":
            yield (
                name,
                json.dumps(pa.ipc.open_file(path).read_all().to_pydict(), default=str, ensure_ascii=False).encode(),
            )
        for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
            yield name, base64.b64decode(found)


def found_in(root: Path, values: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, data in everything(root) for value in values if value.encode() in data]


def said(result: Result) -> str:
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def private(rows: list[dict[str, Any]], manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 records of the sample, with private values in texts, files of texts, metadata, ids, paths and broken rows."""
    folder = tmp_path_factory.mktemp("private")
    kinds, lines = list(PLANTED), []
    for number, row in enumerate(rows[:48]):
        kind = kinds[number % len(kinds)]
        row = {**row, "licence": "cc0" if number % 4 else "none"}
        private = SENTENCES[kind].format(PLANTED[kind])
        for key in ("image", "audio"):
            if key in row:
                target = folder / row[key]
                target.parent.mkdir(exist_ok=True)
                shutil.copy(manifest.parent / row[key], target)
        if number < 24:
            row["text"] = f"{row.get('text', 'nothing')}, {private}"
        elif number < 36:
            row["note"] = {"deep": [private, number]}
        elif "image" in row:
            target = folder / "images" / f"{NAME}-{number}{Path(row['image']).suffix}"
            (folder / row["image"]).rename(target)
            row["image"] = target.relative_to(folder).as_posix()
        if number == 40:
            row["id"] = NAME
        if number == 41:
            row["image"] = f"images/{NAME}-missing.png"
        if number == 42:
            row["contact"] = PLANTED["EMAIL"]
            row["card"] = 4111111111111111
        lines.append(json.dumps(row))
    (folder / f"{NAME}.txt").write_text(f"a text of a file, {SENTENCES['EMAIL'].format(PLANTED['EMAIL'])}")
    lines.append(json.dumps({"id": "of-a-file", "text": {"path": f"{NAME}.txt", "bytes": None}}))
    lines.append(json.dumps({"id": PLANTED["EMAIL"], "text": 7}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SECRETS = [*PLANTED.values(), NAME, "4111111111111111"]


@pytest.mark.parametrize("how", ["tags", "pseudonyms"])
def test_nothing_that_is_redacted_goes_out(
    private: Path, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "secret").write_text(KEY)
    words = ["build", private / "manifest.jsonl", out, "--redact", how, "--secret", tmp_path / "secret", *SMALL]
    built = mmembed(*words, "--max-error-rate", 1)
    assert not found_in(out, [*SECRETS, KEY])
    assert not [value for value in SECRETS if value in said(built)]
    assert found_in(private, SECRETS)  # the test would see them
    summary = json.loads((out / "dataset.json").read_text())["stages"]["extract"]["summary"]
    assert summary["redacted"].keys() >= PLANTED.keys()
    assert summary["records"] == 50 and summary["media"]["text"] == summary["used"]["text"] + 1
    assert f"{summary['redacted']['IBAN']} IBAN" in built.stdout
    texts = pq.read_table(out / "features" / "text", columns=["id", "media"]).to_pydict()
    said_of = dict(zip(texts["id"], texts["media"], strict=True))
    assert re.search(r"a text of a file, write to <EMAIL(_[0-9a-f]{12})?>", said_of["of-a-file"])
    errors = mmembed("errors", out).stdout
    assert "is missing" in errors or "No such file" in errors
    assert not [value for value in SECRETS if value in errors]
    again = mmembed(*words, "--max-error-rate", 1)
    assert "extract: up to date" in again.stderr
    assert mmembed("verify", out).returncode == 0
    page = tmp_path / "page.html"
    found = mmembed("query", out, "--text", "call", "--to", "any", "-k", 40, "--html", page)
    assert not [value for value in SECRETS if value in said(found) + page.read_text()]
    assert "data:image/webp" in page.read_text()
    if how == "pseudonyms":
        of_mail = {re.search(r"<EMAIL_\w+>", text)[0] for text in said_of.values() if "write to" in text}  # type: ignore[index]
        assert len(of_mail) == 1


def test_a_changed_file_under_a_hidden_name_is_seen(private: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(private, tmp_path / "in")
    words = (
        "extract",
        folder / "manifest.jsonl",
        tmp_path / "out",
        "--redact",
        "tags",
        "--workers",
        2,
        "--max-error-rate",
        1,
    )
    mmembed(*words)
    [hidden, other, *_] = sorted((folder / "images").glob(f"{NAME}*"))
    hidden.write_bytes(other.read_bytes() + b"\0")
    assert "1 changed" in mmembed(*words).stderr
    assert "up to date" in mmembed(*words).stderr


def test_redaction_is_not_forgotten_by_a_later_run(private: Path, tmp_path: Path) -> None:
    words = ("extract", private / "manifest.jsonl", tmp_path / "out", "--workers", 2, "--max-error-rate", 1)
    mmembed(*words, "--redact", "tags")
    assert "up to date" in mmembed(*words).stderr
    refused = mmembed("build", *words[1:], expect=2)
    assert "was extracted with redact = 'tags', now 'none'" in complaint(refused)


def test_ids_as_pseudonyms_can_be_joined(private: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "secret").write_text(KEY + "\n")
    flags = ("--pseudonymize-ids", "--secret", tmp_path / "secret", "--workers", 2, "--max-error-rate", 1)
    mmembed("extract", private / "manifest.jsonl", tmp_path / "out", *flags)
    ids = set(pq.read_table(tmp_path / "out" / "records", columns=["id"])["id"].to_pylist())
    expected = {hmac.new(KEY.encode(), row["id"].encode(), hashlib.sha256).hexdigest() for row in rows[:40]}
    assert expected <= ids and all(re.fullmatch("[0-9a-f]{64}", id) for id in ids)
    raw = [row["id"] for row in rows[:48]]
    assert not found_in(tmp_path / "out", raw)


def test_a_person_is_forgotten_by_his_own_id(private: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "secret").write_text(KEY)
    flags = ("--pseudonymize-ids", "--secret", tmp_path / "secret", "--workers", 2, "--max-error-rate", 1)
    words = ("extract", private / "manifest.jsonl", tmp_path / "out", *flags)
    mmembed(*words)
    id = rows[3]["id"]
    hidden = hmac.new(KEY.encode(), id.encode(), hashlib.sha256).hexdigest()
    assert found_in(tmp_path / "out", [hidden])
    assert f"{id}  removed" in mmembed("forget", tmp_path / "out", "--id", id).stdout
    assert not found_in(tmp_path / "out", [hidden, id])
    assert "forgotten before" in mmembed("forget", tmp_path / "out", "--id", hidden).stdout
    assert "up to date" in mmembed(*words).stderr


def test_ids_in_names_of_files_are_hidden_with_them(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "people"
    folder.mkdir(parents=True)
    pictures = sorted((manifest.parent / "images").glob("*.jpg"))[:12]
    for number, path in enumerate(pictures):
        shutil.copy(path, folder / f"patient-{number:03d}.jpg")
        (folder / f"patient-{number:03d}.txt").write_text(f"a picture, number {number}")
    (folder / "patient-003.jpg").write_bytes(b"broken")
    (tmp_path / "secret").write_text(KEY)
    words = (
        "extract",
        tmp_path / "in",
        tmp_path / "out",
        "--pseudonymize-ids",
        "--secret",
        tmp_path / "secret",
        "--max-error-rate",
        1,
    )
    first = mmembed(*words, "--workers", 2)
    assert not found_in(tmp_path / "out", ["patient-0"])
    assert "patient-0" not in said(first) + mmembed("errors", tmp_path / "out").stdout
    assert "up to date" in mmembed(*words).stderr
    assert pq.read_table(tmp_path / "out" / "features" / "image").num_rows == 11


def test_only_what_fulfils_the_condition_comes_in(private: Path, tmp_path: Path) -> None:
    condition = "licence in ('cc0', 'cc-by') and coalesce(color, '') != 'blue'"
    words = (
        "extract",
        private / "manifest.jsonl",
        tmp_path / "out",
        "--require",
        condition,
        "--workers",
        2,
        "--max-error-rate",
        1,
    )
    mmembed(*words)
    lines = [json.loads(line) for line in (private / "manifest.jsonl").read_text().splitlines()]
    kept = {row["id"] for row in lines if row.get("licence") == "cc0" and row.get("color") != "blue"}
    assert 0 < len(kept) < 36
    assert set(pq.read_table(tmp_path / "out" / "records")["id"].to_pylist()) == kept
    dropped = pq.read_table(tmp_path / "out" / "dropped").to_pylist()
    assert {row["id"] for row in dropped} == {row["id"] for row in lines} - kept
    assert {row["kind"] for row in dropped} == {"require"}
    texts = [row["text"] for row in lines if row["id"] not in kept and isinstance(row.get("text"), str)]
    assert not found_in(tmp_path / "out", texts)
    assert f"{len(lines) - len(kept)} kept out by --require" in mmembed("info", tmp_path / "out").stdout
    assert "up to date" in mmembed(*words).stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--require", "lisence = 'cc0'"), "none of the first 50 records has the key 'lisence'; they have "),
        (("--require", "licence ="), "can't be used"),
        (("--require", "licence"), "a filter is true or false"),
        (("--require", "licence in (select 1)"), "is not allowed"),
        (("--redact", "some"), "redact = 'some': must be none, tags, pseudonyms"),
        (("--pseudonymize-ids",), "a secret is needed: name its file with --secret FILE, or set MMEMBED_SECRET"),
        (("--redact", "pseudonyms", "--secret", "nowhere"), "can't read the secret"),
    ],
)
def test_what_can_not_work_is_said_at_once(private: Path, tmp_path: Path, flags: tuple[str, ...], line: str) -> None:
    result = mmembed("extract", private / "manifest.jsonl", tmp_path / "out", *flags, expect=2)
    assert line in complaint(result)
    assert not (tmp_path / "out" / "records").exists()
