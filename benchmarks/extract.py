"""What extraction costs, beside the same functions of this project in other engines: records a second and CPU seconds.

    python benchmarks/extract.py MANIFEST.jsonl image|text|audio [--limit 5000] [--workers 2] [--rounds 2] [--steps]

Each way takes paths or texts and leaves Parquet files of ids and features, made by the same decode, segment, normalize
and encode in batches of 64. The limit is a loop over `multiprocessing.Pool` written by hand, which does nothing else:
`mmembed extract` also hashes each medium, checks, can be resumed, and writes records and a manifest. The peers are
ray[data], daft and datasets (of Hugging Face); what the interpreter lacks is named and left out. Install mmembed beside
them as a user does: an editable one may be compiled anew by every process.

Wall and CPU seconds are those of the whole command with all its processes, start-up and imports included, the best of
rounds in which the ways take turns; "after start" is what the records beyond the first fifth cost more than that fifth
alone, which a way's start is not in. Only media of one segment are taken, at most --limit. `--steps` adds where the
time of one process goes. Not all CPU seconds of Ray are seen: its processes belong to none that ends with the command.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmembed.config import ExtractConfig, Parts
from mmembed.engine import ONE_THREAD
from mmembed.errors import RecordError
from mmembed.types import Media

BATCH, UNIT = 64, 256
SUBREAPER = 36  # of prctl: processes whose parent has ended become ours, and their time counts
ENVIRONMENT = ONE_THREAD | {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",  # as mmembed's own workers have them
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "HF_HUB_OFFLINE": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

Row = dict[str, str]


@cache
def parts(name: str) -> tuple[Any, Any]:
    """The modality and its encoder, ready, once a process."""
    modality, encoder = dict(Parts(ExtractConfig()))[name]
    encoder.setup()
    return modality, encoder


def media(name: str, value: str) -> Media:
    """Of a row."""
    return Media(content=value) if name == "text" else Media(path=value)


def features(name: str, values: Sequence[str]) -> NDArray[np.float32]:
    """Float32 (len(values), dim): what every way calls."""
    modality, encoder = parts(name)
    pieces = [piece for value in values for _, piece in modality.segment(modality.decode(media(name, value)))]
    return np.asarray(encoder.encode([modality.normalize(piece) for piece in pieces]))


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Rows, so many at once."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def ours(manifest: Path, name: str, out: Path, workers: int) -> None:
    """This project."""
    command = [sys.executable, "-m", "mmembed", "extract", str(manifest), str(out)]
    subprocess.run([*command, "--workers", str(workers), "--allow-outside"], check=True, stdout=subprocess.DEVNULL)


def _unit(task: tuple[int, Sequence[Row], str, Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, rows, name, out = task
    found = np.concatenate([features(name, [row[name] for row in some]) for some in batches(rows, BATCH)])
    column = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
    pq.write_table(pa.table({"id": [row["id"] for row in rows], "feature": column}), out / f"{number}.parquet")


def pool(manifest: Path, name: str, out: Path, workers: int) -> None:
    """The limit."""
    out.mkdir()
    tasks = [(number, rows, name, out) for number, rows in enumerate(batches(read(manifest), UNIT))]
    with multiprocessing.Pool(workers) as processes:
        for _ in processes.imap_unordered(_unit, tasks):
            pass


def ray_data(manifest: Path, name: str, out: Path, workers: int) -> None:
    """Ray Data."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def encoded(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "feature": features(name, list(batch[name]))}

    rows = read(manifest)
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // UNIT))
    data.map_batches(encoded, batch_size=BATCH).write_parquet(str(out))
    ray.shutdown()


def daft_frame(manifest: Path, name: str, out: Path, workers: int) -> None:
    """Daft."""
    import daft

    rows = read(manifest)
    dim = parts(name)[1].space.dim

    @daft.cls(max_concurrency=workers, use_process=True)
    class Encoded:
        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=daft.DataType.fixed_size_list(daft.DataType.float32(), dim), batch_size=BATCH
        )
        def features(self, values: Any) -> Any:
            return features(name, values.to_pylist())

    frame = daft.from_pydict({key: [row[key] for row in rows] for key in ("id", name)})
    frame.select(frame["id"], Encoded().features(frame[name]).alias("feature")).write_parquet(str(out))


def hugging_face(manifest: Path, name: str, out: Path, workers: int) -> None:
    """`datasets.map(num_proc)`."""
    import datasets

    datasets.disable_progress_bars()
    rows = read(manifest)
    dim = parts(name)[1].space.dim
    form = datasets.Features(
        {"id": datasets.Value("string"), "feature": datasets.List(datasets.Value("float32"), length=dim)}
    )

    def encoded(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "feature": features(name, batch[name])}

    out.mkdir()
    data = datasets.Dataset.from_list(rows)
    made = data.map(
        encoded,
        batched=True,
        batch_size=BATCH,
        num_proc=workers,
        remove_columns=[name],
        features=form,
        cache_file_name=str(out / "cache.arrow"),
    )
    made.to_parquet(out / "all.parquet")


