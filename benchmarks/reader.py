"""What reading shuffled embeddings costs, beside the tools that people use: samples a second, time to the first batch,
memory.

    python benchmarks/reader.py [FOLDER] [--rows 500000] [--dim 512] [--unit 8192] [--peer NAME=PYTHON …]

Makes a data set in FOLDER (again at the next run, if it is there), and for peers that need a format of their own a copy
in it. Each reader runs in a process of its own, one after the other: `--peer webdataset=venv/bin/python` names the
interpreter that has it; those that none has are left out.

An epoch gives all rows in batches of 256 as float32 arrays of numpy. `first` is the first epoch, with all that comes
before it but imports and the conversion; `later` the best of two more, which some readers give from memory and some
from files again. Memory is what the system can't take back: anonymous and shared, without cached files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
EPOCHS = 3
SEED = 0
BUFFER = 10_000
"""Samples in the buffer of readers that shuffle with one."""

Epochs = Callable[[], Iterator[Any]]


def files(folder: Path) -> list[str]:
    """The Parquet files of the embeddings."""
    return sorted(map(str, (folder / "out/embeddings/image").glob("*.parquet")))


def matrix(column: Any) -> np.ndarray[Any, Any]:
    """An Arrow array of fixed-size lists as an array of numpy, without a copy."""
    return np.asarray(column.flatten()).reshape(len(column), -1)


def mmembed_shuffled(folder: Path) -> Epochs:
    """This project, shuffled over all samples."""
    from mmembed.reader import open_dataset

    ds = open_dataset(folder / "out", "image", shuffle=True, seed=SEED, batch_size=BATCH)
    return lambda: (batch["image.embedding"] for batch in ds)


def mmembed_in_order(folder: Path) -> Epochs:
    """This project, in the order of the files."""
    from mmembed.reader import open_dataset

    ds = open_dataset(folder / "out", "image", batch_size=BATCH)
    return lambda: (batch["image.embedding"] for batch in ds)


def pyarrow_in_order(folder: Path) -> Epochs:
    """The bare sequential scan."""
    import pyarrow.dataset

    ds = pyarrow.dataset.dataset(files(folder))
    return lambda: (matrix(b["embedding"]) for b in ds.to_batches(columns=["embedding"], batch_size=BATCH))


def pyarrow_shuffled(folder: Path) -> Epochs:
    """The table in memory, and rows of it by a random permutation."""
    import pyarrow.dataset

    column = pyarrow.dataset.dataset(files(folder)).to_table(columns=["embedding"])["embedding"].combine_chunks()
    random = np.random.default_rng(SEED)

    def epoch() -> Iterator[Any]:
        order = random.permutation(len(column))
        return (matrix(column.take(order[start : start + BATCH])) for start in range(0, len(column), BATCH))

    return epoch


def datasets_shuffled(folder: Path) -> Epochs:
    """Hugging Face datasets: its Arrow file mapped into memory, with a permutation of the rows."""
    import datasets

    datasets.disable_progress_bars()
    ds = datasets.load_dataset("parquet", data_files=files(folder), split="train", cache_dir=str(folder / "datasets"))
    ds = ds.select_columns(["embedding"]).with_format("numpy")
    seeds = iter(range(SEED, 1000))
    return lambda: (batch["embedding"] for batch in ds.shuffle(seed=next(seeds)).iter(BATCH))


def webdataset_shuffled(folder: Path) -> Epochs:
    """WebDataset: tar files in random order, and a buffer."""
    import webdataset

    paths = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    ds = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=SEED).shuffle(BUFFER)
    ds = ds.decode().to_tuple("npy").batched(BATCH)
    return lambda: (batch for (batch,) in ds)


def convert_webdataset(folder: Path) -> None:
    """One member a row, 8,192 of them in a tar file."""
    import pyarrow.parquet as pq
    import webdataset

    with webdataset.ShardWriter(str(folder / "webdataset/%05d.tar"), maxcount=8192, verbose=0) as writer:
        for path in files(folder):
            table = pq.read_table(path, columns=["id", "embedding"])
            for id, row in zip(table["id"].to_pylist(), matrix(table["embedding"].combine_chunks())):
                writer.write({"__key__": id, "npy": row})


def streaming_shuffled(folder: Path) -> Epochs:
    """MosaicML Streaming, with its default way to shuffle, and batches by PyTorch's DataLoader."""
    import streaming
    import torch

    streaming.base.util.clean_stale_shared_memory()
    local = str(folder / "streaming")
    ds = streaming.StreamingDataset(local=local, shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(ds, batch_size=BATCH)
    return lambda: (batch["embedding"].numpy() for batch in loader)


def convert_streaming(folder: Path) -> None:
    """Its own format, without compression."""
    import pyarrow.parquet as pq
    import streaming

    dim = matrix(pq.read_table(files(folder)[0], columns=["embedding"])["embedding"].chunk(0)).shape[1]
    with streaming.MDSWriter(out=str(folder / "streaming"), columns={"embedding": f"ndarray:float32:{dim}"}) as writer:
        for path in files(folder):
            for row in matrix(pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()):
                writer.write({"embedding": row})


def grain_shuffled(folder: Path) -> Epochs:
    """Grain: the table in memory as its source, shuffled over all, rows put together to batches by it."""
    import grain
    import pyarrow.dataset

    column = pyarrow.dataset.dataset(files(folder)).to_table(columns=["embedding"])["embedding"].combine_chunks()
    rows = matrix(column)
    seeds = iter(range(SEED, 1000))
    return lambda: iter(grain.MapDataset.source(rows).seed(next(seeds)).shuffle().batch(BATCH).to_iter_dataset())


READERS: dict[str, tuple[str, str, Callable[[Path], Epochs]]] = {
    "mmembed": ("mmembed", "all samples", mmembed_shuffled),
    "mmembed in order": ("mmembed", "none", mmembed_in_order),
    "pyarrow in order": ("pyarrow", "none", pyarrow_in_order),
    "pyarrow": ("pyarrow", "all samples", pyarrow_shuffled),
    "datasets": ("datasets", "all samples", datasets_shuffled),
    "grain": ("grain", "all samples", grain_shuffled),
    "streaming": ("streaming", "blocks of shards", streaming_shuffled),
    "webdataset": ("webdataset", "shards, buffer", webdataset_shuffled),
}
"""By name, the package that is needed, over what it shuffles, and how its epochs begin."""

CONVERT = {"streaming": convert_streaming, "webdataset": convert_webdataset}


def memory() -> float:
    """Megabytes of this process that can't be taken back."""
    found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return sum(map(int, found)) / 1024


def measure(name: str, folder: Path) -> dict[str, float]:
    """One reader's figures, in this process."""
    package, _, opening = READERS[name]
    importlib.import_module("mmembed.reader" if package == "mmembed" else package)
    start = time.perf_counter()
    if name in CONVERT and not (folder / name).exists():
        (folder / name).mkdir()
        CONVERT[name](folder)
    converted = time.perf_counter() - start
    before, peak, ends = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not ends.wait(0.02):
            peak[0] = max(peak[0], memory() - before)

    threading.Thread(target=watch, daemon=True).start()
    start, times, first, rows = time.perf_counter(), [], 0.0, 0
    epochs = opening(folder)
    for _ in range(EPOCHS):
        rows = 0
        for batch in epochs():
            rows += len(batch)
            first = first or time.perf_counter() - start
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    ends.set()
    return {
        "converted": converted,
        "first batch": first,
        "first": rows / times[0],
        "later": rows / min(times[1:]),
        "memory": peak[0],
        "rows": rows,
    }


def make(folder: Path, rows: int, dim: int, unit: int) -> None:
    """A data set of random unit vectors, as the stage project leaves it."""
    import pyarrow as pa

    from mmembed.dataset import Dataset, Stage, describe
    from mmembed.shards import shard_path, write_table
    from mmembed.splits import TRAIN
    from mmembed.tables import embeddings_schema, vectors_to_arrow

    out, random, known = folder / "out", np.random.default_rng(SEED), {}
    schema = embeddings_schema(dim, "float32", {})
    for number, start in enumerate(range(0, rows, unit)):
        count = min(unit, rows - start)
        vectors = random.normal(size=(count, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [f"r{row}" for row in range(start, start + count)]
        columns = [ids, [0] * count, [[0.0, 0.0, 64.0, 64.0]] * count, [f"{id}.jpg" for id in ids], [TRAIN] * count]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema)]
        table = pa.table([*arrays, vectors_to_arrow(vectors, schema.field("embedding").type)], schema=schema)
        path = shard_path("embeddings/image", number)
        write_table(out / path, table, {})
        known[path] = describe(out, path, count)
    space = {"name": "benchmark", "version": "1", "dim": dim}
    summary = {"folders": ["embeddings"], "spaces": {"image": space}, "dtype": "float32", "kinds": {}}
    Dataset(out).commit("project", Stage("made by a benchmark", summary), known, "made by a benchmark")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--unit", type=int, default=8192, help="rows of a Parquet file")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON, the interpreter that has a peer")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "out/dataset.json").exists():
            make(folder, options.rows, options.dim, options.unit)
        report(folder, dict(peer.split("=", 1) for peer in options.peer))


