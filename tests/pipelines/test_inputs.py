"""One set of records in every form that people have: each gives the same features."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from command import IN_PROCESS, complaint, mmembed
from numpy.typing import NDArray
from s3_server import s3_server
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.tables import vectors_from_arrow
from mmembed.verify import verify

MODALITIES = ("image", "text", "audio")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def few(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """40 records and the folder that their media are in."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("images", "sounds"):
        (folder / name).symlink_to(manifest.parent / name)
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()[:40]]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows


def extract(input: object, out: Path, *flags: object) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Extract; by modality and id, the features of a record."""
    mmembed("extract", input, out, "--unit-records", 16, *FLAGS, *flags, *IN_PROCESS)
    dataset = Dataset.open(out)
    assert verify(dataset) == []
    summary = dataset.stage("extract").summary
    assert summary["errors"] == 0 and summary["media"] == summary["used"]
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name in MODALITIES:
        table = pq.read_table(out / "features" / name)
        found[name] = dict(zip(table["id"].to_pylist(), vectors_from_arrow(table["feature"])))
    return found


@pytest.fixture(scope="module")
def expected(
    few: tuple[Path, Rows], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, NDArray[np.float32]]]:
    features = extract(few[0] / "m.jsonl", tmp_path_factory.mktemp("expected"))
    assert min(map(len, features.values())) > 30
    return features


def same(
    found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]], modalities: tuple[str, ...] = MODALITIES
) -> None:
    for name in modalities:
        assert found[name].keys() == expected[name].keys()
        assert all(np.array_equal(found[name][id], expected[name][id]) for id in expected[name])


def fill_csv(folder: Path, rows: Rows, delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_csv(folder: Path, rows: Rows, made: Path) -> Path:
    (folder / "m.csv").write_text(fill_csv(folder, rows, ","))
    return folder / "m.csv"


def as_packed_tsv(folder: Path, rows: Rows, made: Path) -> Path:
    (folder / "m.tsv.gz").write_bytes(gzip.compress(fill_csv(folder, rows, "\t").encode()))
    return folder / "m.tsv.gz"


def as_packed_lines(folder: Path, rows: Rows, made: Path) -> Path:
    (folder / "m.jsonl.gz").write_bytes(gzip.compress((folder / "m.jsonl").read_bytes()))
    return folder / "m.jsonl.gz"


def as_several_files(folder: Path, rows: Rows, made: Path) -> Path:
    for start in range(0, 40, 10):
        (folder / f"p-{start}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[start : start + 10]))
    return folder / "p-*.jsonl"


def as_folder(folder: Path, rows: Rows, made: Path) -> Path:
    made.mkdir()
    for row in rows:
        for key in ("image", "audio"):
            if row.get(key):
                shutil.copy(folder / row[key], made / f"{row['id']}{Path(row[key]).suffix}")
        if row.get("text"):
            (made / f"{row['id']}.txt").write_text(row["text"])
        (made / f"{row['id']}.json").write_text(json.dumps({"scene": row["scene"]}))
    return made


def as_archives(folder: Path, rows: Rows, made: Path) -> Path:
    files = as_folder(folder, rows, made)
    for start in range(0, 40, 20):
        with tarfile.open(folder / f"s-{start // 20:05d}.tar", "w") as archive:
            for row in rows[start : start + 20]:
                for path in sorted(files.glob(f"{row['id']}.*")):
                    archive.add(path, path.name)
    return folder / "s-{00000..00001}.tar"


def as_hugging_face(folder: Path, rows: Rows) -> Any:
    made = [
        {
            "id": row["id"],
            "caption": row.get("text"),
            **{
                key: {"bytes": (folder / row[key]).read_bytes(), "path": row[key]} if row.get(key) else None
                for key in ("image", "audio")
            },
        }
        for row in rows
    ]
    files = {key: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")} for key in ("image", "audio")}
    strings = {key: datasets.Value("string") for key in ("id", "caption")}
    return datasets.Dataset.from_list(made, datasets.Features({**strings, **files}))


def as_saved(folder: Path, rows: Rows, made: Path) -> Path:
    as_hugging_face(folder, rows).save_to_disk(made, num_shards=2)
    return made


def as_parquet_of_the_hub(folder: Path, rows: Rows, made: Path) -> Path:
    (made / "data").mkdir(parents=True)
    as_hugging_face(folder, rows).to_parquet(made / "data/train-00000-of-00001.parquet")
    return made


FORMS = [
    as_csv,
    as_packed_tsv,
    as_packed_lines,
    as_several_files,
    as_folder,
    as_archives,
    as_saved,
    as_parquet_of_the_hub,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_features(
    few: tuple[Path, Rows], expected: dict[str, dict[str, Any]], tmp_path: Path, form: Any
) -> None:
    location = form(*few, tmp_path / "made")
    flags = ("--text-column", "caption") if form in (as_saved, as_parquet_of_the_hub) else ()
    same(extract(location, tmp_path / "out", *flags), expected)


@pytest.fixture
def web(few: tuple[Path, Rows]) -> Iterator[str]:
    """The media behind a web server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(few[0]))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def with_urls(rows: Rows, base: str) -> Rows:
    return [row | {key: f"{base}/{row[key]}" for key in ("image", "audio") if row.get(key)} for row in rows]


