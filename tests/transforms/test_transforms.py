"""The transforms: a job gives what the plain functions give, on the runner that users get."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from command import ENVIRONMENT, content
from threadpoolctl import threadpool_limits

from mmembed.config import ExtractConfig, Parts
from mmembed.encoders import Encoder
from mmembed.engine import Engine
from mmembed.errors import MmembedError, UsageError
from mmembed.features import Marks, read_receipt
from mmembed.fit import FOLDS
from mmembed.inputs import Source, open_source
from mmembed.modalities import Modality
from mmembed.modalities.image import Image
from mmembed.moments import Moments, View
from mmembed.scratch import Scratch
from mmembed.shards import shard_path
from mmembed.steps import encode_segments, normalize_segments, segment_records
from mmembed.tables import vectors_from_arrow
from mmembed.transforms import (
    AccumulateMoments,
    BuildIndex,
    EncodeSegments,
    ExtractFeatures,
    FitMaps,
    MergeMoments,
    NormalizeSegments,
    ProjectFeatures,
    ReadRecords,
    SegmentRecords,
    WriteFeatures,
    check_beam_flags,
    run,
)
from mmembed.transforms.monitoring import NAMESPACE
from mmembed.types import Batch, Failure, Record, Segment, Unit
from mmembed.watch import watch


def marks(parts: Mapping[str, tuple[Modality, Encoder]]) -> Marks:
    dims = {name: encoder.space.dim for name, (_, encoder) in parts.items()}
    return Marks("a configuration", dict.fromkeys(dims, "a modality"), dims)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find the modules of the tests."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])


@pytest.fixture(scope="module")
def source(faulty: Path) -> Source:
    return open_source(str(faulty))


@pytest.fixture(scope="module")
def units(source: Source) -> list[Unit]:
    """Three units of 24 records; the second and third hold the three failures."""
    return source.units(24)[:3]


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[Modality, Encoder]]:
    """Built-in encoders; each picture is five segments."""
    return dict(Parts(ExtractConfig(image=Image(tiles="2x2"))))


@pytest.fixture(scope="module")
def small_parts() -> dict[str, tuple[Modality, Encoder]]:
    names = {f"{name}_encoder": f"small_encoders:Small{name.capitalize()}" for name in ("image", "text", "audio")}
    return dict(Parts(replace(ExtractConfig(), **names)))  # type: ignore[arg-type]


Expected = tuple[list[Record], dict[str, list[Segment]], list[Failure], dict[str, int]]


def by_hand(source: Source, unit: Unit, parts: Mapping[str, tuple[Modality, Encoder]]) -> Expected:
    """A unit's records, segments by modality, failures, and how many batches there were of each modality."""
    kinds = {name: modality for name, (modality, _) in parts.items()}
    encoders = {name: encoder for name, (_, encoder) in parts.items()}
    for encoder in encoders.values():
        encoder.setup()
    records, failures = source.read(unit)
    segments: dict[str, list[Segment]] = {name: [] for name in parts}
    batches = dict.fromkeys(parts, 0)
    for batch in segment_records(Batch(tuple(records), failures=tuple(failures)), kinds):
        encoded = encode_segments(normalize_segments(batch, kinds), encoders)
        if encoded.modality:
            failures += encoded.failures
            segments[encoded.modality] += encoded.items
            batches[encoded.modality] += 1
    return records, segments, failures, batches


def extract(source: Source, parts: Mapping[str, tuple[Modality, Encoder]], root: Path) -> ExtractFeatures:
    kinds = {name: modality for name, (modality, _) in parts.items()}
    return ExtractFeatures(
        source, kinds, {name: encoder for name, (_, encoder) in parts.items()}, Scratch(root), marks(parts)
    )


def as_rows(segments: list[Segment]) -> list[dict[str, Any]]:
    return [
        {
            "id": segment.id,
            "segment": segment.number,
            "span": list(segment.span),
            "media": segment.media,
            "content_hash": segment.content_hash,
        }
        for segment in segments
    ]


def row(failure: Failure) -> dict[str, Any]:
    return {key: value for key, value in vars(failure).items() if key != "medium"}


