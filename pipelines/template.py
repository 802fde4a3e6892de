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

OF_LAUNCHER = ("template_location", "job_name")
"""Beam's flags that are for the launched job alone."""


def words(stage: str, parameters: dict[str, str]) -> tuple[str, ...]:
    """The words of the command: places, flags, and Beam's flags after `--` if the work goes to jobs of its own."""
    declared = _declared(stage)
    ours = {
        name: value for name, value in parameters.items() if name in declared and value
    }  # the form sends empty ones
    spread = ours.pop("spread", "true").lower() == "true"
    flags = [word for name, value in ours.items() if name not in PLACES for word in _flag(name, value)]
    beam = {name: value for name, value in parameters.items() if name not in declared and name not in OF_LAUNCHER}
    beam["job_name"] = f"{parameters.get('job_name', 'mmembed')}-{stage}"  # two running jobs can't have one name
    places = [ours[name] for name in PLACES if name in ours]
    return (stage, *places, *flags, *(["--", *_written(beam)] if spread else []))


def launch(stage: str, parameters: dict[str, str]) -> None:
    """Launch the job of one worker."""
    declared = _declared(stage)
    beam = {name: value for name, value in parameters.items() if name not in declared}
    flags = _written({**beam, "num_workers": "1", "max_num_workers": "1"})
    run("RunCommand", [words(stage, parameters)], RunCommand(), Engine(1, tuple(flags)))


def _declared(stage: str) -> set[str]:
    template = json.loads((Path(__file__).parent / "templates" / f"{stage}.json").read_text("utf-8"))
    return {parameter["name"] for parameter in template["parameters"]} - {*OF_BEAM}


def _flag(name: str, value: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return {"true": [flag], "false": []}.get(value.lower(), [f"{flag}={value}"])


def _written(flags: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" if value else f"--{name}" for name, value in flags.items()]


if __name__ == "__main__":
    pairs = (word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
    launch(os.environ["MMEMBED_STAGE"], dict(pairs))
