"""All benchmarks of this folder, one after the other, as one file of JSON and one page: what `make bench` runs.

    python benchmarks/all.py [--out bench] [--full] [--only NAME …] [--peer PACKAGE=PYTHON …] [--autofaiss PYTHON]

Moderate sizes take some minutes, those of `--full` (the ones of docs/) some hours. Data come from `mmembed sample` and
from code. A benchmark that lacks something says what, and is left out; what a benchmark lacks of its peers it names
itself. In results.json each has its command, its seconds, all that it printed, and its tables row by row.
"""

from __future__ import annotations

import argparse
import html
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmembed.pages.parts import page, sections
from mmembed.pages.parts import table as html_table
from mmembed.sample import write_sample

HERE = Path(__file__).resolve().parent
PACKAGES = ("numpy", "pyarrow", "apache-beam", "faiss-cpu", "pillow", "scikit-learn", "onnxruntime")
TIMEOUT = 4 * 3600
SAMPLE, FULL_SAMPLE = 600, 5000

Row = dict[str, str]


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
        name: in the results.
        what: one line for the page.
        words: the script and its arguments; {sample} stands for the manifest of the sample data, {folder} for a folder
            that is empty, {images} for the folder of its pictures.
        full: the same for `--full`.
        packages: that it needs.
        lacks: why it can't run, "" if it can.
    """

    name: str
    what: str
    words: str
    full: str
    packages: tuple[str, ...] = ()
    lacks: str = ""


def benchmarks(autofaiss: str = "", peers: Sequence[str] = ()) -> list[Benchmark]:
    """All of them."""
    with_peers = "".join(f" --peer {peer}" for peer in peers)
    index = f"index.py --autofaiss {autofaiss}"
    return [
        Benchmark("start", "How long a start takes", "scale.py start", "scale.py start"),
        Benchmark(
            "scale",
            "How time and memory grow with the records",
            "scale.py records --records 1000 10000",
            "scale.py records",
        ),
        Benchmark(
            "workers", "What a second worker brings", "scale.py workers --records 1000 --rounds 1", "scale.py workers"
        ),
        *(
            Benchmark(
                f"extract {name}",
                f"Extraction of {name}, beside other engines",
                f"extract.py {{sample}} {name} --limit {SAMPLE} --rounds 1 --steps",
                f"extract.py {{sample}} {name} --steps",
            )
            for name in ("image", "text", "audio")
        ),
        Benchmark(
            "decode pictures",
            "Pictures made ready, beside other libraries",
            "decode.py pictures {images} --limit 100 --rounds 2",
            "decode.py pictures {images}",
        ),
        Benchmark(
            "decode texts", "Texts made ready", "decode.py texts {sample} --rounds 2", "decode.py texts {sample}"
        ),
        Benchmark(
            "decode sounds",
            "Sounds made ready",
            "decode.py sounds {sample} --limit 100 --rounds 2",
            "decode.py sounds {sample}",
        ),
        Benchmark(
            "encoders",
            "Extraction with ONNX encoders, beside a loop written by hand",
            "encoders.py",
            "encoders.py",
            lacks="needs two ONNX models: run benchmarks/encoders.py with those of examples/encoders",
        ),
        Benchmark(
            "duplicates",
            "The search for copies",
            "duplicates.py --records 20000 100000",
            "duplicates.py",
        ),
        Benchmark(
            "redaction",
            "What of private values in texts is found",
            "redaction.py --texts 2000",
            "redaction.py",
            ("presidio_analyzer", "phonenumbers", "stdnum"),
        ),
        Benchmark(
            "fit",
            "The fit, beside other methods",
            "fit.py peers --records 5000 --dims 256 128",
            "fit.py peers",
            ("sklearn",),
        ),
        Benchmark(
            "fit by Beam",
            "The fit, through its pipeline",
            "fit.py beam {folder} --records 20000 100000 --dims 256 128",
            "fit.py beam {folder}",
        ),
        Benchmark("maps", "Retrieval by maps, beside other methods", "maps.py digits", "maps.py digits", ("sklearn",)),
        Benchmark(
            "index",
            "An index, beside the one that autofaiss chooses",
            f"{index} --rows 100000",
            index,
            lacks="" if autofaiss else "needs the interpreter of another environment: --autofaiss PYTHON",
        ),
        Benchmark(
            "reader",
            "Reading for training, beside other readers",
            f"reader.py --rows 50000{with_peers}",
            f"reader.py{with_peers}",
        ),
        Benchmark(
            "search", "Searching, and the server under load", "search.py --records 20000 --seconds 5", "search.py"
        ),
    ]


def machine() -> dict[str, str]:
    """What figures depend on; nothing that says whose machine it is."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "processor": cpu or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    for package in ("mmembed", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return []


