"""The commands of docs/dataflow.md, as far as they can be tried without a cluster."""

from __future__ import annotations

import re
import shlex

import pytest
from command import ROOT

from mmembed.transforms import check_beam_flags

PAGE = (ROOT / "docs" / "dataflow.md").read_text("utf-8")


def commands() -> list[tuple[str, ...]]:
    """What follows `--` in each command of ours."""
    (shared,) = re.findall(r'\$ BEAM="([^"]+)"', PAGE)
    lines = re.findall(r"^\$ (?:mmembed|python -m pipelines\.\w+) .* -- (.+)$", PAGE, re.MULTILINE)
    whole = [line.replace("$BEAM", shared).replace("$IMAGE", "image").replace("…", "") for line in lines]
    return [tuple(shlex.split(line)) for line in whole]


@pytest.mark.parametrize("flags", commands(), ids=lambda flags: flags[0])
def test_a_command_has_flags_that_beam_knows(flags: tuple[str, ...]) -> None:
    check_beam_flags(flags)


def test_no_engine_is_forgotten() -> None:
    runners = {flag for flags in commands() for flag in flags if flag.startswith("--runner=")}
    assert runners == {f"--runner={name}Runner" for name in ("Dataflow", "Flink", "Portable", "Spark")}


def test_the_table_of_flags() -> None:
    rows = re.findall(r"^\| `(--[^`]+)` \|", PAGE, re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        check_beam_flags(tuple(row.split()))


def test_each_counter_is_on_the_page() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "mmembed" / "transforms").glob("*.py")]
    call = r'(?:count|observe|timed|timed_each|Metrics\.\w+)\((?:"mmembed", )?f?"([^"]+)"'
    counted = {name for source in sources for name in re.findall(call, source)}
    assert "records" in counted
    named = re.findall(r"`(\w+)`", PAGE)
    for name in counted:
        pattern = re.sub(r"\\{.*?\\}", r"\\w+", re.escape(name))
        assert any(re.fullmatch(f"{pattern}(_us)?", other) for other in named), name
