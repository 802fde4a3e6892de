"""A process that has loaded the libraries, and becomes, by a fork, a process of each command that it is asked for.

    python warm.py < REQUESTS > EXIT_CODES

Loading Beam takes longer than most commands that the tests run. What a command makes of its words, its environment, its
output and its end is that of `python -m mmembed`, and the package's own modules are loaded by each command anew: only
the libraries are there before. A request is a line of JSON, its answer a line with the exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import sys
import threading
from typing import Any, NoReturn
from unittest.mock import patch

LIBRARIES = (
    "apache_beam",
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.typehints.trivial_inference",
    "braceexpand",
    "cloudpickle",
    "datasketch",
    "faiss",
    "imagehash",
    "numpy",
    "PIL.GifImagePlugin",
    "PIL.ImageCms",
    "PIL.ImageOps",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "safetensors.numpy",
    "scipy.fftpack",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.sparse.csgraph",
    "soundfile",
    "soxr",
    "threadpoolctl",
    "tokenizers",
    "tqdm",
)
"""What a build or a query loads, as of `sys.modules` after it."""


def load() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    logging.getLogger().handlers.clear()  # Beam logs while it is loaded, which makes one
    gc.collect()
    gc.freeze()  # what is there now is not copied by the collector of each command


def become(request: dict[str, Any], libraries: list[str]) -> None:
    """Be as Python is when it begins with `python -m mmembed`."""
    for descriptor, path in ((1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = [request["folder"], *os.environ["PYTHONPATH"].split(os.pathsep), *libraries]
    importlib.invalidate_caches()
    sys.argv = ["mmembed", *request["words"]]
    patch("os.fsync", lambda descriptor: None).start()  # nobody needs test data after a power cut


def run() -> NoReturn:
    """Run the command and end as Python does, but for taking modules apart, which takes longer than most commands."""
    code: Any = 0
    try:
        runpy.run_module("mmembed", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    if isinstance(code, str):  # as `sys.exit(message)` has it
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else bool(code))


def main() -> None:
    given = os.environ["PYTHONPATH"].split(os.pathsep)
    libraries = [path for path in sys.path[1:] if path not in given]
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    load()
    for line in requests:
        pid = os.fork()
        if not pid:
            os.close(requests.fileno())
            os.close(answers.fileno())
            become(json.loads(line), libraries)
            run()
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
