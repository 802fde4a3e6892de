"""A worker process of the local runner: Beam's own, without its chatter on standard error."""

import logging
import runpy

if __name__ == "__main__":
    # With a handler in place before Beam is loaded, Beam adds none. A worker's errors reach the launcher as exceptions.
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(handler)
    runpy.run_module("apache_beam.runners.worker.sdk_worker_main", run_name="__main__")
