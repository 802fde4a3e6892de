"""Damaged files of every form and format, in a process of its own: no crash, no hang, no memory above a bound."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from command import ENVIRONMENT, ROOT, arguments


def test_no_damage_crashes_hangs_or_swells_a_reader_or_decoder(tmp_path: Path) -> None:
    command = arguments(tmp_path, 60, python=(str(ROOT / "tests/fuzzing.py"),))
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    said = json.loads(result.stdout)
    assert said["megabytes"] < 400
    refused = [name for name in said["outcomes"] if name.endswith("refused")]
    assert len(refused) >= 15  # nearly every form meets damage that it can't read past
