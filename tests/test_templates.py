"""Images for clusters and Flex Templates, as far as they can be checked without building any."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import Any

import pytest
from command import ENVIRONMENT, ROOT, mmembed
from dataflow_service import PROJECT, REGION
from gcs_server import BUCKET, download, gcs_server
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mmembed.dataset import Dataset
from mmembed.transforms import check_beam_flags
from pipelines.template import OF_BEAM, PLACES, words

OURS = ("spread",)  # of the template's own program
TEMPLATES = sorted((ROOT / "pipelines" / "templates").glob("*.json"))

# Dataflow's documented schema of a template's metadata; what else it has is for streaming.
METADATA = {"name": str, "description": str, "streaming": bool, "parameters": list}
PARAMETER = {"name": str, "label": str, "helpText": str, "isOptional": bool, "regexes": list, "paramType": str}
OPTIONAL = {"regexes", "paramType"}
TYPES = {"TEXT", "NUMBER", "BOOLEAN"}

# A value that each kind of parameter takes, where it can't be told from its regexes.
EXAMPLES = {"fit": "pmi", "refine": "none", "dedup": "near", "dtype": "float16", "hubness": "csls", "memory": "2GB"}
EXAMPLES |= {"latency": "5ms", "maps": "gs://a/b", "input": "gs://a/in", "out": "gs://a/out"}


def load(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_a_template_for_each_pipeline() -> None:
    names = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__", "template"}
    assert {path.stem for path in TEMPLATES} == names


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_metadata_follows_the_schema(path: Path) -> None:
    template = load(path)
    assert {key: type(value) for key, value in template.items()} == METADATA
    names = [parameter["name"] for parameter in template["parameters"]]
    assert len(set(names)) == len(names)
    for parameter in template["parameters"]:
        assert PARAMETER.keys() - OPTIONAL <= parameter.keys() <= PARAMETER.keys()
        assert all(isinstance(value, PARAMETER[key]) for key, value in parameter.items())
        assert re.fullmatch("[a-z_]+", parameter["name"])
        assert parameter["helpText"].endswith(".")
        assert parameter.get("paramType", "TEXT") in TYPES
        assert all(regex[0] == "^" and regex[-1] == "$" and re.compile(regex) for regex in parameter.get("regexes", []))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_each_parameter_is_a_flag_of_the_command_or_of_beam(path: Path) -> None:
    known = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", mmembed(path.stem, "--help").stdout))
    for parameter in load(path)["parameters"]:
        name = parameter["name"]
        if name in PLACES:
            assert not parameter["isOptional"]
        elif name in OURS:
            assert parameter["isOptional"]
        elif name in OF_BEAM:
            check_beam_flags((f"--{name}=1",))
        else:
            assert name.replace("_", "-") in known


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_command_takes_all_parameters_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmembed import cli

    seen: list[Any] = []

    def run(options: Any) -> int:
        seen.append(options)
        return 0

    for name in ("_build", "_extract", "_later_stage"):
        monkeypatch.setattr(cli, name, run)
    parameters = [f"--{parameter['name']}={example(parameter)}" for parameter in load(path)["parameters"]]
    assert cli.main(words(path.stem, [*parameters, "--runner=DataflowRunner", "--project=none"])) == 0
    (options,) = seen
    assert str(options.root).startswith("gs:/")
    assert set(options.beam_flags) == {
        "--sdk_container_image=1",
        "--runner=DataflowRunner",
        "--project=none",
        f"--job_name=mmembed-{path.stem}",
    }


def example(parameter: dict[str, Any]) -> str:
    kind = {"BOOLEAN": "true", "NUMBER": "1"}.get(parameter.get("paramType", ""), "1")
    value = EXAMPLES.get(parameter["name"], kind)
    assert all(re.search(regex, value) for regex in parameter.get("regexes", []))
    return value


PARAMETERS = [
    "--out=gs://b/out",
    "--unit_records=64",
    "--dedup=",
    "--overwrite=false",
    "--retry_errors=True",
    "--template_location=gs://b/job",
    "--experiments=one",
    "--job_name=monday",
    "--experiments=two",
    "--labels=a=b",
    "--runner=DataflowRunner",
    "--input=gs://b/in.jsonl",
]


def test_parameters_become_words() -> None:
    own = ("extract", "gs://b/in.jsonl", "gs://b/out", "--unit-records=64", "--retry-errors")
    beam = ("--experiments=one", "--experiments=two", "--labels=a=b", "--runner=DataflowRunner")
    assert words("extract", PARAMETERS) == (*own, "--", *beam, "--job_name=monday-extract")
    assert words("extract", [*PARAMETERS, "--spread=false"]) == own


def start(stage: str, parameters: list[str], environment: dict[str, str]) -> None:
    """The template's program, as its launcher starts it."""
    command = [sys.executable, str(ROOT / "pipelines" / "template.py"), *parameters]
    environment = ENVIRONMENT | environment | {"MMEMBED_STAGE": stage}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_launcher_leaves_a_job_of_one_worker() -> None:
    """Dataflow wants the job in a file, and starts it when this program has ended."""
    from apache_beam.portability.api import beam_runner_api_pb2

    base = f"gs://{BUCKET}/launch"
    parameters = ["--input=gs://b/in.jsonl", "--out=gs://b/out", "--sdk_container_image=image:1", "--job_name=monday"]
    parameters += [f"--project={PROJECT}", f"--region={REGION}", "--runner=DataflowRunner", "--max_num_workers=50"]
    parameters += [f"--template_location={base}/job_object", f"--temp_location={base}", f"--staging_location={base}"]
    with gcs_server() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.items():
            patch.setenv(name, value)
        start("extract", parameters, bucket)
        files = download(base)
    job = json.loads(files.pop("job_object"))
    (pool,) = job["environment"]["workerPools"]
    assert (job["name"], pool["numWorkers"], pool["autoscalingSettings"]["maxNumWorkers"]) == ("monday", 1, 1)
    (graph,) = [data for path, data in files.items() if path.endswith("pipeline.pb")]
    transforms = beam_runner_api_pb2.Pipeline.FromString(graph).components.transforms.values()
    assert {"RunCommand", "RunCommand/Run"} <= {transform.unique_name for transform in transforms}


