"""Progress of a stage while its pipeline runs: what is on disk is done, whichever process wrote it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from tqdm import tqdm

_POLL_SECONDS = 0.5
_LINE_SECONDS = 10.0

Counts = dict[str, int]


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere; on standard error.

    Args:
        stage: its name.
        units: by unit number, a function that gives the counts of the finished unit, or None as long as it is not.
        total: what 100% is, in `measure`.
        measure: the key of the counts that the bar follows.
    """

    def __init__(self, stage: str, units: Mapping[int, Callable[[], Counts | None]], total: int, measure: str) -> None:
        self._stage, self._measure = stage, measure
        self._waiting = dict(units)
        self._counts: Counts = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=stage, unit=f" {measure}", disable=not self._terminal, leave=False)
        self._start = self._printed = time.monotonic()
        self._total = total

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._look()
            self._show()

    def _look(self) -> None:
        for number, counts_of in list(self._waiting.items()):
            if self._stop.is_set():  # a look at many units of a bucket takes long, and nobody waits for it any more
                return
            if (counts := counts_of()) is not None:
                del self._waiting[number]
                for name, value in counts.items():
                    self._counts[name] = self._counts.get(name, 0) + value

    def _show(self) -> None:
        done = self._counts.get(self._measure, 0)
        others = {name: value for name, value in self._counts.items() if name != self._measure}
        if self._terminal:
            self._bar.set_postfix(others, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._printed >= _LINE_SECONDS:
            self._printed = time.monotonic()
            elapsed = self._printed - self._start
            left = f"{elapsed / done * (self._total - done):.0f} s left" if done else "no unit finished yet"
            rest = "".join(f", {value:,} {name}" for name, value in others.items())
            print(
                f"{self._stage}: {done:,} of {self._total:,} {self._measure}{rest}; "
                f"{done / elapsed:.0f} {self._measure}/s, {left}",
                file=sys.stderr,
                flush=True,
            )
