"""How time and memory grow with the records, what a second worker brings, and how long a start takes.

    python benchmarks/scale.py records [--records 1000 10000 100000] [--workers 2]
    python benchmarks/scale.py workers [MANIFEST.jsonl] [--records 3000] [--rounds 2]
    python benchmarks/scale.py start

`records` runs `mmembed build` on short texts, of which one in five has a small picture. Time is linear where "ms a
record" doesn't grow, memory flat where "MB" doesn't. A stage ends with its last line on standard error; its CPU seconds
are of all processes, ended ones too. MB are resident sets (with pages that forked processes share), the largest seen
in a look each tenth of a second: of the launcher, and of any other process; "all" is the sum of all processes' shares
(PSS), in which a shared page counts once.

`workers` extracts JPEGs by one worker and by two, in turns; the best round counts. "After start" is what the records
beyond the first fifth cost more than that fifth alone. Without a manifest, pictures of 640 x 480 are made.

`start` is the best of five, after one that fills caches.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmembed.report import table
from mmembed.sample import write_sample

STAGES = ("extract", "fit", "project", "index", "evaluate")
COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 210), "grey": (128, 128, 128)}
PLACES = ("left", "right", "top", "bottom")
WORDS = (
    "river",
    "stone",
    "house",
    "garden",
    "winter",
    "paper",
    "glass",
    "wind",
    "bread",
    "horse",
    "letter",
    "island",
    "music",
    "bridge",
    "forest",
    "lamp",
)
LOOK_SECONDS, SHARES_EVERY = 0.1, 5  # shares take the kernel some milliseconds: not at each look
SUBREAPER = 36  # of prctl: processes whose parent has ended become ours, and their time counts
MB = 2**20
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Look:
    """All processes of a command at one moment.

    Attributes:
        time: seconds of the monotonic clock.
        cpu: seconds of them all so far, with those of children that have ended.
        launcher: bytes in memory of the command's first process.
        worker: of the largest other one.
        shares: the sum of all, a page that n of them share counting 1/n; 0 where it was not asked for.
    """

    time: float
    cpu: float
    launcher: int
    worker: int
    shares: int


@dataclass(frozen=True)
class Cost:
    """Of a stage: seconds of the clock and of all processors, and the most bytes in memory, as of `Look`."""

    wall: float
    cpu: float
    launcher: int = 0
    worker: int = 0
    shares: int = 0


def look(leader: int, shares: bool) -> Look:
    """At the processes of the session that a process leads."""
    ticks, resident, whole = 0, {0: 0}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # from the third of proc(5) on
        except OSError:  # it has ended
            continue
        if int(fields[3]) == leader:
            pid = int(path.parent.name)
            ticks += sum(map(int, fields[11:15]))
            resident[pid] = int(fields[21]) * PAGE
            whole += share(pid) if shares else 0
    launcher = resident.pop(leader, 0)
    return Look(time.monotonic(), ticks / TICKS, launcher, max(resident.values()), whole)


def share(pid: int) -> int:
    """The memory of a process, in bytes, where a page of n processes counts 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def costs_of(start: float, end: float, lines: Sequence[tuple[float, str]], looks: Sequence[Look]) -> dict[str, Cost]:
    """What each stage took, and all together.

    Args:
        lines: of standard error, and when they came: a stage ends with the last that begins with its name.
    """
    ends = {line.partition(":")[0]: moment for moment, line in lines}
    ends[STAGES[-1]] = end
    costs, before, spent = {}, start, 0.0
    for stage in STAGES:
        until = ends.get(stage, before)
        during = [one for one in looks if before <= one.time <= until]
        cpu = max([spent, *(one.cpu for one in during)])
        costs[stage] = Cost(until - before, cpu - spent, *most(during))
        before, spent = until, cpu
    return costs | {"all": Cost(end - start, spent, *most(looks))}


def most(looks: Sequence[Look]) -> tuple[int, int, int]:
    """The most memory of each kind."""
    kinds = ([one.launcher for one in looks], [one.worker for one in looks], [one.shares for one in looks])
    launcher, worker, shares = (max(kind, default=0) for kind in kinds)
    return launcher, worker, shares