@pytest.mark.parametrize("spread", ["true", "false"])
def test_the_job_does_the_work_and_commits(spread: str, manifest: Path, tmp_path: Path) -> None:
    """On an engine that runs it at once: the job, the command in it, and the command's own jobs."""
    parameters = [f"--input={manifest}", f"--out={tmp_path / 'out'}", "--limit=8", f"--spread={spread}"]
    start("extract", [*parameters, "--runner=FnApiRunner", "--job_name=monday"], {})
    assert Dataset.open(tmp_path / "out").stages["extract"].summary["records"] == 8


# The Dockerfile.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def argument(name: str) -> str:
    (default,) = {value.partition("=")[2] for kind, value in instructions() if kind == "ARG" and value.startswith(name)}
    return default


def pins() -> dict[str, str]:
    lines = (ROOT / "docker" / "constraints.txt").read_text("utf-8").split()
    return dict(line.split("==") for line in lines)


def test_what_the_dockerfile_copies_is_there() -> None:
    stages: set[str] = set()
    seen = (ROOT / ".dockerignore").read_text("utf-8").split()
    for kind, value in instructions():
        if kind == "FROM":
            stages.add(value.partition(" AS ")[2])
        if kind == "COPY" and (found := re.match(r"--from=(\w+) ", value)):
            assert found[1] in stages
        elif kind == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.split('/')[0]}" in seen
    assert {"worker", "cluster", "template"} <= stages
    assert (ROOT / "pipelines" / f"{argument('STAGE')}.py").exists()
    assert "/opt/template/pipelines/template.py" in (ROOT / "Dockerfile").read_text("utf-8")


def test_versions_are_those_that_setup_asks_for() -> None:
    package, versions = metadata("mmembed"), pins()
    assert argument("BEAM") == versions["apache-beam"]
    assert SpecifierSet(package["Requires-Python"]).contains(f"{argument('PYTHON')}.1")
    assert set(argument("EXTRAS").split(",")) <= set(package.get_all("Provides-Extra", []))
    for requirement in map(Requirement, requires("mmembed") or []):
        extras = ("", "gcp", "aws", "onnx", "hf")
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
