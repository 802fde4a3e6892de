"""What a pass over many records costs on Dataflow, by machine type, from rates that were measured.

    python benchmarks/cloud_cost.py --rate pictures=37 --rate texts=3500 [--records 1e9] [--hours 24]
    python benchmarks/cloud_cost.py --rates FILE.json        # {"pictures": 37, …}: records a second of one core

A rate is of one process of one thread: Dataflow starts one a vCPU. A vCPU is a thread of a core, of which two share it:
measure on the machine type itself, or say with --vcpu what part of your core one is.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

# List prices of Google's in US dollars, of batch workers in us-central1, as known in 2025. They change, and differ by
# region: check cloud.google.com/dataflow/pricing and cloud.google.com/storage/pricing before you rely on a figure.
VCPU_HOUR = 0.056
GB_HOUR = 0.003557
DISK_GB_HOUR = 0.000054
SHUFFLED_GB = 0.011
WRITE_REQUEST = 0.005 / 1000  # Cloud Storage, class A
READ_REQUEST = 0.0004 / 1000  # class B
FLEXRS = 0.6  # of the prices of vCPUs and memory, for a job that may begin hours later

DISK_GB = 25  # of a worker, where shuffles don't use it
START_MINUTES = 4  # of a worker, until its first element: the machine, the image, the imports
UNIT_FILES = 6  # which a unit writes: features of three modalities, records, errors, stamps
UNIT_SHUFFLED_BYTES = 500


@dataclass(frozen=True)
class Machine:
    """A machine type: its name, vCPUs and memory in GB."""

    name: str
    vcpus: int
    gigabytes: float

    @property
    def dollars(self) -> float:
        """Of an hour as a worker of Dataflow."""
        return self.vcpus * VCPU_HOUR + self.gigabytes * GB_HOUR + DISK_GB * DISK_GB_HOUR


MACHINES = (
    Machine("n1-standard-1", 1, 3.75),
    Machine("e2-standard-4", 4, 16),
    Machine("n2-highcpu-8", 8, 8),
    Machine("n2-standard-8", 8, 32),
    Machine("n2-highmem-8", 8, 64),
    Machine("n2-standard-32", 32, 128),
)


@dataclass(frozen=True)
class Job:
    """A pass over records.

    Attributes:
        rate: records a second of one vCPU.
        hours: that it may take, if there are enough workers.
        unit: records of one unit.
        objects: objects of the bucket that one record reads, 0 for archives and tables.
    """

    records: float
    rate: float
    hours: float
    unit: int
    objects: float

    def workers(self, machine: Machine) -> int:
        """How many there must be."""
        return math.ceil(self.records / (self.rate * machine.vcpus * 3600 * self.hours))

    def worker_hours(self, machine: Machine) -> float:
        """Of all workers together, with what their start takes."""
        return self.records / (self.rate * machine.vcpus * 3600) + self.workers(machine) * START_MINUTES / 60

    @property
    def around(self) -> float:
        """Dollars for all but workers: requests to the bucket, and the shuffle."""
        units = self.records / self.unit
        requests = units * UNIT_FILES * WRITE_REQUEST + self.records * self.objects * READ_REQUEST
        return requests + units * UNIT_SHUFFLED_BYTES / 1e9 * SHUFFLED_GB

    def dollars(self, machine: Machine) -> float:
        """Of all together."""
        return self.worker_hours(machine) * machine.dollars + self.around


def table(title: str, job: Job) -> str:
    """The costs by machine type, as Markdown."""
    lines = [
        f"{title}: {job.records:,.0f} records at {job.rate:g} a second of a vCPU, within {job.hours:g} hours; "
        f"requests and shuffle ${job.around:,.2f}",
        "",
        "| machine | $ an hour | workers | worker hours | $ in all | $ a million records | $ with FlexRS |",
        "|---|---|---|---|---|---|---|",
    ]
    for machine in MACHINES:
        total = job.dollars(machine)
        flexible = (total - job.around) * FLEXRS + job.around
        lines.append(
            f"| {machine.name} | {machine.dollars:.3f} | {job.workers(machine):,} | {job.worker_hours(machine):,.1f} | "
            f"{total:,.2f} | {total / job.records * 1e6:.3g} | {flexible:,.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=RECORDS", help="a second of one core")
    parser.add_argument("--rates", type=Path, metavar="FILE.json", help="the same as an object")
    parser.add_argument("--records", type=float, default=1e9)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--unit-records", type=int, default=256)
    parser.add_argument("--objects", type=float, default=1, help="of the bucket that a record reads; 0: archives")
    parser.add_argument("--vcpu", type=float, default=1, help="what part of the measured core a vCPU is")
    options = parser.parse_args()
    rates = json.loads(options.rates.read_text("utf-8")) if options.rates else {}
    rates |= {name: float(rate) for name, _, rate in (text.partition("=") for text in options.rate)}
    if not rates:
        parser.error("--rate or --rates must say what was measured")
    for name, rate in rates.items():
        job = Job(options.records, rate * options.vcpu, options.hours, options.unit_records, options.objects)
        print(table(name, job), end="\n\n")


if __name__ == "__main__":
    main()
