"""A worker process of the local runner: Beam's own, without its chatter on standard error."""

import importlib
import logging
import os
import runpy
import signal
import sys
import threading
import time


def end_with(launcher: int) -> None:
    """End this process when the launcher has ended, however it did: a worker that outlives it would race the next."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(os.environ["MMEMBED_LAUNCHER"]),), daemon=True).start()
    # With a handler in place before Beam is loaded, Beam adds none. A worker's errors reach the launcher as exceptions.
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL + 1)
    logging.getLogger().addHandler(handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the launcher ends us

    from grpc import RpcError

    from mmembed.transforms.processes import hide_lost_connections

    threading.excepthook = hide_lost_connections
    # Beam prints each failure's traceback here besides sending it to the launcher, which says what matters of it.
    vars(importlib.import_module("apache_beam.runners.worker.sdk_worker"))["print"] = lambda *_, **__: None
    try:
        runpy.run_module("apache_beam.runners.worker.sdk_worker_main", run_name="__main__")
    except RpcError:
        sys.exit(1)  # the launcher is gone