def test_media_behind_web_addresses_are_fetched_and_not_fetched_again(
    few: tuple[Path, Rows], expected: dict[str, dict[str, Any]], web: str, tmp_path: Path
) -> None:
    rows, path, out = with_urls(few[1], web), tmp_path / "m.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = mmembed("extract", path, tmp_path / "refused", *FLAGS, *IN_PROCESS, expect=3).stderr
    assert "no public address: allow that with --allow-private-hosts" in refused
    same(extract(path, out, "--allow-private-hosts"), expected)
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"id": "new", "text": "new"}, *rows]))
    said = mmembed("extract", path, out, "--unit-records", 16, *FLAGS, "--allow-private-hosts", *IN_PROCESS).stderr
    assert "(1 added, 0 changed, 0 removed)" in said


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 server of this machine; worker processes know it by their environment."""
    import boto3
    from command import ENVIRONMENT

    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setitem(ENVIRONMENT, name, value)
        boto3.client("s3").create_bucket(Bucket="data")
        yield "s3://data"


def test_remote_files_archives_and_folders_are_read_from_a_bucket(
    few: tuple[Path, Rows], expected: dict[str, dict[str, Any]], bucket: str, tmp_path: Path
) -> None:
    import boto3

    client, (folder, rows) = boto3.client("s3"), (few[0], few[1][2:5])  # a client a file is made: each takes 0.2 s
    files = as_folder(folder, rows, tmp_path / "made")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(files.iterdir()):
            archive.add(path, path.name)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    uploads = {"in/m.jsonl": lines.encode(), "tars/a.tar": (tmp_path / "a.tar").read_bytes()}
    uploads |= {
        f"in/{row[key]}": (folder / row[key]).read_bytes() for row in rows for key in ("image", "audio") if row.get(key)
    }
    uploads |= {f"folder/{path.name}": path.read_bytes() for path in files.iterdir()}
    for key, body in uploads.items():
        client.put_object(Bucket="data", Key=key, Body=body)
    ids = {row["id"] for row in rows}
    wanted = {name: {id: feature for id, feature in found.items() if id in ids} for name, found in expected.items()}
    for number, location in enumerate(("in/m.jsonl", "tars/*.tar", "folder")):
        same(extract(f"{bucket}/{location}", tmp_path / f"out-{number}"), wanted)
    missing = complaint(mmembed("extract", f"{bucket}/in/none.jsonl", tmp_path / "none", *FLAGS, expect=2))
    assert "there is no such file or folder" in missing


def test_a_dry_run_says_what_would_be_read_and_leaves_nothing(few: tuple[Path, Rows], tmp_path: Path) -> None:
    words = ("build", few[0] / "m.jsonl", tmp_path / "out", "--unit-records", 16, *FLAGS)
    said = mmembed(*words, "--dry-run").stdout
    assert "40 records in 1 files (3 units of jsonl)" in said
    assert "3 of 3 units are to be done, 40 records" in said
    assert "of extraction with" in said and "MB of features" in said
    assert not (tmp_path / "out").exists()
    mmembed(*words, *IN_PROCESS)
    assert "0 of 3 units are to be done, 0 records" in mmembed(*words, "--dry-run").stdout


def test_a_limit_is_a_first_try_that_is_gone_on_with(
    few: tuple[Path, Rows], expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    extract(few[0] / "m.jsonl", out, "--limit", 20)
    assert Dataset.open(out).stage("extract").summary["rows"] == 20
    same(extract(few[0] / "m.jsonl", out), expected)
    sampled = extract(few[0] / "m.jsonl", out, "--sample", 0.5)
    summary = Dataset.open(out).stage("extract").summary
    assert 8 < summary["rows"] == summary["records"] < 32
    assert sampled["text"].keys() < expected["text"].keys()


def test_several_captions_are_segments_of_one_record(few: tuple[Path, Rows], tmp_path: Path) -> None:
    rows = [row | {"de": f"Bild {number}", "en": ["a", f"picture {number}"]} for number, row in enumerate(few[1])]
    (few[0] / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--text-column", "de", "--text-column", "en")
    mmembed("build", few[0] / "captions.jsonl", tmp_path, *FLAGS, *flags, "--group-column", "de", *IN_PROCESS)
    table = pq.read_table(tmp_path / "embeddings/text").to_pylist()
    assert [(row["segment"], row["media"]) for row in table if row["id"] == "scene-000003"] == [
        (0, "Bild 3"), (1, "a"), (2, "picture 3"),
    ]  # fmt: skip
    assert table[0]["metadata"]["text"] == rows[0].get("text")
    assert verify(Dataset.open(tmp_path)) == []
