"""The pipelines as a cluster runs them: through Beam's real job API, by workers elsewhere, from the built wheel.

What pickles there and is found there, is on a cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import ROOT, content
from conftest import UNIT
from services import free_port, serving

from mmembed.dataset import CARD, LOCK, MANIFEST, Dataset
from mmembed.encryption import VARIABLE
from mmembed.engine import ONE_THREAD
from mmembed.project import GROUPS
from mmembed.shards import is_sealed

# Put into a Python as `sitecustomize`: tells which process gave a file its final name, and whose package did it.
SPY = """
import os, sys

def tell(event, arguments):
    if event == "os.rename":
        package = getattr(sys.modules.get("mmembed"), "__file__", None)
        line = f"{os.getpid()}\\t{package}\\t{os.fspath(arguments[1])}\\n"
        place = os.open(os.environ["SPY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(place, line.encode())
        os.close(place)

if "SPY" in os.environ:
    sys.addaudithook(tell)
"""


@dataclass(frozen=True)
class Moved:
    """A file that got its final name: by which process, of which package, and the name."""

    pid: int
    package: Path
    path: Path


def moves(log: Path) -> list[Moved]:
    rows = [line.split("\t") for line in log.read_text("utf-8").splitlines()]
    return [Moved(int(pid), Path(package), Path(path)) for pid, package, path in rows]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment that has mmembed from its wheel, and all else from ours."""
    folder = tmp_path_factory.mktemp("clean")
    source, venv = folder / "source", folder / "venv"
    # A copy: a build leaves folders beside its sources, and takes what it finds there.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mmembed", source / "mmembed", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", source)
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = venv.glob("lib/python*/site-packages")
    run(*pip, f"--python={venv / 'bin' / 'python'}", "install", "--no-deps", "--no-index", *folder.glob("*.whl"))
    # The folder alone: its own .pth files, and so an editable mmembed, are not looked at.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    (site / "sitecustomize.py").write_text(SPY, "utf-8")
    return venv / "bin"


def run(*command: object) -> str:
    words = list(map(str, command))
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout


def environment(clean: Path, log: Path) -> dict[str, str]:
    """Nothing of the checkout, and as many threads as cores where nobody says otherwise: the tests themselves use one,
    see conftest.py."""
    kept = {name: value for name, value in os.environ.items() if name not in (*ONE_THREAD, "PYTHONPATH", VARIABLE)}
    # The pool starts a bare `python`. What Python compiles for itself is renamed too, and is no file of ours.
    others = {"PYTHONDONTWRITEBYTECODE": "1", "SPY": str(log)}
    return kept | others | {"PATH": os.pathsep.join([str(clean), kept["PATH"]])}


@contextmanager
def cluster(clean: Path, folder: Path, log: Path) -> Iterator[list[str]]:
    """A job service and a pool of workers; gives Beam's flags for them."""
    jobs, workers = free_port(), free_port()
    services = (
        (["apache_beam.runners.portability.local_job_service_main", f"--port={jobs}"], jobs),
        (["apache_beam.runners.worker.worker_pool_main", f"--service_port={workers}"], workers),
    )
    with ExitStack() as stack:
        for words, port in services:
            command = [str(clean / "python"), "-m", *words]
            stack.enter_context(serving(command, port, environment(clean, log), folder))
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{jobs}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{workers}",
        ]


def test_the_checkout_is_not_seen(clean: Path, tmp_path: Path) -> None:
    """Else the next test would show nothing."""
    code = "import importlib.util as i, json, mmembed; print(json.dumps([mmembed.__file__, i.find_spec('pipelines')]))"
    command = [str(clean / "python"), "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(clean, tmp_path / "log"), check=True, capture_output=True, text=True
    )
    package, pipelines = json.loads(result.stdout)
    assert Path(package).is_relative_to(clean.parent)
    assert pipelines is None


def test_workers_elsewhere_with_the_wheel_give_the_same_bytes(
    built: Path, faulty: Path, clean: Path, tmp_path: Path
) -> None:
    out, here, there = tmp_path / "out", tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    ours, theirs = tmp_path / "launcher.log", tmp_path / "workers.log"
    with cluster(clean, there, theirs) as flags:
        words = ["build", os.path.relpath(faulty, here), os.path.relpath(out, here), "--unit-records", str(UNIT)]
        command = [str(clean / "mmembed"), *words, "--", *flags]
        done = subprocess.run(
            command, cwd=here, env=environment(clean, ours), capture_output=True, text=True, timeout=200
        )
    assert done.returncode == 0, done.stderr
    assert content(out) == content(built) != {}
    stages, expected = (dict(Dataset.open(root).stages) for root in (out, built))
    evaluated = stages.pop("evaluate").summary  # of its own mark: it reads the index's times, which differ
    assert evaluated == expected.pop("evaluate").summary
    assert stages == expected

    launcher, workers = moves(ours), moves(theirs)
    assert all(moved.package.is_relative_to(clean.parent) for moved in [*launcher, *workers])
    assert {moved.pid for moved in launcher}.isdisjoint({moved.pid for moved in workers})
    by_workers = {moved.path.resolve().relative_to(out).as_posix() for moved in workers}
    by_launcher = {moved.path.resolve().relative_to(out).as_posix() for moved in launcher}
    written = set(content(out, ("features", "records", "errors", "maps", "embeddings"))) - {GROUPS}  # the launcher's
    assert written <= by_workers, written - by_workers
    assert by_launcher.isdisjoint(written), by_launcher & written
    assert any(path.endswith(".faiss") for path in by_workers)


def test_workers_elsewhere_are_told_to_encrypt_and_where_the_key_is(faulty: Path, clean: Path, tmp_path: Path) -> None:
    """Neither their environment nor their working directory says it."""
    out, there, log = tmp_path / "out", tmp_path / "there", tmp_path / "log"
    there.mkdir()
    (tmp_path / "key").write_text(os.urandom(32).hex())
    words = ["build", str(faulty), str(out), "--unit-records", str(UNIT), "--limit", "80", "--encrypt"]
    with cluster(clean, there, log) as flags:
        command = [str(clean / "mmembed"), *words, "--encryption-key", "key", "--", *flags]
        ours = environment(clean, tmp_path / "launcher.log")
        done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    by_workers = {moved.path.resolve().relative_to(out).parts[0] for moved in moves(log)}
    assert by_workers >= {"features", "records", "errors", "maps", "embeddings", "index"}
    files = {path.relative_to(out).as_posix(): is_sealed(path) for path in out.rglob("*") if path.is_file()}
    assert {name for name, sealed in files.items() if not sealed} == {MANIFEST, CARD, LOCK}
    assert len(files) > 20
