"""The demo: a sample data set from nothing to answers. `python examples/demo.py [FOLDER]`

Makes 1,000 records (pictures of simple scenes, captions, sounds), builds them, evaluates, and asks three cross-modal
questions with held-out scenes: no record of them was used to learn the maps. An answer is correct when it shows the
shape, the colour and the count that were asked for.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmembed.cli import main as mmembed
from mmembed.config import Config
from mmembed.report import table
from mmembed.search import Query, Searcher
from mmembed.splits import HELD_OUT, split_of

ASKED = ("shape", "color", "count")


def main(folder: Path) -> int:
    """Build and ask; returns the exit code of the first command that fails, else 0."""
    data, out = folder / "data", folder / "out"
    for command in (
        ["sample", str(data), "--records", "1000", "--seed", "0"],
        ["build", str(data / "manifest.jsonl"), str(out), "--group-column", "scene"],
    ):
        print(f"\n$ mmembed {' '.join(command)}", flush=True)
        if code := mmembed(command):
            return code
    searcher = Searcher.open(out)
    lines = (data / "manifest.jsonl").read_text("utf-8").splitlines()
    held_out = [row for row in map(json.loads, lines) if split_of(row["scene"], Config().fit.holdout) == HELD_OUT]
    whole = [row for row in held_out if {"image", "text", "audio"} <= row.keys()]
    for row, asked, target in zip(whole, ("text", "image", "audio"), ("image", "text", "image")):
        value = row[asked] if asked == "text" else str(data / row[asked])
        ask(searcher, row, asked, value, target, out)
    return 0


def ask(searcher: Searcher, row: Mapping[str, Any], asked: str, value: str, target: str, out: Path) -> None:
    """Print the five nearest neighbours of one medium of a record, and which of them are correct."""
    shown = f'"{value}"' if asked == "text" else value
    print(f"\n$ mmembed query {out} --{asked} {shown} --to {target} -k 5\n  (asked for: {row['scene']})")
    query = {"text": Query.of(text=value), "image": Query.of(image=Path(value)), "audio": Query.of(audio=Path(value))}
    rows = [
        [
            str(found.rank),
            f"{found.score:.3f}",
            "correct" if all(found.metadata[key] == row[key] for key in ASKED) else "wrong",
            found.metadata["scene"],
            found.media,
        ]
        for found in searcher.search(query[asked], target, 5)
    ]
    print(table(["rank", "score", "answer", "what it shows", "text or path"], rows))
    print(f"correct: the same {', '.join(ASKED)}")


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:] or ["demo"])))
