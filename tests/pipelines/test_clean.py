"""What is left out is written down: copies, near copies, what filters refuse, records whose id was used before."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import IN_PROCESS, content, mmembed
from PIL import Image as pillow
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.verify import verify

UNIT = 8
Rows = list[dict[str, Any]]


class Set:
    """Records with media of their own."""

    def __init__(self, folder: Path, rows: Rows, media: Path) -> None:
        self.folder, self.rows, self.out = folder, [dict(row) for row in rows], folder / "out"
        folder.mkdir(exist_ok=True)
        for name in ("images", "sounds"):
            (folder / name).symlink_to(media / name)

    def build(self, *flags: object, out: Path | None = None) -> str:
        path = self.folder / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")
        words = ("build", path, out or self.out, "--unit-records", UNIT, *FLAGS, *flags, *IN_PROCESS)
        return mmembed(*words).stdout

    def dropped(self) -> list[dict[str, Any]]:
        folder = self.out / "dropped"
        return list(pq.read_table(folder).to_pylist()) if folder.exists() else []

    def ids(self, modality: str) -> list[str]:
        return list(dict.fromkeys(pq.read_table(self.out / "features" / modality)["id"].to_pylist()))

    def checked(self) -> dict[str, Any]:
        """The summary of a sound data set in which each medium has one fate."""
        dataset = Dataset.open(self.out)
        assert verify(dataset) == []
        summary = dict(dataset.stage("extract").summary)
        for name, count in summary["media"].items():
            assert count == sum(summary[what][name] for what in ("used", "filtered", "duplicates", "failed"))
        return summary


@pytest.fixture
def complete(rows: Rows) -> Rows:
    """30 records that have all modalities."""
    return [row for row in rows if all(row.get(key) for key in ("image", "text", "audio"))][:30]


@pytest.fixture
def made(complete: Rows, manifest: Path, tmp_path: Path) -> Set:
    return Set(tmp_path / "set", complete, manifest.parent)


def test_exact_copies_are_left_out_for_a_twin_that_is_named(made: Set, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    made.build(out=plain)
    made.rows[12] = made.rows[3] | {"id": "copy-1"}
    made.rows[25] = made.rows[3] | {"id": "copy-2"}
    made.rows[26] = made.rows[3] | {"id": "other caption", "text": "quite another text"}
    made.build()
    assert made.checked()["duplicate_records"] == 0 and made.dropped() == []
    said = made.build("--dedup", "exact")
    assert [(row["id"], row["kind"], row["twin"], row["reason"], row["source"]) for row in made.dropped()] == [
        ("copy-1", "duplicate", made.rows[3]["id"], "the same audio and image and text", "m.jsonl:13"),
        ("copy-2", "duplicate", made.rows[3]["id"], "the same audio and image and text", "m.jsonl:26"),
    ]
    summary = made.checked()
    assert summary["duplicates"] == {"image": 2, "text": 2, "audio": 2} and summary["duplicate_records"] == 2
    for modality in ("image", "text", "audio"):
        assert made.ids(modality) == [row["id"] for row in made.rows if not row["id"].startswith("copy")]
    assert "30 records in the input, 30 read, 2 of them duplicates" in said
    assert "dropped/: 2 duplicate, first m.jsonl:13" in mmembed("info", made.out).stdout


def test_a_copy_comes_back_when_its_twin_goes(made: Set, tmp_path: Path) -> None:
    made.rows[12] = made.rows[3] | {"id": "copy-1"}
    made.rows[25] = made.rows[3] | {"id": "copy-2"}
    made.build("--dedup", "exact")
    assert "copy-1" not in made.ids("text")
    del made.rows[3]
    made.build("--dedup", "exact")
    assert "copy-1" in made.ids("image")
    assert [(row["id"], row["twin"]) for row in made.dropped()] == [("copy-2", "copy-1")]
    made.checked()
    made.build("--dedup", "exact", out=tmp_path / "fresh")
    assert content(made.out) == content(tmp_path / "fresh")
    made.build("--dedup", "none")
    assert made.dropped() == [] and "copy-2" in made.ids("audio")
    made.build(out=tmp_path / "plain")
    assert content(made.out) == content(tmp_path / "plain")


def test_near_copies_are_left_out_and_other_captions_stay(made: Set) -> None:
    buffer = io.BytesIO()
    with pillow.open(made.folder / made.rows[2]["image"]) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=70)
    (made.folder / "again.jpg").write_bytes(buffer.getvalue())
    made.rows[20] = made.rows[2] | {"id": "again", "image": "again.jpg", "text": made.rows[2]["text"].upper() + "!"}
    made.rows[21] = made.rows[2] | {"id": "other", "image": "again.jpg", "text": "no word of it is the same"}
    made.build()
    made.build("--dedup", "near")  # what is there has no signatures yet
    assert [(row["id"], row["twin"], row["reason"]) for row in made.dropped()] == [
        ("again", made.rows[2]["id"], "nearly the same audio and image and text")
    ]
    assert made.checked()["duplicates"] == {"image": 1, "text": 1, "audio": 1}
    made.rows = [{"id": "front", "text": "a new one"}, *made.rows]
    made.build("--dedup", "near")  # signatures are taken over with the features
    assert [row["id"] for row in made.dropped()] == ["again"]


def test_an_id_that_was_used_before_is_an_error_wherever_it_comes_back(made: Set, tmp_path: Path) -> None:
    made.rows[5] = made.rows[5] | {"id": made.rows[1]["id"]}  # in the same unit
    made.rows[20] = made.rows[20] | {"id": made.rows[1]["id"]}  # in another
    made.build("--max-error-rate", 1)
    errors = pq.read_table(made.out / "errors").to_pylist()
    assert [(row["id"], row["error"], row["stage"], row["source"]) for row in errors] == [
        (made.rows[1]["id"], "RepeatedIdError", "read", "m.jsonl:6"),
        (made.rows[1]["id"], "RepeatedIdError", "read", "m.jsonl:21"),
    ]
    assert all("was used before, at m.jsonl:2; ids must be unique" in row["message"] for row in errors)
    summary = made.checked()
    assert (summary["rows"], summary["records"], summary["failed_records"]) == (30, 28, 2)
    features = pq.read_table(made.out / "features/image")["id"].to_pylist()
    assert features.count(made.rows[1]["id"]) == 1
    made.rows[1] = made.rows[1] | {"id": "renamed"}  # now the second one is the first
    made.build("--max-error-rate", 1)
    assert [row["source"] for row in pq.read_table(made.out / "errors").to_pylist()] == ["m.jsonl:21"]
    made.build("--max-error-rate", 1, out=tmp_path / "fresh")
    assert content(made.out) == content(tmp_path / "fresh")


def test_what_a_filter_leaves_out_is_counted_with_its_reason(made: Set) -> None:
    pillow.new("RGB", (400, 40), "red").save(made.folder / "wide.png")
    pillow.new("RGB", (10, 10), "red").save(made.folder / "small.png")
    made.rows[3]["image"], made.rows[4]["image"], made.rows[5]["text"] = "wide.png", "small.png", "short"
    flags = ("--image-min-side", 32, "--image-max-aspect", 4, "--text-min-words", 2, "--audio-min-seconds", 0.1)
    said = made.build(*flags)
    assert [(row["id"], row["modality"], row["kind"], row["reason"]) for row in made.dropped()] == [
        (made.rows[3]["id"], "image", "filter", "400 x 40 pixels: the longer side is above max_aspect = 4"),
        (made.rows[4]["id"], "image", "filter", "10 x 10 pixels: the shorter side is below min_side = 32"),
        (made.rows[5]["id"], "text", "filter", "1 words are fewer than min_words = 2"),
    ]
    summary = made.checked()
    assert summary["filtered"] == {"image": 2, "text": 1, "audio": 0}
    assert made.rows[3]["id"] in made.ids("text") and made.rows[3]["id"] not in made.ids("image")
    assert "image     30  28      2           0             0" in said


def test_boxes_of_the_metadata_are_segments(made: Set) -> None:
    for number, row in enumerate(made.rows):
        row["boxes"] = [[0, 0, 50, 60], [10.5, 20, 10_000, 90]] if number % 2 else None
    made.rows[4]["boxes"] = [[5, 5, 5, 9]]
    made.build("--image-boxes", "boxes", "--max-error-rate", 1)
    table = pq.read_table(made.out / "features/image").to_pylist()
    spans = [row["span"] for row in table if row["id"] == made.rows[1]["id"]]
    assert spans[1] == [0, 0, 50, 60] and spans[2][:2] == [10, 20] and spans[2][2] == spans[0][2]
    [error] = pq.read_table(made.out / "errors").to_pylist()
    assert error["id"] == made.rows[4]["id"] and "holds nothing of the picture" in error["message"]
    made.rows[1]["boxes"] = [[0, 0, 20, 20]]
    made.build("--image-boxes", "boxes", "--max-error-rate", 1)  # the picture is the same, what is cut out of it not
    spans = [r["span"] for r in pq.read_table(made.out / "features/image").to_pylist() if r["id"] == made.rows[1]["id"]]
    assert spans[1:] == [[0, 0, 20, 20]]
    made.checked()