def test_a_job_on_two_processes_gives_what_the_plain_functions_give(
    source: Source, units: list[Unit], parts: dict[str, tuple[Modality, Encoder]], tmp_path: Path
) -> None:
    run("ExtractFeatures", units, extract(source, parts, tmp_path), Engine(workers=2))
    several_batches, all_failures = 0, 0
    for unit in units:
        with threadpool_limits(1):  # more threads add up in another order
            records, segments, failures, batches = by_hand(source, unit, parts)
        several_batches += batches["image"] > 1
        all_failures += len(failures)
        for name in parts:
            table = pq.read_table(tmp_path / shard_path(f"features/{name}", unit.number))
            assert table.drop_columns("feature").to_pylist() == as_rows(segments[name])
            expected = np.stack([segment.data for segment in segments[name]])
            assert vectors_from_arrow(table["feature"]).tobytes() == expected.tobytes()
        table = pq.read_table(tmp_path / shard_path("records", unit.number))
        assert table["id"].to_pylist() == [record.id for record in records]
        assert table["source"].to_pylist() == [record.source for record in records]
        if failures:
            rows = pq.read_table(tmp_path / shard_path("errors", unit.number)).to_pylist()
            assert sorted(map(str, rows)) == sorted(str(row(failure)) for failure in failures)
        assert read_receipt(tmp_path, unit, marks(parts)) is not None
    assert several_batches == len(units) > 1  # the case is not trivial
    assert all_failures == 3


def test_beams_type_checks_find_nothing(
    source: Source, units: list[Unit], small_parts: dict[str, tuple[Modality, Encoder]], tmp_path: Path
) -> None:
    options = PipelineOptions(["--runtime_type_check", "--type_check_strictness=ALL_REQUIRED"])
    with beam.Pipeline(FnApiRunner(), options) as pipeline:
        _ = pipeline | beam.Create(units).with_output_types(Unit) | extract(source, small_parts, tmp_path)
    assert len(content(tmp_path, ("records",))) == len(units)


def test_each_step_is_counted_and_timed(
    source: Source, units: list[Unit], small_parts: dict[str, tuple[Modality, Encoder]], tmp_path: Path
) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | beam.Create(units) | extract(source, small_parts, tmp_path)
    result = pipeline.run()
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    counters = {metric.key.metric.name: metric.committed for metric in found["counters"]}
    records, segments, failures, _ = zip(*(by_hand(source, unit, small_parts) for unit in units), strict=True)
    assert counters["units"] == len(units) and counters["records"] == sum(map(len, records))
    for name in small_parts:
        assert counters[f"{name}_segments"] == sum(len(of_unit[name]) for of_unit in segments)
    errors = {name: value for name, value in counters.items() if name.endswith("_errors")}
    assert sum(errors.values()) == sum(map(len, failures)) == 3 and set(errors) == {"read_errors", "segment_errors"}
    distributions = {metric.key.metric.name: metric.committed for metric in found["distributions"]}
    assert distributions["unit_records"].sum == sum(map(len, records))
    for step in ("read", "segment", "normalize", "encode", "write"):
        assert distributions[f"{step}_us"].count >= len(units) and distributions[f"{step}_us"].sum > 0


def fail(element: Any) -> None:
    raise RuntimeError("a step that is broken")


def test_whether_a_unit_is_done_or_fails_nothing_is_watched_after_it(
    source: Source, units: list[Unit], small_parts: dict[str, tuple[Modality, Encoder]], tmp_path: Path
) -> None:
    whole = extract(source, small_parts, tmp_path)
    whole.scratch = replace(whole.scratch, timeout=1000.0)
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(units) | whole
    assert watch._looking is not None and watch._now == {}
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | beam.Create(units) | ReadRecords(source, whole.scratch) | beam.Map(fail)
    with suppress(RuntimeError):
        pipeline.run()
    gc.collect()
    assert watch._now == {}


def test_beams_type_checks_refuse_what_a_transform_does_not_take(source: Source) -> None:
    with pytest.raises(beam.typehints.TypeCheckError):
        _ = beam.Pipeline(FnApiRunner()) | beam.Create(["a unit"]).with_output_types(str) | ReadRecords(source)


def test_the_steps_can_be_put_together_one_by_one(
    source: Source, units: list[Unit], small_parts: dict[str, tuple[Modality, Encoder]], tmp_path: Path
) -> None:
    kinds = {name: modality for name, (modality, _) in small_parts.items()}
    encoders = {name: encoder for name, (_, encoder) in small_parts.items()}
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(units)
            | ReadRecords(source)
            | SegmentRecords(kinds)
            | NormalizeSegments(kinds)
            | EncodeSegments(encoders)
            | WriteFeatures(Scratch(tmp_path / "steps"), marks(small_parts))
        )
    run("ExtractFeatures", units, extract(source, small_parts, tmp_path / "whole"), Engine(workers=1))
    assert content(tmp_path / "steps") == content(tmp_path / "whole") != {}


def test_a_unit_whose_batches_are_torn_apart_is_not_written(tmp_path: Path) -> None:
    unit = Unit(0, 1, "f", "jsonl", "in.jsonl", (0,))
    torn = [(unit, Batch((Segment("a", 0, (0.0, 1.0), "a", "h", np.zeros(3, np.float32)),), "text"))]
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | beam.Create(torn) | WriteFeatures(Scratch(tmp_path), Marks("c", {"text": "m"}, {"text": 3}))
    with pytest.raises(RuntimeError, match=r"units \[0\] came without their records"):
        pipeline.run()
    assert content(tmp_path) == {}


