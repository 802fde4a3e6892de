"""The program of a Flex Template, which Dataflow starts to launch a job: parameters in, the words of a command out.

The template's image says which stage, as MMEMBED_STAGE. A parameter is `--name=value`. Those that `templates/` declares
for the stage are ours, `unit_records` for `--unit-records`; all others are Beam's.
"""

import json
import os
import sys
from pathlib import Path

from mmembed.cli import main

PLACES = ("input", "out")
"""Parameters that are no flags of the command, in their order there."""

OF_BEAM = ("sdk_container_image",)
"""Parameters that are declared for whoever fills the form in, but are flags of Beam's."""


def words(stage: str, parameters: list[str]) -> list[str]:
    """The words of the command: places, flags, and Beam's flags after `--`."""
    template = json.loads((Path(__file__).parent / "templates" / f"{stage}.json").read_text("utf-8"))
    declared = {parameter["name"] for parameter in template["parameters"]} - {*OF_BEAM}
    pairs = [parameter.removeprefix("--").partition("=")[::2] for parameter in parameters]
    ours = {name: value for name, value in pairs if name in declared and value}  # the form sends empty ones too
    flags = [word for name, value in ours.items() if name not in PLACES for word in _flag(name, value)]
    beam = [f"--{name}={value}" if value else f"--{name}" for name, value in pairs if name not in declared]
    return [stage, *(ours[name] for name in PLACES if name in ours), *flags, "--", *beam]


def _flag(name: str, value: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return {"true": [flag], "false": []}.get(value.lower(), [f"{flag}={value}"])


if __name__ == "__main__":
    sys.exit(main(words(os.environ["MMEMBED_STAGE"], sys.argv[1:])))
