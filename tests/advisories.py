"""`make audit`: known vulnerabilities of what is installed, by pip-audit, whose answer is judged here.

pip-audit calls a package "skipped" that the advisory service knows nothing of, also where that service can't be reached
and an index of packages answers in its place, and then ends as if all were well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

UNCHECKED = 2
OWN = "mmembed"


def judged(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code, and lines to say: 0 for no known vulnerability, 1 for some, 2 where not all could be checked."""
    others = [found for found in dependencies if found["name"] != OWN]
    lines = [
        f"{found['name']} {found['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no version'}"
        for found in others
        for hole in found.get("vulns", [])
    ]
    unchecked = [found["name"] for found in others if "skip_reason" in found]
    if unchecked or not others:
        names = ", ".join(unchecked[:3]) + ", …" * (len(unchecked) > 3)
        rest = f" ({names})" if unchecked else ""
        lines.append(f"audit: {len(unchecked)} of {len(others)} packages could not be checked{rest}: this is no pass")
    else:
        lines.append(f"audit: {len(others)} packages, {len(lines)} known vulnerabilities")
    vulnerable = any(found.get("vulns") for found in others)
    return (1 if vulnerable else UNCHECKED if unchecked or not others else 0), lines


def main(words: list[str]) -> int:
    """Run pip-audit with some more flags."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--desc=off", "--progress-spinner=off", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        code, lines = judged(json.loads(done.stdout)["dependencies"])
    except ValueError:  # it says nothing but why
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        code, lines = UNCHECKED, [f"audit: the advisory service could not be asked: {reason}: this is no pass"]
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
