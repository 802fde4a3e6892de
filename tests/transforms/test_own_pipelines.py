"""What users build into pipelines of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.yaml.yaml_transform import expand_pipeline
from command import ROOT

from mmembed.config import ExtractConfig, Parts
from mmembed.encoders.handlers import HandlerEncoder
from mmembed.errors import UsageError
from mmembed.tables import vectors_from_arrow
from mmembed.transforms.embed import Embedding, EmbedRecords
from mmembed.transforms.handler import EncoderModelHandler

CHECKED = PipelineOptions(["--runtime_type_check"])  # not all required: that refuses every transform with two outputs


@pytest.fixture(scope="module")
def some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[:20]


def as_built(built: Path) -> dict[tuple[str, str, int], np.ndarray]:
    """The embeddings of a data set by id, modality and segment."""
    found = {}
    for path in sorted((built / "embeddings").rglob("*.parquet")):
        table = pq.read_table(path)
        vectors = vectors_from_arrow(table["embedding"])
        for id, segment, vector in zip(table["id"].to_pylist(), table["segment"].to_pylist(), vectors, strict=True):
            found[id, path.parent.name, segment] = vector
    return found


def test_rows_are_embedded_as_the_data_set_was(built: Path, manifest: Path, some: list[dict[str, Any]]) -> None:
    expected = as_built(built)
    wanted = {key for key in expected if key[0] in {row["id"] for row in some}}

    def check(found: list[Embedding]) -> None:
        assert {(row.id, row.modality, row.segment) for row in found} == wanted
        for row in found:
            vector = expected[row.id, row.modality, row.segment]
            assert np.allclose(row.embedding, vector, atol=1e-5) and len(row.span) in (2, 4)

    assert len({modality for _, modality, _ in wanted}) == 3
    with beam.Pipeline(FnApiRunner(), CHECKED) as pipeline:
        rows = pipeline | beam.Create(some).with_output_types(dict[str, Any])
        assert_that(rows | EmbedRecords(str(built), str(manifest.parent), batch=7), check)


def test_what_cant_be_embedded_comes_out_with_its_reason(built: Path) -> None:
    rows = [
        {"id": "good", "text": "three small red stars"},
        {"id": "good", "text": "the same id again, as in a stream"},
        {"id": "empty", "text": "  "},
        {"id": "missing", "image": "nowhere.png"},
        {"id": "outside", "image": "/etc/hosts"},
        {"id": "bytes", "image": b"no picture"},
        {"text": "no id"},
    ]
    with beam.Pipeline(FnApiRunner(), CHECKED) as pipeline:
        outputs = (
            pipeline
            | beam.Create(rows).with_output_types(dict[str, Any])
            | EmbedRecords(str(built), "/data", {"output": "bad"})
        )
        assert_that(
            outputs["embeddings"] | "Ids" >> beam.Map(lambda row: row.id), equal_to(["good", "good"]), "embeddings"
        )
        assert_that(
            outputs["bad"] | "What" >> beam.Map(lambda row: (row.id, row.stage, row.error)),
            equal_to(
                [
                    ("empty", "segment", "DecodeError"),
                    ("missing", "segment", "ReadError"),
                    ("outside", "read", "ReadError"),
                    ("bytes", "segment", "DecodeError"),
                    ("", "read", "ReadError"),
                ]
            ),
            "errors",
        )


def test_without_an_output_for_errors_a_bad_row_stops_the_pipeline(built: Path) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | beam.Create([{"id": "empty", "text": ""}]) | EmbedRecords(str(built))
    with pytest.raises(ValueError, match="empty: the text is empty.*error_handling"):
        pipeline.run()
    with pytest.raises(UsageError, match="must name the output"):
        EmbedRecords(str(built), error_handling={})


def test_a_pipeline_in_yaml_embeds_by_our_provider(built: Path) -> None:
    elements = [{"id": "a", "text": "three small red stars"}, {"id": "b", "text": "   "}]
    dim = len(next(iter(as_built(built).values())))
    spec = f"""
pipeline:
  transforms:
    - type: Create
      config: {{elements: {json.dumps(elements)}}}
    - type: EmbedRecords
      input: Create
      config: {{out: {built}, error_handling: {{output: bad}}}}
    - type: MapToFields
      input: EmbedRecords
      config:
        language: python
        fields: {{id: id, modality: modality, size: {{expression: "len(embedding)", output_type: integer}}}}
    - type: AssertEqual
      input: MapToFields
      config: {{elements: [{{id: a, modality: text, size: {dim}}}]}}
    - type: MapToFields
      name: Reasons
      input: EmbedRecords.bad
      config: {{fields: {{id: id, error: error}}}}
    - type: AssertEqual
      name: Bad
      input: Reasons
      config: {{elements: [{{id: b, error: DecodeError}}]}}
providers:
  - include: {ROOT / "pipelines" / "providers.yaml"}
"""
    with beam.Pipeline(FnApiRunner(), PipelineOptions(["--pickle_library=cloudpickle"])) as pipeline:
        expand_pipeline(pipeline, spec)


def test_an_encoder_is_a_model_handler_and_a_model_handler_an_encoder() -> None:
    _, encoder = Parts(ExtractConfig())["text"]
    encoder.setup()
    texts = [f"text number {number}" for number in range(50)]
    expected = encoder.encode(texts)
    with beam.Pipeline(FnApiRunner()) as pipeline:
        features = (
            pipeline
            | beam.Create(list(enumerate(texts)))
            | RunInference(KeyedModelHandler(EncoderModelHandler(encoder, 8)))
        )

        def check(found: list[tuple[int, np.ndarray]]) -> None:
            assert sorted(number for number, _ in found) == list(range(50))
            assert all(np.array_equal(feature, expected[number]) for number, feature in found)

        assert_that(features, check)
    again = HandlerEncoder(EncoderModelHandler(encoder), "text", encoder.space)
    again.setup()
    assert np.array_equal(again.encode(texts), expected)


def test_the_provider_names_transforms_that_are_there() -> None:
    text = (ROOT / "pipelines" / "providers.yaml").read_text("utf-8")
    names = re.findall(r'"(mmembed\.[\w.]+)"', text)
    assert names
    for name in names:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(__import__(module, fromlist=[kind]), kind), beam.PTransform)


def programs(language: str, built: Path, manifest: Path) -> list[str]:
    """The programs of docs/beam.md, with the data set of the tests."""
    text = (ROOT / "docs" / "beam.md").read_text("utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    places = {"demo/out": str(built), "demo/data": str(manifest.parent), "pipelines/": f"{ROOT}/pipelines/"}
    for name, place in places.items():
        found = [program.replace(name, place) for program in found]
    return found


def test_the_programs_of_the_documentation_run_as_printed(
    built: Path, manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    embed, infer = programs("python", built, manifest)
    exec(compile(embed, "docs/beam.md", "exec"), {})
    printed = capfd.readouterr().out.splitlines()
    assert any(line.startswith("a text ") for line in printed)
    assert any(line.startswith("b segment ") and "nowhere.png" in line for line in printed)
    exec(compile(infer, "docs/beam.md", "exec"), {})
    assert "(768,)" in capfd.readouterr().out
    [spec] = programs("yaml", built, manifest)
    with beam.Pipeline(FnApiRunner(), PipelineOptions(["--pickle_library=cloudpickle"])) as pipeline:
        expand_pipeline(pipeline, spec)
