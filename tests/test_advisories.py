"""What `make audit` makes of pip-audit's answer: a check that could not run is no pass."""

from __future__ import annotations

import subprocess
from typing import Any

import advisories
import pytest

SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
HOLE = {"name": "torch", "version": "2.5", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.6"]}]}
UNKNOWN = {"name": "faiss", "skip_reason": "Dependency not found on PyPI and could not be audited: faiss (1.9)"}
OWN = {"name": "mmembed", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    "dependencies, code, said",
    [
        ([SOUND, OWN], 0, "audit: 1 packages, 0 known vulnerabilities"),
        ([SOUND, HOLE], 1, "torch 2.5: PYSEC-1, fixed in 2.6"),
        ([SOUND, UNKNOWN], 2, "audit: 1 of 2 packages could not be checked (faiss): this is no pass"),
        ([UNKNOWN, HOLE], 1, "could not be checked"),
        ([OWN], 2, "this is no pass"),
    ],
)
def test_only_packages_that_were_checked_pass(dependencies: list[dict[str, Any]], code: int, said: str) -> None:
    found, lines = advisories.judged(dependencies)
    assert found == code and said in "\n".join(lines)


def test_a_service_that_is_out_of_reach_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\n  …\nConnectionError: no route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *words, **named: failed)
    assert advisories.main([]) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert "could not be asked: ConnectionError: no route to host: this is no pass" in line
