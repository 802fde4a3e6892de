"""The README's ways to load the embeddings, and the dataset card's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from mmembed.dataset import Dataset
from mmembed.tables import vectors_from_arrow

MODALITIES = ("image", "text", "audio")
ROOT = Path(__file__).parents[1]


def expected(out: Path, modality: str) -> Any:
    """The table of a modality, shard by shard as the manifest names them."""
    paths = Dataset.open(out).below(f"embeddings/{modality}")
    return pyarrow.concat_tables([pq.read_table(out / path) for path in paths])


@pytest.fixture
def load_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    return lambda *words, **options: datasets.load_dataset(*words, cache_dir=str(tmp_path), **options)


@pytest.mark.parametrize("modality", MODALITIES)
def test_datasets_loads_each_modality_by_its_name(small: Path, modality: str, load_dataset: Any) -> None:
    loaded = load_dataset(str(small), modality, split="train").with_format("numpy")
    table = expected(small, modality)
    assert list(loaded["id"]) == table["id"].to_pylist()
    np.testing.assert_array_equal(np.stack(list(loaded["embedding"])), vectors_from_arrow(table["embedding"]))


@pytest.mark.parametrize("modality", MODALITIES)
def test_pyarrow_loads_a_modality(small: Path, modality: str) -> None:
    table = pyarrow.dataset.dataset(small / "embeddings" / modality, format="parquet").to_table()
    assert table.equals(expected(small, modality))
    assert {"id", "segment", "span", "media", "split", "metadata", "embedding"} == set(table.column_names)


def test_duckdb_queries_a_modality_and_its_metadata(small: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    files = f"{small}/embeddings/image/*.parquet"
    found = duckdb.sql(f"select id, metadata.color, split from '{files}' where metadata.count = 3").fetchall()
    rows = expected(small, "image").to_pylist()
    right = [(row["id"], row["metadata"]["color"], row["split"]) for row in rows if row["metadata"]["count"] == 3]
    assert sorted(found) == sorted(right) != []


def test_duckdb_ranks_by_inner_product(small: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = vectors_from_arrow(expected(small, "text")["embedding"])[0]
    image = expected(small, "image")
    found = duckdb.execute(
        f"select id from '{small}/embeddings/image/*.parquet' "
        f"order by array_inner_product(embedding::float[{len(query)}], ?::float[{len(query)}]) desc limit 5",
        [query.tolist()],
    ).fetchall()
    best = np.argsort(-(vectors_from_arrow(image["embedding"]) @ query))[:5]
    assert [id for (id,) in found] == [image["id"][int(row)].as_py() for row in best]


def test_the_dataset_card_names_every_file_of_embeddings(small: Path) -> None:
    card = (small / "README.md").read_text("utf-8")
    globs = re.findall(r"data_files: (\S+)", card)
    named = {path.relative_to(small).as_posix() for glob in globs for path in small.glob(glob)}
    assert named == set(Dataset.open(small).below("embeddings"))


PROGRAMS = [
    (path.name, program)
    for path in (ROOT / "README.md", ROOT / "docs/training.md", ROOT / "examples/README.md")
    for program in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    if "from mmembed.reader" in program
]


@pytest.mark.parametrize(("name", "program"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_the_programs_that_read_for_training_run_as_printed(small: Path, name: str, program: str) -> None:
    """As scripts, since some start worker processes."""
    assert "demo/out" in program, name
    words = [sys.executable, "-W", "error", "-c", program.replace("demo/out", str(small))]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_there_is_one_of_them_on_each_page() -> None:
    assert {name for name, _ in PROGRAMS} == {"README.md", "training.md"}
    assert len(PROGRAMS) == 5
