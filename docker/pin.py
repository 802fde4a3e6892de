"""The versions that worker images get: those that the tests ran with. From the environment of `make test`:

    .venv/bin/python docker/pin.py > docker/constraints.txt

A line for each package that mmembed needs with any of the extras for workers.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = {"gcp", "aws", "onnx", "hf"}


def pins(name: str, extras: set[str]) -> dict[str, str]:
    """Versions by package, of all that a package needs with some extras."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(name), {"", *extras})]
    while todo:
        package, wanted = todo.pop()
        fresh = {extra for extra in wanted if (package, extra) not in seen}
        seen |= {(package, extra) for extra in fresh}
        try:
            installed = distribution(package)
        except PackageNotFoundError:  # optional, and not tested
            continue
        found[package] = installed.version.partition("+")[0]  # torch of another index says +cpu
        for requirement in map(Requirement, installed.requires or []):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in fresh):
                todo.append((canonicalize_name(requirement.name), {"", *requirement.extras}))
    return found


if __name__ == "__main__":
    for package, version in sorted(pins("mmembed", EXTRAS).items()):
        if package != "mmembed":
            print(f"{package}=={version}")
