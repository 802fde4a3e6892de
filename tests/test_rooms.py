"""The design, held: who imports whom, and what a light command must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(ROOT.glob("mmembed/**/*.py"))
MODULES = [*LIBRARY, *sorted(ROOT.glob("pipelines/*.py"))]

# From the ground up: a room imports only what is above it.
ROOMS = """
    errors remote files encryption secret redaction forgotten types fetch modalities encoders testing linear
    moments metrics pairs closed_form refine splits tables filters shards privacy inputs signatures watch
    scratch config dataset pieces steps features duplicates extraction forecast bench fit project forget hubness
    kinds tune index indexing search embed reader explain evaluate compare audit sample engine progress
    transforms card report pages verify stages serve cli
""".split()  # noqa: SIM905
NO_ROOMS = {"__init__", "__main__"}  # the version, and a way to start the program
UNSAFE = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """The room of a file: mmembed/inputs/jsonl.py -> inputs."""
    return path.relative_to(ROOT / "mmembed").with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(packages: set[str]) -> set[str]:
    return {name(path) for path in MODULES if {module.split(".")[0] for module in imports(path)} & packages}


def test_the_scan_sees_imports_at_the_top_and_within_functions() -> None:
    assert "apache_beam" in set(imports(ROOT / "mmembed/transforms/extract.py"))
    assert "mmembed.search.Searcher" in set(imports(ROOT / "mmembed/cli.py"))
    assert len(MODULES) > 30


def test_only_transforms_import_beam() -> None:
    for_types = {"mmembed/stages.py"}  # a name for the type checker, which loads nothing
    file_systems = {"mmembed/remote.py"}  # of gs:// and its like, loaded where one is opened
    importing = importers({"apache_beam"}) - for_types - file_systems
    assert importing
    assert all(path.startswith("mmembed/transforms/") for path in importing)


def test_only_serve_imports_what_a_server_needs() -> None:
    needed = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "fastapi_offline"}
    assert {room(ROOT / path) for path in importers(needed)} == {"serve"}


def test_a_framework_is_imported_by_its_adapter_alone() -> None:
    for framework in ("jax", "tensorflow"):
        assert importers({framework}) == {f"mmembed/reader/{framework}.py"}
    assert "mmembed/reader/torch.py" in importers({"torch"})
    assert {path for path in importers({"torch"}) if room(ROOT / path) == "reader"} == {"mmembed/reader/torch.py"}


def test_every_module_has_a_room() -> None:
    assert {room(path) for path in LIBRARY} - NO_ROOMS == set(ROOMS)


def test_a_room_imports_only_what_is_above_it() -> None:
    wrong = [
        f"{name(path)} imports {module}"
        for path in LIBRARY
        if room(path) in ROOMS
        for module in imports(path)
        if module.startswith("mmembed.") and module.split(".")[1] not in ROOMS[: ROOMS.index(room(path)) + 1]
    ]
    assert not wrong


def test_the_pipelines_know_the_command_line_alone() -> None:
    launcher = ROOT / "pipelines" / "template.py"  # which launches a command instead of being one
    found = {module for path in ROOT.glob("pipelines/*.py") if path != launcher for module in imports(path)}
    assert {module for module in found if module.startswith("mmembed")} == {"mmembed.cli.main"}


def test_nothing_runs_code_that_it_read() -> None:
    called = {
        (name(path), node.func.id)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert importers(UNSAFE) == {"mmembed/testing.py"}  # which reads what it has just written
    assert not {(path, function) for path, function in called if function in ("eval", "exec")}


LOADS = {"numpy.load": "allow_pickle=False", "torch.load": "weights_only=True"}
"""What reads pickles, unless it is told not to."""
REFUSED = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"}


def calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    """The full names of functions that a program calls, whatever it imported them as, and how it calls them."""
    tree = ast.parse(text)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            known |= {alias.asname or alias.name: start + alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield known.get(first, first) + dot + rest, node


def unsafe_loads(text: str) -> list[str]:
    """Lines that may run what a file says."""
    found = []
    for called, node in calls(text):
        said = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
        if called in REFUSED or (called in LOADS and LOADS[called] not in said):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "program, is_safe",
    [
        ("import numpy as np\nnp.load(path)", False),
        ("import numpy\nnumpy.load(path, allow_pickle=True)", False),
        ("from numpy import load\nload(path)", False),
        ("import numpy as np\nnp.load(path, allow_pickle=False)", True),
        ("def f():\n    import torch\n    return torch.load(path, weights_only=False)", False),
        ("import torch as t\nt.load(path, weights_only=True)", True),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", False),
        ("import yaml\nyaml.safe_load(text)", True),
        ("import pandas as pd\npd.read_pickle(path)", False),
        ("json.load(file)", True),
    ],
)
def test_the_scan_sees_what_reads_pickles(program: str, is_safe: bool) -> None:
    assert (not unsafe_loads(program)) == is_safe


def test_nothing_loads_pickles() -> None:
    paths = [
        *LIBRARY,
        *(path for room in ("pipelines", "examples", "benchmarks") for path in ROOT.glob(f"{room}/**/*.py")),
    ]
    found = {name(path): lines for path in paths if (lines := unsafe_loads(path.read_text("utf-8")))}
    assert not found
    assert sum(called in LOADS for path in paths for called, _ in calls(path.read_text("utf-8"))) > 5


def test_every_module_and_everything_public_in_it_says_what_it_is() -> None:
    silent = []
    for path in MODULES:
        tree = ast.parse(path.read_text("utf-8"))
        public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        silent += [
            f"{name(path)}: {node.name}" for node in public if node.name[0] != "_" and not ast.get_docstring(node)
        ]
        silent += [] if ast.get_docstring(tree) else [name(path)]
    assert not silent


LIGHT = {
    "mmembed": "import mmembed",
    "mmembed.search": "import mmembed.search",
    "mmembed.reader": "import mmembed.reader",
    "mmembed.cli": "import mmembed.cli",
    "mmembed --help": "import mmembed.cli\ntry: mmembed.cli.main(['--help'])\nexcept SystemExit: pass",
}
HEAVY = {"apache_beam", "librosa", "torch", "jax", "tensorflow"}


@pytest.mark.parametrize("program", LIGHT.values(), ids=LIGHT)
def test_a_light_import_loads_neither_beam_nor_librosa_nor_torch(program: str) -> None:
    assert not loaded(program) & HEAVY


def test_importing_the_package_alone_loads_no_numpy() -> None:
    assert not loaded("import mmembed") & {"numpy", "pyarrow", "scipy"}


def loaded(program: str) -> set[str]:
    """The top packages that a fresh interpreter holds after a program."""
    tail = "import sys; print(*{name.split('.')[0] for name in sys.modules}, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", f"{program}\n{tail}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = set(result.stdout.splitlines())
    assert "mmembed" in names
    return names
