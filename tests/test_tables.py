"""Tables, and the contract of the files on disk in schemas/."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_builder import build, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mmembed.dataset import MANIFEST, STAGES
from mmembed.tables import (
    DROPPED,
    ERRORS,
    RECORDS,
    dropped_table,
    embeddings_schema,
    errors_table,
    features_schema,
    features_table,
    merge_kinds,
    metadata_column,
    metadata_kinds,
    records_table,
    vectors_from_arrow,
    vectors_to_arrow,
)
from mmembed.types import Dropped, Failure, Media, Record, Segment

SCHEMAS = Path(__file__).parents[1] / "schemas"
KINDS = {"bool": True, "int": 1, "float": 1.5, "string": "a", "json": [1]}


def contract(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))  # type: ignore[no-any-return]


def type_name(type: pa.DataType) -> str:
    """An Arrow type in the words of schemas/."""
    if pa.types.is_struct(type):
        return "struct"
    if pa.types.is_list(type) and pa.types.is_struct(type.value_type):
        return f"list<{type.value_type}>"
    return re.sub(r"\w+: |\[\d+\]", lambda match: "[dim]" if match[0][0] == "[" else "", str(type))


def columns(schema: pa.Schema) -> list[tuple[str, str]]:
    return [(field.name, type_name(field.type)) for field in schema]


@pytest.mark.parametrize(
    "name, schema",
    [
        ("records", RECORDS),
        ("features", features_schema(4)),
        ("errors", ERRORS),
        ("dropped", DROPPED),
        ("embeddings", embeddings_schema(4, "float32", {"legs": "int"})),
    ],
)
def test_the_columns_are_those_of_the_contract(name: str, schema: pa.Schema) -> None:
    assert columns(schema) == [(column["name"], column["type"]) for column in contract(name)["columns"]]
    assert all(column["meaning"] for column in contract(name)["columns"])


def test_without_metadata_the_optional_column_is_missing() -> None:
    expected = [column["name"] for column in contract("embeddings")["columns"] if not column.get("optional")]
    assert embeddings_schema(4, "float32", {}).names == expected


def test_half_precision_changes_the_vector_alone() -> None:
    single, half = (columns(embeddings_schema(4, dtype, {})) for dtype in ("float32", "float16"))
    assert half[:-1] == single[:-1]
    assert half[-1] == ("embedding", "fixed_size_list<halffloat>[dim]")


def test_each_kind_of_metadata_has_the_type_of_the_contract() -> None:
    struct = embeddings_schema(4, "float32", {kind: kind for kind in KINDS}).field("metadata").type
    assert {field.name: str(field.type) for field in struct} == contract("embeddings")["metadata"]
    assert [field.name for field in struct] == sorted(KINDS)


def problems(value: Any, schema: dict[str, Any], whole: dict[str, Any], where: str = "") -> list[str]:
    """What the part of JSON Schema that our contract uses says against a value."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    known = {
        "$schema", "title", "description", "$defs", "type", "const", "required", "properties", "additionalProperties",
        "propertyNames", "items", "minimum", "pattern",
    }  # fmt: skip
    assert set(schema) <= known
    types = {"object": dict, "array": list, "string": str, "integer": int}
    if not isinstance(value, types[schema.get("type", "object")]) and "type" in schema:
        return [f"{where}: no {schema['type']}"]
    found = [f"{where}: not {schema['const']}"] if value != schema.get("const", value) else []
    found += [f"{where}/{key} is missing" for key in schema.get("required", ()) if key not in value]
    if isinstance(value, dict):
        names = schema.get("propertyNames", {}).get("enum", value)
        found += [f"{where}/{key}: no such name" for key in value if key not in names]
        others = schema.get("additionalProperties", {})
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, others)
            found += [f"{where}/{key}: unknown"] if inner is False else problems(item, inner, whole, f"{where}/{key}")
    if isinstance(value, list):
        found += [text for item in value for text in problems(item, schema.get("items", {}), whole, f"{where}[]")]
    if isinstance(value, int) and value < schema.get("minimum", value):
        found.append(f"{where}: below {schema['minimum']}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: not {schema['pattern']}")
    return found


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data")
    build(root, random_rows(6, ["image", "text"], 6))
    return (root / MANIFEST).read_text("utf-8")


def test_a_manifest_keeps_the_contract(manifest: str) -> None:
    schema = contract("dataset")
    assert problems(json.loads(manifest), schema, schema) == []
    assert schema["properties"]["stages"]["propertyNames"]["enum"] == list(STAGES)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"format_version": 2', '"format_version": 3'),
        ('"input"', '"inputs"'),
        ('"fit": {\n      "fingerprint"', '"fits": {\n      "fingerprint"'),
        ('"folders"', '"folder"'),
        ('"sha256": "', '"sha256": "x'),
        ('"bytes": ', '"bytes": -'),
        ('"rows": ', '"lines": '),
        ('"dim": 6', '"dim": 0'),
        ('"dim": 6', '"dim": "6"'),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_noticed(manifest: str, old: str, new: str) -> None:
    schema = contract("dataset")
    assert old in manifest
    assert problems(json.loads(manifest.replace(old, new)), schema, schema)


@pytest.mark.parametrize("dtype, type", [(np.float32, pa.float32()), (np.float16, pa.float16())])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_vectors_come_back_from_a_column_of_any_chunks(rows: int, dtype: Any, type: pa.DataType) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, 3)).astype(dtype)
    column = vectors_to_arrow(vectors, pa.list_(type, 3))
    assert column.type == pa.list_(type, 3) and column.null_count == 0
    for chunked in (pa.chunked_array([column]), pa.chunked_array([column[:2], column[2:2], column[2:]])):
        found = vectors_from_arrow(chunked)
        assert found.dtype == np.float32 and found.shape == (rows, 3)
        assert (found == vectors).all()


