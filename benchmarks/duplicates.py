"""Time and peak memory of the search for duplicates, for growing numbers of records that have a picture and a text.

    python benchmarks/duplicates.py [--records 100000 1000000]

Signatures are drawn at random. In each block of records, 5 in 100 are exact copies of others, 5 in 100 near ones, and
10 in 100 share one picture, or one caption. Each row is measured in a process of its own; "table MB" is what that held
before the search began, its modules and the table of media included.
"""

import argparse
import os
import subprocess
import sys
import time
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pyarrow as pa

from mmembed import duplicates
from mmembed.report import table

_BLOCK = 50_000  # records of a chunk of the table, as one is for each file that is read
_IMAGE, _TEXT = 56, 256  # bytes of a signature


def media(records: int) -> pa.Table:
    """A picture and a text of each record: record, modality, content_hash, signature."""
    return pa.concat_tables(_block(start, min(_BLOCK, records - start)) for start in range(0, records, _BLOCK))


def _block(start: int, count: int) -> pa.Table:
    random = np.random.default_rng(start)
    data = random.integers(0, 256, (count, _IMAGE + _TEXT), np.uint8)
    hashes = random.integers(0, 256, (count, 2, 16), np.uint8)
    part = count // 20
    data[:part], hashes[:part] = data[-part:], hashes[-part:]
    data[part : 2 * part] = data[-2 * part : -part]
    data[part : 2 * part, 0] ^= 0b101  # 2 of 64 bits
    data[2 * part : 4 * part, :_IMAGE] = np.arange(_IMAGE)
    data[4 * part : 6 * part, _IMAGE:] = np.arange(_TEXT)
    offsets = np.concatenate([[0], np.cumsum(np.tile([_IMAGE, _TEXT], count))]).astype(np.int32)
    signed = pa.Array.from_buffers(pa.binary(), 2 * count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return pa.table(
        {
            "record": np.repeat(np.arange(start, start + count), 2),
            "modality": pa.array(["image", "text"] * count),
            "content_hash": pa.array([value.tobytes().hex() for value in hashes.reshape(-1, 16)]),
            "signature": signed,
        }
    )


def measure(records: int, mode: str) -> None:
    """Print a row: seconds, MB before, MB at most, duplicates found."""
    given = media(records)
    before = getrusage(RUSAGE_SELF).ru_maxrss / 1024
    start = time.monotonic()
    found = duplicates.exact(given) if mode == "exact" else duplicates.near(given)
    seconds = time.monotonic() - start
    peak = getrusage(RUSAGE_SELF).ru_maxrss / 1024
    print(f"{mode}\t{records:,}\t{seconds:.1f}\t{before:.0f}\t{peak:.0f}\t{len(found):,}")


def main() -> None:
    """Print a table, a row for each mode and number of records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--mode", choices=["exact", "near"], help="measure one row in this process")
    options = parser.parse_args()
    if options.mode:
        for records in options.records:
            measure(records, options.mode)
        return
    rows = []
    for mode in ("exact", "near"):
        for records in options.records:
            command = [sys.executable, __file__, "--mode", mode, "--records", str(records)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            rows.append(output.strip().split("\t"))
    print(table(["mode", "records", "seconds", "table MB", "peak MB", "duplicates"], rows))


if __name__ == "__main__":
    main()
