"""What a worker process is working on, and an end to it where that takes too long.

Native code that hangs can't be interrupted. So the process ends itself, as if it had crashed, and whoever takes its
work over leaves out what it was stuck at.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

STUCK = 75
"""The exit code of a process that ended itself."""


class Watch:
    """Looks at what the threads of a process work on, a few times within the time that they may take."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[float, float, Callable[[], None]]] = {}
        self._looking: threading.Thread | None = None

    def begin(self, seconds: float, stuck: Callable[[], None]) -> None:
        """This thread works on something else from now on.

        Args:
            seconds: that it may take; 0: as long as it takes.
            stuck: called before the process ends.
        """
        if not seconds:
            return
        self._now[threading.get_ident()] = (time.monotonic(), seconds, stuck)
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()

    def rest(self) -> None:
        """This thread has nothing to do."""
        self._now.pop(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            now = list(self._now.values())
            time.sleep(min([5.0, *(seconds / 10 for _, seconds, _ in now)]))
            for start, seconds, stuck in list(self._now.values()):
                if time.monotonic() - start > seconds:
                    try:
                        stuck()
                    finally:
                        print(f"mmembed: stuck for {seconds:g} seconds: this process ends", file=sys.stderr, flush=True)
                        os._exit(STUCK)


watch = Watch()
"""Of this process."""
