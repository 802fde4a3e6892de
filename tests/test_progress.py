from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable

import pytest

from mmembed import progress
from mmembed.progress import Counts, Progress


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)


def finished(counts: Counts) -> Callable[[], Counts | None]:
    return lambda: counts


class Printed:
    """What was printed to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def lines(self) -> list[str]:
        self._text += self._capsys.readouterr().err
        return self._text.splitlines()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_elsewhere_than_on_a_terminal_lines_say_what_is_done_the_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    units = {
        0: finished({"records": 1000, "segments": 2500, "errors": 1}),
        1: finished({"records": 500, "segments": 0, "errors": 2}),
        2: lambda: None,
    }
    printed = Printed(capsys)
    with Progress("extract", units, 3000, "records"):
        wait_for(printed.lines)
    line = printed.lines()[-1]
    pattern = r"extract: 1,500 of 3,000 records, 2,500 segments, 3 errors; \d+ records/s, \d+ s left"
    assert re.fullmatch(pattern, line), line


def test_before_the_first_unit_no_time_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed(capsys)
    with Progress("fit", {0: lambda: None}, 10, "records"):
        wait_for(printed.lines)
    assert printed.lines()[0].startswith("fit: 0 of 10 records; 0 records/s, no unit finished yet")


def test_a_unit_is_asked_until_it_is_finished_and_then_never_again() -> None:
    asked: list[int] = []

    def counts() -> Counts | None:
        asked.append(len(asked))
        return {"records": 1} if len(asked) == 3 else None

    rounds: list[int] = []
    with Progress("extract", {0: counts, 1: lambda: rounds.append(1)}, 2, "records"):
        wait_for(lambda: len(rounds) > 6)
    assert len(asked) == 3


def test_a_terminal_has_a_bar_with_the_counts_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("extract", {0: finished({"records": 5, "errors": 2})}, 10, "records"):
        wait_for(lambda: "5/10" in terminal.getvalue())
    assert "extract" in terminal.getvalue() and "errors=2" in terminal.getvalue()


def test_when_it_is_over_nothing_watches_any_more() -> None:
    before = threading.active_count()
    with Progress("extract", {0: lambda: None}, 1, "records"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_error_of_the_stage_goes_through() -> None:
    with pytest.raises(ValueError, match="stopped"), Progress("extract", {0: lambda: None}, 1, "records"):
        raise ValueError("stopped")