def tables(text: str) -> list[list[Row]]:
    """The tables in what a benchmark printed, as rows by the names of their columns.

    Cells stand below each other, set left or right, with two blanks between columns. A table begins with a line of
    several cells, and ends before the line that would close the gaps between them.
    """
    found: list[list[Row]] = []
    lines = text.splitlines()
    while lines:
        count, size = len(re.findall(r"\S+(?: \S+)*", lines[0])), 1
        while count > 1 and lines[size : size + 1] > [""] and len(columns(lines[: size + 1])) == count:
            size += 1
        header, *rows = ([line[column].strip() for column in columns(lines[:size])] for line in lines[:size])
        if rows:
            found.append([dict(zip(header, row, strict=True)) for row in rows])
        del lines[:size]
    return found


def columns(lines: Sequence[str]) -> list[slice]:
    """Where the columns of some lines are: what two places that are blank in all of them stand between."""
    widest = max(map(len, lines))
    filled = "".join("x" if any(line[at : at + 1].strip() for line in lines) else " " for at in range(widest))
    return [slice(*match.span()) for match in re.finditer(r"x+(?: x+)*", filled)]


def run(benchmark: Benchmark, full: bool, places: Mapping[str, str]) -> dict[str, Any]:
    """The result of one benchmark."""
    words = benchmark.full if full else benchmark.words
    lacks = benchmark.lacks or ", ".join(
        f"needs the package {name}" for name in benchmark.packages if importlib.util.find_spec(name) is None
    )
    result: dict[str, Any] = {"name": benchmark.name, "what": benchmark.what}
    if lacks:
        return result | {"left_out": lacks}
    script, *arguments = words.split()
    command = [sys.executable, str(HERE / script), *(argument.format(**places) for argument in arguments)]
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, cwd=places["folder"]
        )
    except subprocess.TimeoutExpired:
        return result | {"left_out": f"took longer than {TIMEOUT} s"}
    result["command"] = f"python benchmarks/{words}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return result | {"left_out": f"failed: {without_places(last, places)}"}
    notes = [line for line in done.stderr.splitlines() if line.endswith("not installed")]
    text = without_places(done.stdout, places)
    seconds = round(time.monotonic() - start, 1)
    return result | {"seconds": seconds, "text": text, "tables": tables(text), "missing": sorted(set(notes))}


def without_places(text: str, places: Mapping[str, str]) -> str:
    """A text without paths of this machine."""
    for name, path in places.items():
        text = text.replace(path, f"{{{name}}}")
    return text.replace(str(HERE.parent), ".").replace(sys.prefix, "{environment}")


def results_page(results: Mapping[str, Any]) -> str:
    """A page of all results."""
    about = html_table(["", ""], [[html.escape(key), html.escape(value)] for key, value in results["machine"].items()])
    parts = [("Machine", f"<p class='soft'>{html.escape(results['date'])}</p>{about}")]
    parts += [(one["what"], section(one)) for one in results["benchmarks"]]
    return page("mmembed: benchmarks", f"<h1>mmembed: benchmarks</h1>{sections(parts)}")


def section(result: Mapping[str, Any]) -> str:
    """Of one benchmark."""
    command = f"<p class='small'><code>{html.escape(result['command'])}</code></p>" if "command" in result else ""
    if "left_out" in result:
        return f"{command}<p class='soft'>Left out: {html.escape(result['left_out'])}.</p>"
    notes = "".join(f"<p class='soft'>{html.escape(note)}</p>" for note in result["missing"])
    printed = f"<div class='scroll'><pre>{html.escape(result['text'].strip())}</pre></div>"
    return f"{command}{printed}{notes}<p class='soft small'>{result['seconds']:g} s</p>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--full", action="store_true", help="the sizes of docs/, which take hours")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--peer", action="append", default=[], metavar="PACKAGE=PYTHON", help="for the reader")
    parser.add_argument("--autofaiss", default="", metavar="PYTHON", help="the interpreter that has it")
    options = parser.parse_args()
    chosen = benchmarks(options.autofaiss, options.peer)
    if unknown := set(options.only) - {one.name for one in chosen}:
        parser.error(f"there is no benchmark {sorted(unknown)[0]!r}, but {', '.join(one.name for one in chosen)}")
    date = time.strftime("%Y-%m-%d")
    results: dict[str, Any] = {"date": date, "full": options.full, "machine": machine(), "benchmarks": []}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        sample = write_sample(Path(name) / "sample", FULL_SAMPLE if options.full else SAMPLE, 0)
        for benchmark in chosen:
            if options.only and benchmark.name not in options.only:
                continue
            with tempfile.TemporaryDirectory() as folder:
                places = {"sample": str(sample), "images": str(sample.parent / "images"), "folder": folder}
                result = run(benchmark, options.full, places)
            results["benchmarks"].append(result)
            print(f"{benchmark.name}: {result.get('left_out') or str(result['seconds']) + ' s'}", flush=True)
            # At once: of a run that is stopped, what was measured stays.
            (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
            (options.out / "index.html").write_text(results_page(results), "utf-8")
    print(f"{options.out / 'results.json'}, {options.out / 'index.html'}")


if __name__ == "__main__":
    main()
