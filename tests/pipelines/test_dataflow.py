"""Jobs as Dataflow gets them: what is staged and asked for, up to the call that makes the job.

The bucket is an emulator's and the service a stub, see `gcs_server.py` and `dataflow_service.py`: that workers then do
their work can't be shown here; `test_portable.py` shows it for workers elsewhere.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import ENVIRONMENT, Result, arguments, complaint
from dataflow_service import PROJECT, REGION, DataflowService, dataflow_service
from gcs_server import BUCKET, download, gcs_server, upload

IMAGE = "europe-west1-docker.pkg.dev/none/images/mmembed:1"
FLAGS = (
    "--runner=DataflowRunner",
    "--no_auth",
    f"--project={PROJECT}",
    f"--region={REGION}",
    f"--temp_location=gs://{BUCKET}/temp",
    f"--staging_location=gs://{BUCKET}/staging",
    f"--sdk_container_image={IMAGE}",
    "--machine_type=n2-standard-8",
    "--max_num_workers=50",
    "--resource_hint=min_ram=16GB",
    "--element_processing_timeout_minutes=60",
)

# By stage: a flag that makes it due again, and the names of its transforms. A job that is updated, and whoever looks
# at its page, knows the steps by them: they may not change.
STAGES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "extract": (
        (),
        [
            "ExtractFeatures",
            "ExtractFeatures/Batches",
            "ExtractFeatures/DivideMedia",
            "ExtractFeatures/DivideMedia/Divide",
            "ExtractFeatures/EncodePieces",
            "ExtractFeatures/EncodePieces/EncodePiece",
            "ExtractFeatures/EncodePieces/Spread",
            "ExtractFeatures/EncodeSegments",
            "ExtractFeatures/EncodeSegments/Encode",
            "ExtractFeatures/NormalizeSegments",
            "ExtractFeatures/NormalizeSegments/Normalize",
            "ExtractFeatures/Pieces",
            "ExtractFeatures/ReadRecords",
            "ExtractFeatures/ReadRecords/Read",
            "ExtractFeatures/SegmentRecords",
            "ExtractFeatures/SegmentRecords/Segment",
            "ExtractFeatures/WriteFeatures",
            "ExtractFeatures/WriteFeatures/Write",
        ],
    ),
    "fit": (
        ("--dim", "4"),
        [
            "FitMaps",
            "FitMaps/AccumulateMoments",
            "FitMaps/AccumulateMoments/Accumulate",
            "FitMaps/Merge",
            "FitMaps/Names",
            "FitMaps/Write",
        ],
    ),
    "project": (("--dtype", "float16"), ["ProjectFeatures", "ProjectFeatures/Project"]),
    "index": (
        ("--recall", "0.5"),
        [
            "BuildIndex",
            "BuildIndex/Encode",
            "BuildIndex/Finish",
            "BuildIndex/Prepare",
            "BuildIndex/Spread",
            "BuildIndex/Together",
        ],
    ),
}
_OF_BEAM = re.compile("^.+/(Merge|Spread|Together)/")  # the insides of its own transforms


INPUT = f"gs://{BUCKET}/input/manifest.jsonl"


@pytest.fixture(scope="module")
def bucket(small: Path) -> Iterator[dict[str, str]]:
    """The environment in which a bucket is found that holds the records of `small`, and what was built of them."""
    with gcs_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        upload(small.parent, f"gs://{BUCKET}/input")
        for stage in STAGES:
            if stage != "extract":
                upload(small, f"gs://{BUCKET}/{stage}")
        yield environment


def launch(stage: str, service: DataflowService, bucket: dict[str, str], *words: object, name: str) -> Result:
    beam = (*FLAGS, f"--dataflow_endpoint={service.url}", f"--job_name={name}")
    command = arguments(*words, "--", *beam, python=("-m", f"pipelines.{stage}"))
    return subprocess.run(command, env=ENVIRONMENT | bucket, capture_output=True, text=True, timeout=120)


def staged(name: str) -> Any:
    """The pipeline of a job."""
    from apache_beam.portability.api import beam_runner_api_pb2

    files = download(f"gs://{BUCKET}/staging").items()
    (found,) = [data for path, data in files if re.fullmatch(rf"{name}\.[\d.]+/pipeline\.pb", path)]
    return beam_runner_api_pb2.Pipeline.FromString(found)


def committed(out: str) -> bool:
    return "dataset.json" in download(f"gs://{BUCKET}/{out}")


@pytest.mark.parametrize("stage", STAGES)
def test_what_dataflow_gets(stage: str, bucket: dict[str, str]) -> None:
    again, names = STAGES[stage]
    words = [INPUT] if stage == "extract" else []
    with dataflow_service(["JOB_STATE_FAILED"]) as service:
        done = launch(stage, service, bucket, *words, f"gs://{BUCKET}/{stage}", *again, name=stage)
    assert done.returncode == 1, done.stderr
    assert f"{names[0]} stopped: " in complaint(done)

    (job,) = service.jobs
    environment = job["environment"]
    (pool,) = environment["workerPools"]
    assert job["name"] == stage
    assert environment["version"]["job_type"] == "FNAPI_BATCH"
    assert "use_runner_v2" in environment["experiments"]
    assert pool["workerHarnessContainerImage"] == IMAGE
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert pool["machineType"] == "n2-standard-8"
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 50
    options = environment["sdkPipelineOptions"]["options"]
    assert options["element_processing_timeout_minutes"] == 60
    assert options["pickle_library"] == "cloudpickle"
    assert not options["save_main_session"]

    components = staged(stage).components
    found = {transform.unique_name for transform in components.transforms.values()}
    ours = [name for name in found if name.startswith(names[0]) and not _OF_BEAM.match(name)]
    assert sorted(ours) == names
    (worker,) = components.environments.values()
    assert worker.urn == "beam:env:docker:v1"
    assert worker.payload.endswith(IMAGE.encode())
    assert worker.resource_hints == {"beam:resources:min_ram_bytes:v1": b"16000000000"}


def test_a_job_that_fails_is_one_line_with_the_workers_own_error(bucket: dict[str, str]) -> None:
    error = (
        'Traceback (most recent call last):\n  File "/opt/encoder.py", line 3, in encode\nValueError: no such weights'
    )
    with dataflow_service(["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_FAILED"], error) as service:
        done = launch("extract", service, bucket, INPUT, f"gs://{BUCKET}/fails", name="fails")
    assert done.returncode == 1
    assert "ExtractFeatures stopped: ValueError: no such weights (at /opt/encoder.py:3)" in complaint(done)
    assert not committed("fails")


@pytest.mark.parametrize("state", ["CANCELLED", "DONE"])
def test_a_job_that_left_no_files_commits_nothing(state: str, bucket: dict[str, str]) -> None:
    """It was cancelled, or says that it is done."""
    name = state.lower()
    with dataflow_service([f"JOB_STATE_{state}"]) as service:
        done = launch("extract", service, bucket, INPUT, f"gs://{BUCKET}/{name}", name=name)
    assert done.returncode == 1
    assert ("the job is CANCELLED" in complaint(done)) == (state == "CANCELLED")
    assert not committed(name)
