"""Records that are to be forgotten are gone from every byte of a data set, stay out of it, and leave no other trace."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import (
    ENVIRONMENT,
    IN_PROCESS,
    complaint,
    content,
    kill_group,
    members,
    mmembed,
    started,
    times,
    wait_for,
)
from conftest import UNIT, Shared
from gcs_server import BUCKET, gcs_server
from PIL import Image as pillow
from safetensors.numpy import load_file
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.remote import RemotePath, _check_credentials, use_flags
from mmembed.verify import verify

Rows = list[dict[str, Any]]

VICTIM = "person-Wilhelmina-7731"
TRACES = ("Wilhelmina", "quetzalcoatlus", "hobby_7731", "beekeeping", "wilhelmina.png")
PLACE = 20
SPOILT = "person-Ottokar"
"""A record whose picture can't be read, and whose text is dropped."""


def planted(rows: Rows, media: Path, folder: Path) -> Rows:
    """60 records; of one, words, names and metadata that no other has; of another, nothing can be used."""
    folder.mkdir(parents=True)
    for name in ("images", "sounds"):
        (folder / name).symlink_to(media / name)
    pillow.effect_noise((64, 48), 90).convert("RGB").save(folder / "wilhelmina.png")
    (folder / "Ottokar.jpg").write_bytes(b"no picture")
    rows = [dict(row) for row in rows[:60]]
    rows[PLACE] = {
        "id": VICTIM,
        "text": "quetzalcoatlus over the harbour",
        "image": "wilhelmina.png",
        "hobby_7731": "beekeeping",
    }
    rows[PLACE + 20] = {"id": SPOILT, "text": "Ottokar", "image": ["Ottokar.jpg", "Ottokar.jpg"]}
    return rows


def write(folder: Path, rows: Rows) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


BUILD = ("--unit-records", UNIT, *FLAGS, "--text-min-words", 2, "--max-error-rate", 1)


@pytest.fixture(scope="module")
def origin(rows: Rows, manifest: Path, shared: Shared) -> Path:
    """An input, and beside it a data set that nobody may change."""

    def fill(folder: Path) -> None:
        path = write(folder, planted(rows, manifest.parent, folder))
        mmembed("build", path, folder / "out", *BUILD, *IN_PROCESS)

    return shared("forget", fill)


