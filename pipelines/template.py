"""The program of a Flex Template: Dataflow starts it to launch a job, with parameters as `--name=value`.

The template's image says which stage, as MMEMBED_STAGE. Parameters that `templates/` declares for it are ours,
`unit_records` for `--unit-records`; all others are Beam's.

Such a launcher must end before its job begins, and so can't commit what the job made. So its job is one element on one
worker: the command itself, which launches further jobs for the work, waits for them, and commits:

    words of the command | RunCommand
"""

import json
import os
import sys
from pathlib import Path

from mmembed.engine import Engine
from mmembed.transforms import run
from mmembed.transforms.command import RunCommand

PLACES = ("input", "out")
"""Parameters that are no flags of the command, in their order there."""

OF_BEAM = ("sdk_container_image",)
"""Parameters that are declared for whoever fills the form in, but are flags of Beam's."""

OF_LAUNCHER = ("--template_location=", "--job_name=")
"""Beam's flags that are for the launched job alone."""


def words(stage: str, parameters: list[str]) -> tuple[str, ...]:
    """The words of the command: places, flags, and Beam's flags after `--` if the work goes to jobs of its own."""
    ours, beam = _split(stage, parameters)
    spread = ours.pop("spread", "true").lower() == "true"
    places = [ours.pop(name) for name in PLACES if name in ours]
    flags = [word for name, value in ours.items() for word in _flag(name, value)]
    # Two running jobs can't have one name.
    name = next((flag.partition("=")[2] for flag in beam if flag.startswith("--job_name=")), "mmembed")
    kept = [flag for flag in beam if not flag.startswith(OF_LAUNCHER)]
    return (stage, *places, *flags, *(["--", *kept, f"--job_name={name}-{stage}"] if spread else []))


def launch(stage: str, parameters: list[str]) -> None:
    """Launch the job of one worker."""
    flags = (*_split(stage, parameters)[1], "--num_workers=1", "--max_num_workers=1")  # the last ones count
    run("RunCommand", [words(stage, parameters)], RunCommand(), Engine(1, flags))


def _split(stage: str, parameters: list[str]) -> tuple[dict[str, str], list[str]]:
    """Ours by name, and Beam's as they are; the form sends empty ones of ours too."""
    template = json.loads((Path(__file__).parent / "templates" / f"{stage}.json").read_text("utf-8"))
    declared = {parameter["name"] for parameter in template["parameters"]} - {*OF_BEAM}
    pairs = [(word, *word.removeprefix("--").partition("=")[::2]) for word in parameters]
    ours = {name: value for _, name, value in pairs if name in declared and value}
    return ours, [word for word, name, _ in pairs if name not in declared]


def _flag(name: str, value: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return {"true": [flag], "false": []}.get(value.lower(), [f"{flag}={value}"])


if __name__ == "__main__":
    launch(os.environ["MMEMBED_STAGE"], sys.argv[1:])