def build(manifest: Path, out: Path, workers: int) -> dict[str, Cost]:
    """What `mmembed build` costs, by stage."""
    words = [sys.executable, "-m", "mmembed", "build", str(manifest), str(out), "--workers", str(workers)]
    lines: list[tuple[float, str]] = []
    looks: list[Look] = []
    start = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        reading = threading.Thread(
            target=lambda it: lines.extend((time.monotonic(), line) for line in it), args=(process.stderr,)
        )
        reading.start()
        while process.poll() is None:
            looks.append(look(process.pid, shares=len(looks) % SHARES_EVERY == 0))
            time.sleep(LOOK_SECONDS)
        end = time.monotonic()
        reading.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {lines[-1][1] if lines else ''}")
    return costs_of(start, end, lines, looks)


def picture(colour: str, place: str, chance: random.Random) -> bytes:
    """A PNG of 48 x 48: noise, and a patch of a colour at a place."""
    noise = np.frombuffer(chance.randbytes(48 * 48 * 3), np.uint8).reshape(48, 48, 3) // 4 + 96
    rows = {"top": slice(4, 20), "bottom": slice(28, 44)}.get(place, slice(16, 32))
    columns = {"left": slice(4, 20), "right": slice(28, 44)}.get(place, slice(16, 32))
    noise[rows, columns] = COLOURS[colour]
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG", compress_level=1)
    return data.getvalue()


def write_records(path: Path, records: int) -> Path:
    """Texts of eight words, and for one in five a picture of what it says, as Parquet."""
    chance = random.Random(records)
    ids, texts, pictures = [], [], []
    for number in range(records):
        colour, place = chance.choice(list(COLOURS)), chance.choice(PLACES)
        ids.append(f"record-{number:07d}")
        texts.append(f"{colour} {place} " + " ".join(chance.choices(WORDS, k=6)))
        pictures.append(picture(colour, place, chance) if number % 5 == 0 else None)
    pq.write_table(pa.table({"id": ids, "text": texts, "image": pictures}), path, row_group_size=1024)
    return path


def grow(sizes: Sequence[int], workers: int) -> None:
    """Print the tables of growing numbers of records."""
    found: list[tuple[int, dict[str, Cost]]] = []
    with tempfile.TemporaryDirectory() as name:
        for records in sizes:
            manifest = write_records(Path(name) / f"{records}.parquet", records)
            found.append((records, build(manifest, Path(name) / str(records), workers)))
            print(f"{records:,} records: {found[-1][1]['all'].wall:.1f} s", file=sys.stderr, flush=True)
    header = [
        "records",
        "stage",
        "wall s",
        "CPU s",
        "records/s",
        "CPU ms a record",
        "launcher MB",
        "worker MB",
        "all MB",
    ]
    print(table(header, [row(records, stage, cost) for records, costs in found for stage, cost in costs.items()]))
    ratios = []
    for (few, small), (many, large) in pairwise(found):
        for stage, cost in large.items():
            times = [ratio(value, vars(small[stage])[key]) for key, value in vars(cost).items()]
            ratios.append([f"{few:,} to {many:,}: {many / few:g} times", stage, *times])
    if ratios:
        print()
        print(table(["records", "stage", "wall", "CPU", "launcher MB", "worker MB", "all MB"], ratios))


def ratio(large: float, small: float) -> str:
    """For a table; nothing where one of them was too short to be seen."""
    return f"{large / small:.2f}" if large and small else ""


