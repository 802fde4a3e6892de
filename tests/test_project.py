from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builder import build, input_space, random_rows

from mmembed.config import ProjectConfig
from mmembed.dataset import Dataset
from mmembed.errors import DatasetError, SpaceError
from mmembed.features import read_records
from mmembed.linear import LinearMap
from mmembed.project import ProjectUnit, embeddings_table, load_maps
from mmembed.shards import read_table
from mmembed.splits import HELD_OUT, Groups, split_of
from mmembed.tables import embeddings_schema, vectors_from_arrow
from mmembed.types import Space

KINDS = {"legs": "float", "family": "json"}
FEATURES = "features/image/part-00001.parquet"
EMBEDDINGS = "embeddings/image/part-00001.parquet"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [
        replace(row, metadata={"legs": number / 2, "family": [number % 2]})
        for number, row in enumerate(random_rows(12, ["image", "text"], 6))
    ]
    return build(tmp_path_factory.mktemp("project"), rows, until="fit")


def project_unit(dataset: Dataset, **changes: Any) -> ProjectUnit:
    maps = load_maps(dataset)
    unit = ProjectUnit(dataset, maps, {"image": "i", "text": "t"}, KINDS, ProjectConfig(), Groups(), 0.4)
    return replace(unit, **changes)


def table(
    dataset: Dataset, dtype: str = "float32", groups: Groups | None = None, holdout: float = 0.4, **changes: Any
) -> Any:
    ids, records = read_records(dataset, 1)
    values = {
        "features": read_table(dataset.read(FEATURES)),
        "space": input_space("image", 6),
        "linear_map": load_maps(dataset)["image"],
        "records": dict(zip(ids, records)),
        "kinds": KINDS,
        "dtype": dtype,
        "groups": groups or Groups(),
        "holdout": holdout,
    }
    return embeddings_table(**{**values, **changes})


def test_an_embedding_is_the_normalized_map_of_the_feature_in_the_same_row(dataset: Dataset) -> None:
    random = np.random.default_rng(0)
    linear_map = LinearMap(
        random.normal(size=(4, 6)).astype(np.float32), random.normal(size=4).astype(np.float32),
        input_space("image", 6), Space("z", "1", 4),
    )  # fmt: skip
    found, features = table(dataset, linear_map=linear_map), read_table(dataset.read(FEATURES))
    z = vectors_from_arrow(features["feature"]).astype(float) @ linear_map.weight.T + linear_map.bias
    expected = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_from_arrow(found["embedding"]), expected, rtol=1e-4, atol=1e-6)
    for name in ("id", "segment", "span", "media"):
        assert found[name].equals(features[name])


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float16", 1e-3)])
def test_embeddings_have_unit_norm_and_the_schema_of_their_precision(
    dataset: Dataset, dtype: str, tolerance: float
) -> None:
    found = table(dataset, dtype)
    assert found.schema.equals(embeddings_schema(6, dtype, KINDS))
    np.testing.assert_allclose(np.linalg.norm(vectors_from_arrow(found["embedding"]), axis=1), 1, atol=tolerance)


def test_each_segment_carries_the_metadata_and_the_split_of_its_record(dataset: Dataset) -> None:
    rows = table(dataset).to_pylist()
    assert {row["id"] for row in rows} == {f"r{number:03d}" for number in range(4, 8)}
    for row in rows:
        number = int(row["id"][1:])
        assert row["metadata"] == {"family": f"[{number % 2}]", "legs": number / 2}
        assert row["split"] == split_of(row["id"], 0.4)


def test_a_group_is_on_one_side_of_the_split(dataset: Dataset) -> None:
    rows = table(dataset, groups=Groups("family")).to_pylist()
    for family in ("[0]", "[1]"):
        assert {row["split"] for row in rows if row["metadata"]["family"] == family} == {split_of(family, 0.4)}


def test_without_metadata_there_is_no_such_column(dataset: Dataset) -> None:
    assert "metadata" not in table(dataset, kinds={}).column_names


def test_nothing_is_held_out_with_a_share_of_zero(dataset: Dataset) -> None:
    assert HELD_OUT in table(dataset, holdout=0.9)["split"].to_pylist()
    assert HELD_OUT not in table(dataset, holdout=0.0)["split"].to_pylist()


def test_features_of_another_space_are_refused(dataset: Dataset) -> None:
    with pytest.raises(SpaceError, match="test-text@1"):
        table(dataset, space=input_space("text", 6))


def test_a_unit_is_projected_by_a_value_that_travels_to_workers_and_is_then_done(dataset: Dataset) -> None:
    unit = pickle.loads(pickle.dumps(project_unit(dataset)))
    (dataset.folder / EMBEDDINGS).unlink(missing_ok=True)
    assert unit.rows("image", 1) is None
    unit(1)
    rows = dataset.files[FEATURES].rows
    assert unit.rows("image", 1) == rows == read_table((dataset.folder / EMBEDDINGS).read_bytes()).num_rows
    before = (dataset.folder / EMBEDDINGS).read_bytes()
    unit(1)
    assert (dataset.folder / EMBEDDINGS).read_bytes() == before


def test_embeddings_of_other_maps_features_or_records_are_stale(dataset: Dataset) -> None:
    unit = project_unit(dataset)
    unit(1)
    assert unit.rows("image", 1) is not None
    assert replace(unit, marks={"image": "other", "text": "t"}).rows("image", 1) is None
    for path in (FEATURES, "records/part-00001.parquet"):
        changed = replace(dataset, files={**dataset.files, path: replace(dataset.files[path], sha256="other")})
        assert replace(unit, dataset=changed).rows("image", 1) is None
    (dataset.folder / EMBEDDINGS).write_bytes(b"damaged")
    assert unit.rows("image", 1) is None


def test_maps_are_checked_against_the_manifest(dataset: Dataset, tmp_path: Path) -> None:
    assert {name: linear_map.input for name, linear_map in load_maps(dataset).items()} == dataset.modalities("fit")
    with pytest.raises(DatasetError, match=r"image\.safetensors is missing"):
        load_maps(replace(dataset, root=tmp_path))