def test_vectors_of_any_memory_layout_are_stored_row_by_row() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = vectors_to_arrow(np.asfortranarray(vectors), pa.list_(pa.float32(), 3))
    assert column.to_pylist() == vectors.tolist()


def test_a_sliced_column_gives_its_own_rows() -> None:
    column = vectors_to_arrow(np.arange(12, dtype=np.float32).reshape(4, 3), pa.list_(pa.float32(), 3))
    assert vectors_from_arrow(pa.chunked_array([column])[1:3]).tolist() == [[3, 4, 5], [6, 7, 8]]


def test_segments_become_rows() -> None:
    segment = Segment("a", 2, (0.0, 0.5), "a.wav", "hash", np.array([1, 2], np.float32))
    row = {"id": "a", "segment": 2, "span": [0, 0.5], "media": "a.wav", "content_hash": "hash", "feature": [1, 2]}
    assert features_table([segment], 2).to_pylist() == [row]
    assert features_table([], 2).schema == features_table([segment], 2).schema


def test_records_become_rows_of_all_that_the_user_gave() -> None:
    texts = (Media(content="Grüße", column="de"), Media(content="Hi", column="en"), Media(content="Ho", column="en"))
    media = {"image": (Media("a.png", b"bytes", "/somewhere", column="picture"),), "text": texts}
    record = Record("a", media, {"legs": 4, "nan": float("inf")}, "in.jsonl:3")
    usable = [{"modality": "image", "content_hash": "00ff", "signature": b"s"}]
    [row] = records_table([record], {"a": usable}).to_pylist()
    assert (row["id"], row["source"]) == ("a", "in.jsonl:3")
    assert row["record"] == '{"picture": "a.png", "de": "Grüße", "en": ["Hi", "Ho"], "legs": 4, "nan": Infinity}'
    assert row["media"] == usable
    assert records_table([], {}).schema == RECORDS


def test_a_record_has_another_digest_with_other_media_or_metadata() -> None:
    record = Record("a", {"image": (Media("a.png"),)}, {"legs": 4}, "in.jsonl:3")
    usable = {"a": [{"modality": "image", "content_hash": "00ff", "signature": None}]}
    other = {"a": [{"modality": "image", "content_hash": "00fe", "signature": None}]}
    tables = [
        records_table([record], usable),
        records_table([replace(record, source="in.jsonl:4")], usable),
        records_table([record], other),
        records_table([replace(record, metadata={"legs": 5})], usable),
    ]
    first, moved, *changed = (table["digest"][0].as_py() for table in tables)
    assert first == moved
    assert len({first, *changed}) == 3


def test_failures_become_rows() -> None:
    failure = Failure("a", "image", None, "segment", "DecodeError", "broken", "in.jsonl:3")
    assert errors_table([failure]).to_pylist() == [{name: vars(failure)[name] for name in ERRORS.names}]
    assert errors_table([]).schema == ERRORS


def test_what_was_left_out_becomes_rows() -> None:
    dropped = Dropped("a", "image", "filter", "too small", "", "in.jsonl:3", medium=1)
    assert dropped_table([dropped]).to_pylist() == [{name: vars(dropped)[name] for name in DROPPED.names}]
    assert dropped_table([]).schema == DROPPED


@pytest.mark.parametrize(
    "values, kind",
    [
        ([None, None], None),
        ([True, None], "bool"),
        ([1, None, -(2**63)], "int"),
        ([1, 2**63], "json"),
        ([1, 1.5], "float"),
        ([float("nan")], "float"),
        (["a", ""], "string"),
        ([1, "a"], "json"),
        ([True, 1], "json"),
        ([[1]], "json"),
        ([{"a": 1}, None], "json"),
        ([1, 1.5, "a"], "json"),
    ],
)
def test_a_key_has_the_narrowest_kind_that_holds_all_its_values(values: list[Any], kind: str | None) -> None:
    assert metadata_kinds({"key": value} for value in values) == {"key": kind}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2))
ROWS = st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=3), max_size=8)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(0, 8), st.randoms(use_true_random=False))
def test_kinds_do_not_depend_on_how_records_lie_in_units(rows: list[dict[str, Any]], cut: int, random: Any) -> None:
    whole = metadata_kinds(rows)
    parts = [metadata_kinds(rows[:cut]), metadata_kinds(rows[cut:])]
    assert merge_kinds(parts) == merge_kinds(reversed(parts)) == whole
    random.shuffle(rows)
    assert metadata_kinds(rows) == whole


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_metadata_of_any_shape_fit_their_column_and_come_back_from_parquet(rows: list[dict[str, Any]]) -> None:
    kinds = {key: kind or "string" for key, kind in metadata_kinds(rows).items()}
    if not kinds:
        return
    column = metadata_column(rows, embeddings_schema(1, "float32", kinds).field("metadata").type, kinds)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"metadata": column}), sink)
    read = pq.read_table(pa.BufferReader(sink.getvalue()))["metadata"].to_pylist()
    for row, found in zip(rows, read):
        for key, kind in kinds.items():
            value = row.get(key)
            back = json.loads(found[key]) if kind == "json" and found[key] is not None else found[key]
            assert back == (float(value) if kind == "float" and value is not None else value) or value != value