class Set:
    """A data set of its own, and its input."""

    def __init__(self, origin: Path, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        shutil.copytree(origin, folder, symlinks=True)
        self.rows = [json.loads(line) for line in (folder / "m.jsonl").read_text("utf-8").splitlines()]
        self.build()

    def build(self, *flags: object, out: Path | None = None, expect: int = 0) -> str:
        path = write(self.folder, self.rows)
        words = ("build", path, out or self.out, *BUILD, *flags, *IN_PROCESS)
        return mmembed(*words, expect=expect).stderr

    def forget(self, *ids: str, workers: int = 0, expect: int = 0) -> dict[str, Any]:
        flags = ("--workers", workers) if workers else IN_PROCESS
        words = [word for id in ids for word in ("--id", id)]
        said = mmembed("forget", self.out, *words, "--json", *flags, expect=expect)
        return dict(json.loads(said.stdout))

    def fresh(self, *flags: object) -> dict[str, bytes]:
        """The content of a data set that knew from its first day what it was not to know."""
        out = self.folder / "fresh"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        forgotten = replace(Dataset.open(self.out).forgotten, again=())
        Dataset(out, forgotten=forgotten).save()
        self.build(*flags, out=out)
        return {**content(out), **content(out, ("dropped", "stamps"))}

    def content(self) -> dict[str, bytes]:
        return {**content(self.out), **content(self.out, ("dropped", "stamps"))}

    def ids(self, folder: str = "records") -> list[str]:
        return list(pq.read_table(self.out / folder)["id"].to_pylist())


@pytest.fixture
def made(origin: Path, tmp_path: Path) -> Set:
    return Set(origin, tmp_path / "set")


def traces(out: Path, words: tuple[str, ...] = TRACES) -> list[str]:
    """Where any of some words stands, in names, raw bytes, or what they hold when they are unpacked."""
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            data += repr(file.read().to_pylist()).encode() + repr(file.metadata.metadata).encode()
            data += "".join(str(file.metadata.row_group(n).to_dict()) for n in range(file.num_row_groups)).encode()
        elif path.suffix == ".arrow":
            data += repr(pa.ipc.open_file(path).read_all().to_pylist()).encode()
        elif zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(path) as archive:
                data += b"".join(map(archive.read, archive.namelist()))
        found += [f"{path.relative_to(out)}: {word}" for word in words if word.encode() in data or word in path.name]
    return found


def vectors_of(out: Path, id: str) -> list[Any]:
    tables = [pq.read_table(folder) for folder in sorted((out / "embeddings").iterdir())]
    return [np.array(row["embedding"], np.float32) for table in tables for row in table.to_pylist() if row["id"] == id]


def holds(out: Path, vector: Any) -> list[str]:
    """Files of a data set that hold a vector, byte by byte or as a row of an index."""
    found = [str(path) for path in out.rglob("*") if path.is_file() and vector.tobytes() in path.read_bytes()]
    for path in out.glob("index/*.faiss"):
        index = faiss.read_index(str(path))
        rows = index.reconstruct_n(0, index.ntotal)
        if rows.shape[1] == len(vector) and (np.abs(rows - vector).max(axis=1, initial=1) < 1e-6).any():
            found.append(str(path))
    return found


def test_a_record_leaves_every_byte_and_all_that_learned_from_it(made: Set) -> None:
    kept = vectors_of(made.out, VICTIM)
    assert len(kept) == 2 and traces(made.out) and all(holds(made.out, vector) for vector in kept)
    before = Dataset.open(made.out)
    receipt = made.forget(VICTIM, "nobody", workers=2)
    assert traces(made.out) == [] and not any(holds(made.out, vector) for vector in kept)
    after = Dataset.open(made.out)
    assert verify(after) == [] and list(after.stages) == list(before.stages)
    assert made.content() == made.fresh()

    assert receipt["ids"] == {VICTIM: "removed", "nobody": "not found"} and receipt["missing"] == ""
    assert receipt["rows_removed"] == {"features/image": 1, "features/text": 1, "records": 1}
    for file in receipt["files"]:
        sums = [
            dataset.files[file["path"]].sha256 if file["path"] in dataset.files else None for dataset in (before, after)
        ]
        assert sums == [file["before"], file["after"]] and sums[0] != sums[1]
    named = {file["path"] for file in receipt["files"]}
    assert {"records/part-00001.parquet", "features/text/part-00001.parquet", "index/image.faiss"} <= named
    assert "features/text/part-00000.parquet" not in named
    summary = after.stage("extract").summary
    assert (summary["records"], summary["rows"], summary["removed"]) == (59, 59, 1)
    assert (
        after.history[len(before.history)]["did"]
        == "1 rows of features/image, 1 rows of features/text, 1 rows of records"
    )

    answers = mmembed("query", made.out, "--text", "quetzalcoatlus over the harbour", "-k", 200, "--json").stdout
    assert answers and VICTIM not in answers
    assert VICTIM in complaint(mmembed("query", made.out, "--id", VICTIM, expect=2))
    assert "forgotten: 1 records" in mmembed("info", made.out).stdout


def test_no_build_brings_it_back(made: Set, rows: Rows) -> None:
    made.forget(VICTIM)
    assert "extract: up to date" in made.build() and made.ids().count(VICTIM) == 0
    made.rows = [*rows[60:64], *made.rows, *rows[64:70]]  # all units are others now
    assert "(10 added, 0 changed, 0 removed)" in made.build()
    fresh, errors = made.fresh(), "errors/part-00002.parquet"  # where attempts are counted
    assert traces(made.out) == [] and made.content() == {**fresh, errors: made.content()[errors]}
    made.build("--overwrite", "--audio-window", 1)
    assert traces(made.out) == [] and len(made.ids()) == 69
    path = made.out / "dataset.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))
    made.build("--overwrite", "--retry-errors")
    assert traces(made.out) == [] and verify(Dataset.open(made.out)) == []
    assert made.forget(VICTIM)["ids"] == {VICTIM: "forgotten before"}


def test_the_rest_is_as_if_it_had_never_been_there(made: Set, tmp_path: Path) -> None:
    made.rows.append(made.rows.pop(PLACE))  # the last one: all units are the same without it
    shutil.rmtree(made.out)
    made.build()
    made.forget(VICTIM)
    made.rows.pop()
    made.build(out=tmp_path / "never")
    for top in ("features", "embeddings", "records", "errors", "dropped"):
        paths = sorted((tmp_path / "never" / top).rglob("*.parquet"))
        for path in paths:
            assert pq.read_table(path).equals(pq.read_table(made.out / path.relative_to(tmp_path / "never"))), path
        assert len(paths) == len(list((made.out / top).rglob("*.parquet"))) > 0
    for path in sorted((tmp_path / "never/maps").glob("*.safetensors")):
        ours, theirs = load_file(made.out / "maps" / path.name), load_file(path)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    summaries = [Dataset.open(out).stage("extract").summary for out in (made.out, tmp_path / "never")]
    counts = [{key: value for key, value in s.items() if key not in ("added", "removed")} for s in summaries]
    assert counts[0] == counts[1]


def test_errors_and_what_was_dropped_go_with_their_record(made: Set) -> None:
    assert len(pq.read_table(made.out / "errors").to_pylist()) == 2 and SPOILT in made.ids("dropped")
    before = Dataset.open(made.out).stage("extract").summary
    receipt = made.forget(SPOILT)
    assert receipt["rows_removed"] == {"dropped": 1, "errors": 2, "records": 1}
    assert traces(made.out, ("Ottokar",)) == [] and verify(Dataset.open(made.out)) == []
    summary = Dataset.open(made.out).stage("extract").summary
    assert before["failed"]["image"] - summary["failed"]["image"] == 2
    assert before["filtered"]["text"] - summary["filtered"]["text"] == 1
    assert before["media"]["image"] - summary["media"]["image"] == 2
    assert made.content() == made.fresh()


def test_a_row_of_errors_whose_record_has_no_id_is_named_by_its_source(made: Set) -> None:
    path = write(made.folder, made.rows)
    path.write_text('{"id": "Wenzel, "text"}\n' + path.read_text("utf-8"), "utf-8")
    words = ("build", path, made.out, *BUILD, *IN_PROCESS)
    mmembed(*words)
    assert made.forget("m.jsonl:1")["rows_removed"] == {"errors": 1}
    assert (
        verify(Dataset.open(made.out)) == []
        and "m.jsonl:1" not in pq.read_table(made.out / "errors")["source"].to_pylist()
    )
    assert "extract: up to date" in mmembed(*words).stderr


KILL = """
import os, signal, sys
left = int(sys.argv.pop(1))
def dying(real):
    def act(*words, **flags):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **flags)
    return act
os.replace, os.unlink = dying(os.replace), dying(os.unlink)
from mmembed.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("steps", [0, 1, 3, 12, 24, 27, 28, 29, 31, 33, 34, 40])
def test_one_that_is_killed_goes_on_and_nothing_is_found_meanwhile(made: Set, steps: int) -> None:
    words = ("forget", made.out, "--id", VICTIM, "--id", SPOILT, "--json", *IN_PROCESS)
    command = [sys.executable, "-c", KILL, str(steps), *map(str, words)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL
    begun = bool(Dataset.open(made.out).forgotten)
    if begun:
        asked = mmembed("query", made.out, "--text", "quetzalcoatlus", expect=2)
        assert "has not been run" in complaint(asked)
    if steps % 2:
        made.forget(VICTIM, SPOILT)
    elif begun:
        mmembed("fit", made.out, *IN_PROCESS)
        assert traces(made.out) == [] and not Dataset.open(made.out).forgotten.pending
        made.build()
    else:
        assert set(made.forget(VICTIM, SPOILT)["ids"].values()) == {"removed"}
    assert traces(made.out) == [] and verify(Dataset.open(made.out)) == []
    assert not list(made.out.rglob("*.mmembed-tmp")) and not (made.out / "scratch").exists()
    assert made.content() == made.fresh()
    assert "evaluate" in Dataset.open(made.out).stages


def test_so_does_one_whose_workers_were_killed_with_it(made: Set) -> None:
    rng, kills = random.Random(0), 0
    while kills < 3:
        with started("forget", made.out, "--id", VICTIM, "--workers", 2) as process:
            end = time.monotonic() + rng.uniform(1, 4)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            kills += 1
            kill_group(process.pid)
            process.wait()
            wait_for(lambda: not members(process.pid), 10, "the end of the killed processes")
    made.forget(VICTIM, workers=2)
    assert traces(made.out) == [] and made.content() == made.fresh()


def test_an_extraction_that_was_killed_forgets_too(made: Set) -> None:
    made.rows.insert(0, {"id": "new", "text": "a new one in front"})
    words = ("build", write(made.folder, made.rows), made.out, *map(str, BUILD), *IN_PROCESS)
    command = [sys.executable, "-c", KILL, "30", *map(str, words)]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert "extract" not in Dataset.open(made.out).stages and (made.out / "scratch").exists() and traces(made.out)
    assert made.forget(VICTIM)["ids"] == {VICTIM: "removed"}
    assert traces(made.out) == []
    made.build()
    assert traces(made.out) == [] and made.content() == made.fresh()


def test_the_copy_of_a_record_that_goes_comes_back(made: Set) -> None:
    made.rows[30] = made.rows[PLACE] | {"id": "copy-1", "hobby_7731": None}
    made.rows[50] = made.rows[PLACE] | {"id": "copy-2", "hobby_7731": None}
    made.build("--dedup", "exact")
    assert "copy-1" not in made.ids("features/text")
    made.forget(VICTIM)
    assert "copy-1" in made.ids("features/text") and "copy-2" not in made.ids("features/text")
    dropped = {row["id"]: row["twin"] for row in pq.read_table(made.out / "dropped").to_pylist()}
    assert dropped["copy-2"] == "copy-1"
    assert traces(made.out, ("Wilhelmina",)) == [] and verify(Dataset.open(made.out)) == []
    assert made.content() == made.fresh("--dedup", "exact")
    assert "extract: up to date" in made.build("--dedup", "exact")


def test_it_stays_out_where_the_input_is_gone_and_that_is_said(made: Set) -> None:
    made.rows[30] = made.rows[PLACE] | {"id": "copy-1"}
    made.build("--dedup", "exact")
    (made.folder / "m.jsonl").rename(made.folder / "elsewhere")
    said = mmembed("forget", made.out, "--id", VICTIM, *IN_PROCESS, expect=1)
    assert VICTIM in said.stdout and "removed" in said.stdout
    assert "copies of what is forgotten are still left out: " in said.stderr.splitlines()[-1]
    assert traces(made.out, ("Wilhelmina",)) == [] and verify(Dataset.open(made.out)) == []
    assert "evaluate" in Dataset.open(made.out).stages
    (made.folder / "elsewhere").rename(made.folder / "m.jsonl")
    assert made.forget(VICTIM)["missing"] == ""
    assert "copy-1" in made.ids("features/text") and made.content() == made.fresh("--dedup", "exact")


def test_what_was_not_done_is_not_done_afterwards(made: Set) -> None:
    shutil.rmtree(made.out)
    mmembed("extract", made.folder / "m.jsonl", made.out, *BUILD, *IN_PROCESS)
    (made.out / "README.md").write_text("mine")
    made.forget(VICTIM)
    assert list(Dataset.open(made.out).stages) == ["extract"] and traces(made.out) == []
    assert (made.out / "README.md").read_text() == "mine"


def test_one_without_which_nothing_can_be_learned_is_removed_all_the_same(made: Set) -> None:
    made.rows = [{"id": f"text-{n}", "text": f"nothing but text {n}"} for n in range(20)]
    pictures = [path.name for path in sorted((made.folder / "images").iterdir())][:30]
    made.rows += [
        {"id": f"{VICTIM}-{n}", "text": f"with a picture {n}", "image": f"images/{name}"}
        for n, name in enumerate(pictures)
    ]
    shutil.rmtree(made.out)
    made.build()
    ids = made.folder / "ids"
    ids.write_bytes("".join(f"{VICTIM}-{n}\r\n\n" for n in range(30)).encode())
    said = mmembed("forget", made.out, "--ids-file", ids, *IN_PROCESS, expect=1)
    assert "the records are removed, but not all could be done again: " in said.stderr.splitlines()[-1]
    assert traces(made.out) == [] and verify(Dataset.open(made.out)) == []
    assert list(Dataset.open(made.out).stages) == ["extract"]


def test_maps_of_another_data_set_stay_though_that_is_gone(made: Set, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for row in (made.rows[25], made.rows[26]):  # of one group with the victim, in the other data set
        row["image"] = "wilhelmina.png"
    made.build()
    assert VICTIM in json.dumps(json.loads((made.out / "maps/groups.json").read_text("utf-8"))["twins"])
    made.out.rename(other)
    made.build("--maps", other)
    maps = content(made.out, ("maps",))
    split = {row["id"]: row["split"] for row in pq.read_table(made.out / "embeddings/text").to_pylist()}
    other.rename(tmp_path / "away")
    made.forget(VICTIM)
    assert traces(made.out, ("Wilhelmina", "hobby_7731")) == [] and verify(Dataset.open(made.out)) == []
    now = content(made.out, ("maps",))
    assert {name for name in maps if maps[name] != now[name]} == {"maps/groups.json"}
    del split[VICTIM]
    assert {row["id"]: row["split"] for row in pq.read_table(made.out / "embeddings/text").to_pylist()} == split
    (tmp_path / "away").rename(other)
    made.build("--maps", other, "--overwrite")
    assert traces(made.out, ("Wilhelmina", "hobby_7731")) == []


def test_a_folder_of_files_forgets_their_names(made: Set, tmp_path: Path) -> None:
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    for n in range(24):
        shade = 60 if n % 2 else 200  # the same in each run, and what the text says
        pillow.new("RGB", (40, 40), (shade, 10 * n, 255 - 10 * n)).save(folder / f"p{n}.png")
        (folder / f"p{n}.txt").write_text(f"a {'dark' if n % 2 else 'bright'} picture of number {n}")
    for ending in ("png", "txt"):
        (folder / f"p7.{ending}").rename(folder / f"{VICTIM}.{ending}")
    words = ("build", folder, out, "--unit-records", 8, *FLAGS, *IN_PROCESS)
    mmembed(*words)
    mmembed("forget", out, "--id", VICTIM, *IN_PROCESS)
    assert traces(out) == [] and verify(Dataset.open(out)) == []
    assert "extract: up to date" in mmembed(*words).stderr
    before = content(out, ("features", "records", "stamps"))
    shutil.rmtree(out / "records")
    mmembed(*words)
    assert traces(out) == [] and content(out, ("features", "records", "stamps")) == before


def test_a_wrong_call_changes_nothing(made: Set) -> None:
    before = times(made.out)
    assert "--id ID, or --ids-file FILE" in complaint(mmembed("forget", made.out, expect=2))
    assert "no record of the id 'nobody'" in complaint(mmembed("forget", made.out, "--id", "nobody", expect=2))
    assert "can't read" in complaint(mmembed("forget", made.out, "--ids-file", made.folder / "none", expect=2))
    (made.folder / "latin").write_bytes("Jürgen".encode("latin-1"))
    assert "no UTF-8" in complaint(mmembed("forget", made.out, "--ids-file", made.folder / "latin", expect=2))
    mmembed("forget", made.folder / "nowhere", "--id", "a", expect=2)
    assert not (made.folder / "nowhere").exists()
    assert times(made.out) == before


def test_the_receipt_is_a_table_for_a_person(made: Set) -> None:
    said = mmembed("forget", made.out, "--id", VICTIM, "--id", "nobody", *IN_PROCESS).stdout
    assert f"{VICTIM}  removed" in said and f"{'nobody':<{len(VICTIM)}}  not found" in said
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert lines["records"] == ["1", "1", "0", "0"] and lines["embeddings/text"] == ["0", "4", "0", "0"]


def test_a_bucket_forgets(origin: Path, tmp_path: Path) -> None:
    with gcs_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
            patch.setitem(ENVIRONMENT, name, value)
        use_flags(())
        out = RemotePath(f"gs://{BUCKET}/out")
        mmembed("build", origin / "m.jsonl", out, *BUILD, *IN_PROCESS)
        mmembed("forget", out, "--id", VICTIM, *IN_PROCESS)
        for name in out.sizes():
            path = tmp_path / "copy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((out / name).read_bytes())
    _check_credentials.cache_clear()
    assert traces(tmp_path / "copy") == [] and verify(Dataset.open(tmp_path / "copy")) == []
    assert os.listdir(tmp_path / "copy/records")