def row(records: int, stage: str, cost: Cost) -> list[str]:
    """Of the table."""
    speed = f"{records / cost.wall:,.0f}" if cost.wall else ""
    megabytes = [f"{value / MB:,.0f}" if value else "" for value in (cost.launcher, cost.worker, cost.shares)]
    ms = f"{1e3 * cost.cpu / records:.2f}"
    return [f"{records:,}", stage, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", speed, ms, *megabytes]


def write_jpegs(folder: Path, records: int) -> Path:
    """Pictures of 640 x 480 of smooth noise, which JPEG takes for photographs, and their manifest."""
    chance = np.random.default_rng(0)
    lines = []
    for number in range(records):
        small = Image.fromarray(chance.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=88)
        lines.append(json.dumps({"id": f"picture-{number:06d}", "image": f"{number}.jpg"}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n", "utf-8")
    return manifest


def images_of(manifest: Path, records: int, path: Path) -> Path:
    """A manifest of the first pictures of another, with absolute paths."""
    lines = []
    for line in manifest.read_text("utf-8").splitlines()[:records]:
        record = json.loads(line)
        lines.append(json.dumps({"id": record["id"], "image": str((manifest.parent / record["image"]).resolve())}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def run(*words: str | Path) -> Cost:
    """What a command of mmembed costs, with its processes."""
    command = [sys.executable, "-m", "mmembed", *map(str, words)]
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - start
    with suppress(ChildProcessError):  # until there are none
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def compare_workers(given: Path | None, records: int, rounds: int) -> None:
    """Print a row for one worker and for two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jpegs").mkdir()
        manifest = images_of(given or write_jpegs(folder / "jpegs", records), records, folder / "all.jsonl")
        count = len(manifest.read_text("utf-8").splitlines())
        few = images_of(manifest, count // 5, folder / "few.jsonl")
        costs: dict[tuple[int, Path], list[Cost]] = {}
        for turn in range(rounds):
            for workers in (1, 2):
                for path in (few, manifest):
                    out = folder / f"{turn}-{workers}-{path.stem}"
                    cost = run("extract", path, out, "--workers", str(workers), "--allow-outside")
                    costs.setdefault((workers, path), []).append(cost)
    best = {key: Cost(min(c.wall for c in of), min(c.cpu for c in of)) for key, of in costs.items()}
    later = {workers: best[workers, manifest].wall - best[workers, few].wall for workers in (1, 2)}
    rows = [
        [
            str(workers),
            f"{best[workers, manifest].wall:.1f}",
            f"{best[workers, manifest].cpu:.1f}",
            f"{count / best[workers, manifest].wall:,.0f}",
            f"{best[1, manifest].wall / best[workers, manifest].wall:.2f}",
            f"{later[workers]:.1f}",
            f"{later[1] / later[workers]:.2f}",
        ]
        for workers in (1, 2)
    ]
    print(f"{count:,} pictures")
    print(table(["workers", "wall s", "CPU s", "records/s", "speed-up", "after start s", "speed-up after start"], rows))


def start_up() -> None:
    """Print a row for each command that does next to nothing."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {records: write_sample(folder / str(records), records, 0) for records in (10, 30)}
        commands: dict[str, list[str | Path]] = {
            "mmembed --help": ["--help"],
            **{f"mmembed build of {records} records": ["build", path] for records, path in inputs.items()},
        }
        for what, words in commands.items():
            costs = []
            for turn in range(6):
                out = [folder / f"{len(rows)}-{turn}"] if words[0] == "build" else []
                costs.append(run(*words, *out))
            first, later = costs[0], [cost.wall for cost in costs[1:]]
            rows.append([what, *(f"{value:.2f}" for value in (min(later), max(later), first.wall))])
            rows[-1].append(f"{min(cost.cpu for cost in costs):.2f}")
    print(table(["command", "best s", "worst s", "the first s", "CPU s"], rows))


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    growing = commands.add_parser("records")
    growing.add_argument("--records", type=int, nargs="+", default=[1000, 10_000, 100_000])
    growing.add_argument("--workers", type=int, default=2)
    working = commands.add_parser("workers")
    working.add_argument("manifest", type=Path, nargs="?")
    working.add_argument("--records", type=int, default=3000)
    working.add_argument("--rounds", type=int, default=2)
    commands.add_parser("start")
    options = parser.parse_args()
    if options.command == "records":
        grow(options.records, options.workers)
    elif options.command == "workers":
        compare_workers(options.manifest, options.records, options.rounds)
    else:
        start_up()


if __name__ == "__main__":
    main()
