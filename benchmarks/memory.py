"""Peak memory of any process of `mmembed build`, for growing numbers of sample records.

    python benchmarks/memory.py FOLDER [--records 1000 10000]

Memory is bounded by the batch, not by the data, when the column "MB" hardly grows.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from mmembed.report import table
from mmembed.sample import write_sample


def measure(folder: Path, records: int, stage: str) -> tuple[float, float]:
    """Seconds, and the largest resident set in MB among the command's own process and its workers."""
    manifest = write_sample(folder / f"sample-{records}", records, 0)
    command = [sys.executable, "-m", "mmembed", stage, str(manifest), str(folder / f"{stage}-{records}")]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Print a table, a row for each stage and number of records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 10000])
    options = parser.parse_args()
    rows = []
    for stage in ("extract", "build"):
        for records in options.records:
            seconds, megabytes = measure(options.folder, records, stage)
            rows.append([stage, f"{records:,}", f"{seconds:.0f}", f"{megabytes:.0f}"])
    print(table(["command", "records", "seconds", "MB"], rows))


if __name__ == "__main__":
    main()
