"""The report of a data set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import html_page
import numpy as np
import pytest
from command import IN_PROCESS, mmembed
from conftest import UNIT
from dataset_builder import Row, build, random_rows
from small_encoders import FLAGS

from mmembed.dataset import EVALUATION, REPORT, Dataset, describe
from mmembed.evaluate import evaluate
from mmembed.index import ENTRIES
from mmembed.pages import parts
from mmembed.pages.report_page import report_page
from mmembed.shards import write_json
from mmembed.splits import HELD_OUT
from mmembed.verify import verify

MEGABYTE = 1 << 20


def evaluation_of(dataset: Dataset) -> dict[str, Any]:
    return dict(json.loads(dataset.read(EVALUATION)))


def read(root: Path) -> html_page.Page:
    return html_page.read((root / REPORT).read_text("utf-8"))


def with_json(dataset: Dataset, path: str, value: Mapping[str, Any]) -> Dataset:
    """The data set with another JSON file, and a manifest that fits it."""
    write_json(dataset.folder / path, value)
    return replace(dataset, files={**dataset.files, path: describe(dataset.folder, path)})


def test_a_build_leaves_a_report_that_shows_everything(small: Path) -> None:
    markup = (small / REPORT).read_text("utf-8")
    page, dataset = html_page.read(markup), Dataset.open(small)
    assert REPORT in dataset.files and verify(dataset) == []
    headings = "Counts", "Retrieval", "The shared space", "Sample records", "How the maps were learned", "The index"
    assert set(headings) <= set(page.texts)
    assert page.tags.count("article") == 12
    assert page.tags.count("img") and page.tags.count("audio") and parts.GONE not in markup
    assert "held out" in page.texts
    for row in evaluation_of(dataset)["rows"]:
        assert f"{row['recall@5']:.1%}" in page.texts
        assert f"{row['recall@5_low']:.1%} to {row['recall@5_high']:.1%}" in page.texts
    assert len(markup) < 2 * MEGABYTE


def test_a_point_for_each_record_and_modality(small: Path) -> None:
    dataset = Dataset.open(small)
    segments = dataset.stage("project").summary["segments"]
    points = [text for text in read(small).texts if text.startswith("scene-") and "): " in text]
    assert len(points) == sum(segments.values())
    assert len(set(points)) == len(points)


def test_no_path_of_this_machine_is_in_it(small: Path) -> None:
    markup = (small / REPORT).read_text("utf-8")
    assert str(small) not in markup and str(Path(Dataset.open(small).input).parent) not in markup


def test_the_same_data_set_gives_the_same_bytes(small: Path) -> None:
    dataset = Dataset.open(small)
    assert report_page(dataset, evaluation_of(dataset)).encode() == (small / REPORT).read_bytes()


def test_a_second_evaluation_leaves_the_report_alone(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    before = (copy / REPORT).stat().st_mtime_ns
    mmembed("evaluate", copy)
    assert (copy / REPORT).stat().st_mtime_ns == before
    (copy / REPORT).unlink()
    mmembed("evaluate", copy)
    assert (copy / REPORT).read_bytes() == (small / REPORT).read_bytes()
    mmembed("fit", copy, "--dim", 3)
    assert not (copy / REPORT).exists()


def test_media_that_are_gone_are_said_and_counted(small: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(small)
    moved = replace(dataset, input=str(tmp_path / "nowhere.jsonl"))
    markup = report_page(moved, evaluation_of(dataset))
    page = html_page.read(markup)
    lost = markup.count(parts.GONE) - 1
    assert lost > 12 and f"{lost} media of these records can't be read any more" in page.text
    assert not {"img", "audio"} & set(page.tags) and str(tmp_path) not in markup


def test_one_medium_that_is_gone_leaves_the_others(small: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(small)
    folder = Path(dataset.input).parent
    for name in ("images", "sounds"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(dataset.input, tmp_path / "manifest.jsonl")
    shown = read(small).values("img", "alt")[0]
    (tmp_path / shown).unlink()
    moved = report_page(replace(dataset, input=str(tmp_path / "manifest.jsonl")), evaluation_of(dataset))
    page = html_page.read(moved)
    assert moved.count(parts.GONE) == 2 and "1 media" in page.text
    assert page.tags.count("img") == read(small).tags.count("img") - 1


def test_errors_come_by_stage_and_kind_with_examples(built: Path) -> None:
    page = read(built)
    for kind in ("DecodeError", "ReadError"):
        assert kind in page.texts
    assert any("corrupt.jpg" in text for text in page.texts)
    assert any(text.startswith("manifest.jsonl:") for text in page.texts)


@pytest.mark.parametrize("hostile", html_page.HOSTILE)
def test_hostile_ids_texts_and_metadata_stay_text(tmp_path: Path, hostile: str) -> None:
    def page(text: str, root: Path) -> html_page.Page:
        rows = [
            Row(f"{row.id}{text}", row.vectors, {text or "key": text, "b": [text]})
            for row in random_rows(9, ["image", "text"], 6)
        ]
        dataset = build(root, rows, held_out=[rows[0].id, rows[4].id])
        dataset = replace(dataset, input=f"/data/{text}")
        return html_page.read(report_page(dataset, evaluate(dataset)))

    usable = hostile.encode("utf-8", "replace").decode()  # as ids are: halves of pairs are no Parquet
    plain, found = page("plain", tmp_path / "plain"), page(usable, tmp_path / "hostile")
    assert Counter(found.tags) == Counter(plain.tags)
    assert parts.clean(usable).split()[0] in found.text


@pytest.mark.parametrize("modalities", [["image", "text"], ["text"], ["audio"]])
def test_any_modalities_and_nothing_held_out(tmp_path: Path, modalities: list[str]) -> None:
    dataset = build(tmp_path, random_rows(5, modalities, 6), modalities)
    result = evaluate(dataset)
    page = html_page.read(report_page(dataset, result))
    assert not result["rows"] and result["note"] in page.text
    assert "mean recall@10, held out" not in page.texts


def test_a_modality_without_rows_and_one_record(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(1, ["image"], 6))
    html_page.read(report_page(dataset, evaluate(dataset)))


def test_before_indexing_there_is_no_section_of_it(tmp_path: Path) -> None:
    dataset = build(tmp_path, random_rows(5, ["image", "text"], 6), until="project")
    assert "The index" not in html_page.read(report_page(dataset, evaluate(dataset))).texts


def test_embeddings_that_are_not_of_length_1(small: Path, tmp_path: Path) -> None:
    words = ("--unit-records", UNIT, *FLAGS, "--fit", "pmi", *IN_PROCESS)
    mmembed("build", Dataset.open(small).input, tmp_path / "out", *words)
    page = read(tmp_path / "out")
    assert "The shared space" in page.texts and page.tags.count("article") == 12


def test_figures_by_class(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    mmembed("evaluate", copy, "--label-column", "shape")
    page = read(copy)
    assert {"by class", "zero-shot classification"} <= set(page.texts)


CURVE = [
    {"kind": "Flat", "search": {}, "rows": 9, "bytes": 9000, "recall": {"text": 1.0}, "milliseconds": 2.0},
    {
        "kind": "IVF4,PQ8x4fs",
        "search": {"nprobe": 2},
        "rows": 9,
        "bytes": 900,
        "recall": {"text": 0.91},
        "milliseconds": 0.1,
        "chosen": True,
    },
    {
        "kind": "HNSW32",
        "search": {"efSearch": 16},
        "rows": 5,
        "expected_milliseconds": 0.4,
        "bytes": 9900,
        "recall": {"text": 0.97},
        "milliseconds": 0.0,
    },
]


@pytest.mark.parametrize(
    "asked", [{"recall": 0.95, "memory": 5000, "milliseconds": 5.0}, {"recall": 0.9, "memory": 0, "milliseconds": 0.0}]
)
def test_the_operating_curve_has_every_point_the_chosen_one_and_what_was_asked(
    tmp_path: Path, asked: dict[str, float]
) -> None:
    dataset = build(tmp_path, random_rows(9, ["image", "text"], 6), held_out=["r000", "r001"])
    entries = json.loads(dataset.read(ENTRIES))
    result = evaluate(dataset)
    more = {"curve": CURVE, "asked": asked, "recall": {"text": 0.91}, "milliseconds": 0.1, "bytes": 900}
    entries["image"] |= {**more, "kind": "IVF4,PQ8x4fs", "search": {"nprobe": 2}}
    page = html_page.read(report_page(with_json(dataset, ENTRIES, entries), result))
    assert {"Flat", "IVF + PQ", "HNSW, on a sample of the rows"} <= set(page.texts)
    assert "HNSW32 (efSearch 16): text 97.0%; 0.4 ms expected" in page.texts
    assert [text for text in page.texts if text.startswith("IVF4,PQ8x4fs (nprobe 2): text 91.0%")]
    assert page.values("circle", "class").count("here") == 2
    # The exact one of texts has no curve, and no heading.
    assert page.texts.count("text") == page.texts.count("image") - 1
    assert sum(text.startswith("asked: ") for text in page.texts) == 2 + sum(
        bool(asked[key]) for key in ("memory", "milliseconds")
    )


def test_a_large_map_is_a_sample_of_whole_records(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        Row(f"r{number:04d}", {name: random.normal(size=(1, 4)).astype(np.float32) for name in ("image", "text")})
        for number in range(1700)
    ]
    dataset = build(tmp_path, rows, dim=4, unit=100, held_out=[row.id for row in rows[:100]])
    markup = report_page(dataset, {"rows": [], "note": ""})
    points = [text for text in html_page.read(markup).texts if "): image/" in text or "): text/" in text]
    assert len(points) == 3000
    assert len({point.split()[0] for point in points}) == 1500
    assert len(markup) < 1.5 * MEGABYTE


def test_held_out_points_are_marked(tmp_path: Path) -> None:
    rows = random_rows(9, ["image", "text"], 6)
    dataset = build(tmp_path, rows, held_out=["r000", "r003"])
    markup = report_page(dataset, evaluate(dataset))
    strong = [part for part in markup.split("<g ") if 'opacity="1"' in part.split(">")[0] and "<title>r0" in part]
    assert {part.split("<title>")[1].split()[0] for part in strong} <= {"r000", "r003"} and strong
    assert HELD_OUT and "image, held out" in markup