def moments(name: str, fold: int) -> Moments:
    """Of 30 records; stands in for a file of moments."""
    rows = np.random.default_rng([int(name), fold]).normal(size=(30, 5)) + int(name)
    present = np.ones(30, bool)
    return Moments.of({"a": View.single(rows, present), "b": View.single(rows[:, :3], present)})


@pytest.mark.parametrize("seed", range(5))
def test_moments_are_merged_to_the_same_bytes_however_a_runner_groups_them(seed: int) -> None:
    merge = MergeMoments(moments)
    names = [str(number) for number in range(7)]

    def merged(order: list[str], cuts: list[int]) -> list[bytes]:
        accumulators = []
        for start, end in zip([0, *cuts], [*cuts, 7]):
            accumulator = merge.create_accumulator()
            for name in order[start:end]:
                accumulator = merge.add_input(accumulator, name)
            accumulators.append(accumulator)
        folds, blocks = merge.extract_output(merge.merge_accumulators(accumulators))
        assert blocks == names
        return [array.tobytes() for fold in folds for array in fold.to_arrays().values()]

    random = Random(seed)
    assert merged(random.sample(names, 7), sorted(random.sample(range(1, 7), 2))) == merged(names, [])


def unit_count(number: int, units: tuple[int, ...]) -> str:
    """Stands in for what writes the moments of a block, and gives the file's name."""
    return f"{number}: {len(units)} units"


def first_number(name: str, fold: int) -> Moments:
    return moments(name.split(":")[0], fold)


def counts(folds: list[Moments], blocks: list[str]) -> list[str]:
    return [f"{fold.count('a', 'b')} pairs of {len(blocks)} blocks" for fold in folds]


def test_fit_maps_hands_the_moments_of_all_blocks_to_its_writer() -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        blocks = pipeline | beam.Create([(0, (0,)), (1, (1, 2)), (3, (3,))])
        assert_that(blocks | FitMaps(unit_count, first_number, counts), equal_to(["90 pairs of 3 blocks"] * FOLDS))


def test_accumulate_moments_gives_a_name_for_each_block() -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        names = pipeline | beam.Create([(0, (0, 1)), (2, (2,))]) | AccumulateMoments(unit_count)
        assert_that(names, equal_to(["0: 2 units", "2: 1 units"]))


def nothing(value: object) -> None:
    """Stands in for what reads and writes."""


class Blocks:
    """Stands in for what indexes: three blocks of pictures, one of texts."""

    def prepare(self, modality: str) -> list[tuple[str, int]]:
        return [(modality, number) for number in range(3 if modality == "image" else 1)]

    def encode(self, block: tuple[str, int]) -> tuple[str, int]:
        return block

    def finish(self, modality: str, numbers: list[int]) -> None:
        if sorted(numbers) != list(range(3 if modality == "image" else 1)):
            raise ValueError(f"{modality} is finished with the blocks {numbers}")


def test_project_and_index_give_back_what_is_done() -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        assert_that(pipeline | "units" >> beam.Create([3, 4]) | ProjectFeatures(nothing), equal_to([3, 4]), "projected")
        names = pipeline | "names" >> beam.Create(["image", "text"])
        assert_that(names | BuildIndex(cast(Any, Blocks())), equal_to(["image", "text"]), "indexed")


def refuse(unit: int) -> None:
    raise UsageError(f"unit {unit} is not\nwanted: no") if unit == 3 else ZeroDivisionError("by zero")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_ours_keeps_its_class_and_message(workers: int) -> None:
    with pytest.raises(UsageError, match=r"^unit 3 is not"):
        run("Project", [3, 3], ProjectFeatures(refuse), Engine(workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_other_error_becomes_one_line_that_says_how_to_go_on(workers: int) -> None:
    with pytest.raises(MmembedError) as caught:
        run("Project", [4, 5], ProjectFeatures(refuse), Engine(workers))
    before, _, after = str(caught.value).partition(f" (at {__file__}:")
    assert before == "Project stopped: ZeroDivisionError: by zero"
    assert after.endswith("). What was finished is kept: run the same command again to go on")


@pytest.mark.parametrize("flag", ["--runer=FnApiRunner", "--image-tiles=2x2", "word"])
def test_what_beam_does_not_know_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        check_beam_flags(("--direct_num_workers=2", flag))


def test_flags_of_any_runner_of_beam_are_known() -> None:
    check_beam_flags(("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"))
