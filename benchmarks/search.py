"""What a search costs beside the bare index, a first query from the shell, and how many text queries a server answers.

    python benchmarks/search.py [FOLDER] [--records 100000] [--memory 4MB] [--rate 200] [--seconds 30]

Builds a data set of short texts, of which a thousand have a picture, in FOLDER (again at the next run, if it is there).
The load comes open-loop: at random moments, whether earlier requests are answered or not, so that a slow server can't
slow it down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import faiss
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from mmembed import kinds
from mmembed.evaluate import columns
from mmembed.index import Index, query_rows
from mmembed.search import Query, Searcher

WORDS = """
red blue green yellow small large old new round square wooden stone bird house tree river boat horse winter summer
morning night two three many in on under beside behind a the with without market bridge garden mountain child woman man
""".split()  # noqa: SIM905
PICTURES = 1000
ASKED = 400


def text(chance: random.Random) -> str:
    """A caption of 3 to 9 words."""
    return " ".join(chance.choices(WORDS, k=chance.randint(3, 9)))


def build(folder: Path, records: int, memory: str) -> Path:
    """A data set of so many records, with indexes of a size; the folder of its output."""
    data, chance = folder / "data", random.Random(0)
    data.mkdir(parents=True, exist_ok=True)
    with (data / "manifest.jsonl").open("w") as file:
        for number in range(records):
            record: dict[str, Any] = {"id": f"r{number}", "text": text(chance), "year": 1900 + number % 120}
            if number < PICTURES:
                colour = [sum(map(ord, word)) * 37 % 256 for word in record["text"].split()[:3]]
                Image.new("RGB", (32, 32), tuple(colour)).save(data / f"{number}.png")
                record["image"] = f"{number}.png"
            file.write(json.dumps(record) + "\n")
    words = [sys.executable, "-m", "mmembed", "build", str(data / "manifest.jsonl"), str(folder / "out")]
    words += ["--unit-records", "1024", "--dim", "128", "--memory", memory]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder / "out"


def bare_search(index: Index) -> Callable[[NDArray[np.float32]], object]:
    """What FAISS alone does for the same answers: where the index is compressed, it compares as many candidates with
    the rows themselves."""
    point, found, radius = index.entry["search"], index.faiss, index.entry["radius"]
    if index.vectors is None or index.kind.gives_scores(radius):
        return lambda query: kinds.candidates(found, index.kind, query, 10, point, radius)
    library: Any = faiss  # its type stubs lack keyword arguments
    rows = library.IndexFlatIP(index.vectors.shape[1])
    rows.add(index.vectors)
    refined = library.IndexRefine(found, rows)
    parameters = kinds.parameters_of(found, index.kind, 10 * point["refine"], point)
    asked = library.IndexRefineSearchParameters(k_factor=point["refine"], base_index_params=parameters)
    return lambda query: refined.search(query, 10, params=asked)


def overhead(out: Path) -> list[list[str]]:
    """Milliseconds of a text query, the median: encoding, the bare FAISS search, both, and through a Searcher."""
    chance, searcher = random.Random(1), Searcher.open(out)
    queries = [text(chance) for _ in range(ASKED)]
    index = searcher.index("text")
    vectors = [searcher.embed(Query.of(text=query)) for query in queries]
    rows = [query_rows(one.vector[np.newaxis], one.shares, index.columns) for one in vectors]
    bare = bare_search(index)
    spent = np.empty((3, ASKED))
    for place, query in enumerate(queries):
        start = time.perf_counter()
        searcher.embed(Query.of(text=query))
        encoded = time.perf_counter()
        bare(rows[place])
        found = time.perf_counter()
        searcher.search(text=query, to="text", k=10)
        spent[:, place] = encoded - start, found - encoded, time.perf_counter() - found
    encoding, bare, whole = np.median(1000 * spent, axis=1)
    ratio = float(np.median(spent[2] / (spent[0] + spent[1])))
    figures = [f"{value:.3f}" for value in (encoding, bare, encoding + bare, whole)]
    return [[index.entry["kind"], f"{len(index):,}", *figures, f"{ratio:.2f}"]]


def shell(out: Path) -> float:
    """Seconds of a text query from the shell, the median of five: all of Python's start included."""
    words = [sys.executable, "-m", "mmembed", "query", str(out), "--text", "a red bird", "--to", "text"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


async def load(port: int, rate: float, seconds: float) -> list[float]:
    """Seconds from the moment that each request was due to its answer."""
    chance, idle, spent = random.Random(2), asyncio.Queue[Any](), []

    async def ask(due: float) -> None:
        pair = await asyncio.open_connection("127.0.0.1", port) if idle.empty() else idle.get_nowait()
        path = f"/api/search?text={quote(text(chance))}&to=text&k=10"
        pair[1].write(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        head = (await pair[0].readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.splitlines()[0]:
            raise SystemExit(f"the server answered {head.splitlines()[0].decode()}")
        size = next(line for line in head.splitlines() if line.startswith(b"content-length"))
        await pair[0].readexactly(int(size.split(b":")[1]))
        spent.append(time.perf_counter() - due)
        idle.put_nowait(pair)

    start = due = time.perf_counter()
    tasks = []
    while due < start + seconds:
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*tasks)
    return spent


def serve(out: Path, rate: float, seconds: float) -> list[str]:
    """Requests a second that were answered, and milliseconds of them: median, 90 %, 99 %, most."""
    words = [sys.executable, "-m", "mmembed", "serve", str(out), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split("/")[2].split(":")[1])
        try:
            asyncio.run(load(port, rate / 4, 3))  # threads and connections that are there from then on
            start = time.perf_counter()
            spent = asyncio.run(load(port, rate, seconds))
            done = len(spent) / (time.perf_counter() - start)
        finally:
            process.terminate()
    values = [1000 * value for value in np.percentile(spent, [50, 90, 99, 100])]
    return [f"{rate:g}", f"{done:.0f}", *(f"{value:.1f}" for value in values)]


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--memory", default="", help="of the indexes, as of mmembed index")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = build(options.folder or Path(name), options.records, options.memory)
        with threadpool_limits(1):
            faiss.omp_set_num_threads(1)
            print(columns(["index", "rows", "encode ms", "FAISS ms", "both", "Searcher", "ratio"], overhead(out)))
        print(f"\na first text query from the shell: {shell(out):.2f} s\n")
        header = ["asked a second", "answered", "p50 ms", "p90", "p99", "most"]
        print(columns(header, [serve(out, options.rate, options.seconds)]))


if __name__ == "__main__":
    main()