WAYS: dict[str, tuple[str, Callable[[Path, str, Path, int], None]]] = {
    "multiprocessing.Pool": ("pyarrow", pool),
    "mmembed extract": ("mmembed", ours),
    "datasets.map": ("datasets", hugging_face),
    "Daft": ("daft", daft_frame),
    "Ray Data": ("ray", ray_data),
}


def read(manifest: Path) -> list[Row]:
    """Its rows."""
    return [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]


def one_segment(name: str, value: str) -> bool:
    """Whether a medium gives one segment."""
    modality, _ = parts(name)
    try:
        return sum(1 for _ in modality.segment(modality.decode(media(name, value)))) == 1
    except RecordError:
        return False


def prepared(manifest: Path, name: str, limit: int, folder: Path) -> Path:
    """A manifest of the records to use, with one modality and absolute paths."""
    lines = []
    for row in read(manifest):
        value: Any = row.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if value and name != "text":
            value = str((manifest.parent / value).resolve())
        if value and one_segment(name, value):
            lines.append(json.dumps({"id": row["id"], name: value}))
        if len(lines) == limit:
            break
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def measured(way: str, manifest: Path, name: str, workers: int) -> dict[str, float]:
    """Wall and CPU seconds of a way in processes of its own, and the rows that it left."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        # Imported, so that workers find what they call in a module of that name and not in their own main program.
        start_it = [sys.executable, "-c", f"import {Path(__file__).stem} as it; it.main()"]
        words = [*start_it, str(manifest), name, "--only", way, "--out", str(out), "--workers", str(workers)]
        here = str(Path(__file__).resolve().parent)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": here}
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL, env=environment)
        wall = time.monotonic() - start
        with suppress(ChildProcessError):  # until there are none
            while True:
                os.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"wall": wall, "cpu": cpu, "rows": rows_of(out, name)}


def rows_of(out: Path, name: str) -> int:
    """Rows of the Parquet files that hold features."""
    import pyarrow.parquet as pq

    folder = out / "features" / name
    paths = (folder if folder.is_dir() else out).rglob("*.parquet")
    return sum(pq.read_metadata(path).num_rows for path in paths)


def steps(manifest: Path, name: str) -> dict[str, float]:
    """CPU seconds of each step of one process, in the order of the way of a medium."""
    import pyarrow as pa

    from mmembed.shards import write_table

    modality, encoder = parts(name)
    found: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.process_time()
        yield
        found[step] = found.get(step, 0.0) + time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(batches(read(manifest), UNIT)):
            made = []
            for some in batches(rows, BATCH):
                given = [media(name, row[name]) for row in some]
                with timed("hash"):
                    _ = [medium.content_hash for medium in given]
                with timed("decode"):
                    pieces = [piece for one in given for _, piece in modality.segment(modality.decode(one))]
                with timed("normalize (resize, level)"):
                    normal = [modality.normalize(piece) for piece in pieces]
                with timed("features"):
                    made.append(encoder.encode(normal))
            with timed("write"):
                vectors = np.concatenate(made)
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
                table = pa.table({"id": [row["id"] for row in rows], "feature": column})
                write_table(Path(folder) / f"{number}.parquet", table, {})
    return found


def main() -> None:
    """Print a row for each way, and with --steps one for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("modality", choices=["image", "text", "audio"])
    parser.add_argument("--limit", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        WAYS[options.only][1](options.manifest, options.modality, options.out, options.workers)
        return
    from mmembed.report import table

    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepared(options.manifest, options.modality, options.limit, Path(folder))
        count = len(read(manifest))
        few = Path(folder) / "few.jsonl"
        few.write_text("".join(manifest.read_text("utf-8").splitlines(True)[: count // 5]), "utf-8")
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for way, (package, _) in WAYS.items():
                if importlib.util.find_spec(package) is None:
                    print(f"{way}: not installed", file=sys.stderr)
                    continue
                short, long = (measured(way, it, options.modality, options.workers) for it in (few, manifest))
                runs.setdefault(way, []).append(long | {f"short {key}": short[key] for key in ("wall", "cpu")})
                print(way, runs[way][-1], file=sys.stderr, flush=True)
        best = {way: {key: min(run[key] for run in of_way) for key in of_way[0]} for way, of_way in runs.items()}
        for one in best.values():
            one |= {f"later {key}": one[key] - one[f"short {key}"] for key in ("wall", "cpu")}
        limit = best["multiprocessing.Pool"]
        print(f"{count:,} records, {options.workers} workers; in brackets the Pool's seconds over those of the way")
        rows = [
            [
                way,
                f"{one['rows']:,.0f}",
                f"{count / one['wall']:,.0f}",
                *(
                    f"{one[key]:.1f} ({limit[key] / one[key]:.2f})"
                    for key in ("wall", "cpu", "later wall", "later cpu")
                ),
            ]
            for way, one in best.items()
        ]
        print(table(["way", "rows", "records/s", "wall s", "CPU s", "wall after start", "CPU after start"], rows))
        if options.steps:
            found = steps(manifest, options.modality)
            total = sum(found.values())
            lines = [[step, f"{1e3 * cost / count:.3f}", f"{cost / total:.0%}"] for step, cost in found.items()]
            print(table(["step", "ms a record", "share"], lines))


if __name__ == "__main__":
    main()
