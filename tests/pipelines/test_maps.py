"""Maps, indexes and evaluations of whole data sets, by other methods than the default."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ENVIRONMENT, IN_PROCESS, complaint, mmembed, times
from sklearn.metrics import average_precision_score
from small_encoders import FLAGS

from mmembed.dataset import Dataset
from mmembed.hubness import bank_of, csls_terms
from mmembed.index import scoring_of
from mmembed.linear import LinearMap
from mmembed.search import Query, Searcher
from mmembed.tables import vectors_from_arrow
from mmembed.verify import verify


@pytest.fixture(scope="module")
def scored(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with the PMI score and corrected hubs, and an evaluation by color."""
    out = Path(shutil.copytree(built, tmp_path_factory.mktemp("scored") / "out"))
    mmembed("fit", out, "--fit", "pmi", *IN_PROCESS)
    mmembed("project", out, *IN_PROCESS)
    mmembed("index", out, "--hubness", "csls", *IN_PROCESS)
    mmembed("evaluate", out, "--label-column", "color")
    return out


def evaluation(out: Path) -> Any:
    return json.loads((out / "evaluation.json").read_text("utf-8"))


def test_all_of_it_fits_together(scored: Path) -> None:
    dataset = Dataset.open(scored)
    assert verify(dataset) == []
    assert dataset.config["fit"]["fit"] == "pmi" and dataset.config["index"]["hubness"] == "csls"
    assert "spectrum" in (scored / "README.md").read_text("utf-8")
    assert mmembed("index", scored, *IN_PROCESS).stderr.startswith("index: up to date")


def test_a_query_scores_by_inner_product_term_and_correction(scored: Path) -> None:
    dataset, searcher = Dataset.open(scored), Searcher.open(scored)
    query = searcher.embed(Query.of(text="three small red stars")).vector
    scoring = scoring_of(dataset)
    images = np.concatenate([vectors_from_arrow(t["embedding"]) for _, t in dataset.tables("embeddings/image")])
    terms = scoring.terms(images)
    assert terms is not None
    scores = images @ query + terms + csls_terms(images, bank_of(dataset, "text"), scoring)
    found = [hit.score for hit in searcher.search(Query.of(text="three small red stars"), "image", 10)]
    np.testing.assert_allclose(found, np.sort(scores)[::-1][:10], rtol=1e-4, atol=1e-4)


def test_the_evaluation_has_both_ways_the_index_and_classes(scored: Path) -> None:
    result = evaluation(scored)
    assert len(result["rows"]) == 6
    for row in result["rows"]:
        assert row["index_recall@10"] == 1
        assert row["hubness"]["csls"]["mrr"] == pytest.approx(row["mrr"])
        assert row["mrr_low"] <= row["mrr"] <= row["mrr_high"]
        assert row["modality_gap"] > 0
        assert row["by_label"]["recall@1"] > row["by_label"]["chance_recall@1"]
    colors = {row["modality"]: row for row in result["classification"]}
    assert set(colors) == {"audio", "image", "text"}
    assert colors["image"]["accuracy"] > 2 * colors["image"]["chance"]
    shown = mmembed("evaluate", scored).stdout
    assert "zero-shot classification of image" in shown and "by label: MAP" in shown


def test_map_by_label_is_that_of_scikit_learn(built: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(built, tmp_path / "out"))
    mmembed("evaluate", out, "--label-column", "shape")
    dataset, held_out = Dataset.open(out), {}
    for name in ("image", "text"):
        rows = [row for _, table in dataset.tables(f"embeddings/{name}") for row in table.to_pylist()]
        held_out[name] = {row["id"]: row for row in rows if row["split"] == "heldout"}
    found = []
    for id, query in held_out["image"].items():
        if id in held_out["text"]:
            right = [row["metadata"]["shape"] == query["metadata"]["shape"] for row in held_out["text"].values()]
            scores = [np.dot(query["embedding"], row["embedding"]) for row in held_out["text"].values()]
            found.append(average_precision_score(right, scores))
    (row,) = (row for row in evaluation(out)["rows"] if (row["query"], row["target"]) == ("image", "text"))
    assert row["by_label"]["map"] == pytest.approx(np.mean(found), abs=1e-5)


def test_an_unknown_label_is_one_line_and_changes_nothing(scored: Path) -> None:
    before = times(scored)
    assert "no record has the label column 'breed'" in complaint(
        mmembed("evaluate", scored, "--label-column", "breed", expect=2)
    )
    assert times(scored) == before


def test_filters_of_texts_keep_no_class_name_out_and_say_why_a_query_is_none(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mmembed(
        "build", manifest, out, "--text-min-words", 3, "--label-column", "color", "--holdout", 0.3, *FLAGS, *IN_PROCESS
    )
    assert evaluation(out)["classification"]
    refused = complaint(mmembed("explain", out, "--text", "red", "--id", "scene-000003", expect=2))
    assert "min_words" in refused


JOINT = """
import numpy as np
import small_encoders
from mmembed.encoders.input import Input
from mmembed.types import Space

class Shared:
    space = Space("joint", "1", 24)
    input = Input()
    def setup(self): pass

class Image(Shared):
    modality = "image"
    def encode(self, batch): return small_encoders.SmallImage().encode(batch)[:, :24]

class Text(Shared):
    modality = "text"
    def encode(self, batch): return small_encoders.SmallText().encode(batch)
"""


def test_identity_keeps_the_space_of_joint_encoders(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "joint.py").write_text(JOINT, "utf-8")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path}")
    flags = ("--image-encoder", "joint:Image", "--text-encoder", "joint:Text")
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    rows = [json.loads(line) for line in Path(Dataset.open(small).input).read_text("utf-8").splitlines()]
    folder = Path(Dataset.open(small).input).parent
    (tmp_path / "images").symlink_to(folder / "images")
    kept = [{key: value for key, value in row.items() if key != "audio"} for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    mmembed("build", manifest, out, "--fit", "identity", *flags, *IN_PROCESS)
    dataset = Dataset.open(out)
    assert verify(dataset) == []
    linear_map = LinearMap.from_bytes(dataset.read("maps/text.safetensors"))
    assert (linear_map.weight == np.eye(24)).all()
    result = mmembed("fit", out, "--fit", "cca", *IN_PROCESS)
    assert "fit:" in result.stderr  # whatever it decides, it says so
    refused = complaint(mmembed("fit", small, "--fit", "identity", *IN_PROCESS, expect=2))
    assert "features of one dimension" in refused
    assert "fit" in Dataset.open(small).stages  # nothing was begun