def report(folder: Path, interpreters: dict[str, str]) -> None:
    """Measure all readers that are there, and print a table."""
    from mmembed.evaluate import columns

    found = {}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    for name, (package, _, _) in READERS.items():
        if package not in interpreters and importlib.util.find_spec(package) is None:
            print(f"{name}: not installed", file=sys.stderr)
            continue
        words = [interpreters.get(package, sys.executable), __file__, str(folder), "--only", name]
        result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[name] = json.loads(result.stdout.splitlines()[-1])
    bare = found.get("pyarrow in order", {"first": float("nan"), "later": float("nan")})
    rows = [
        [
            name,
            READERS[name][1],
            f"{one['converted']:.0f}",
            f"{one['first batch']:.2f}",
            *(f"{one[epoch]:,.0f} ({one[epoch] / bare[epoch]:.2f})" for epoch in ("first", "later")),
            f"{one['memory']:,.0f}",
        ]
        for name, one in found.items()
    ]
    header = ["reader", "shuffles", "converted s", "first batch s", "first /s", "later /s", "MB"]
    print(columns(header, rows))
    print("in brackets the ratio to the bare scan in order")
    if len({one["rows"] for one in found.values()}) > 1:
        print("rows of an epoch:", {name: int(one["rows"]) for name, one in found.items()})


if __name__ == "__main__":
    main()
