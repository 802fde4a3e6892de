from __future__ import annotations

import pytest

from benchmarks.cloud_cost import Job, Machine, table

MACHINE = Machine("one", 2, 8)


def test_what_a_job_costs() -> None:
    """36 million records at 10 a second: 1,000 core hours, by 10 workers of two vCPUs in 50 hours."""
    job = Job(records=36e6, rate=10, hours=50, unit=1000, objects=1)
    assert job.workers(MACHINE) == 10
    assert job.worker_hours(MACHINE) == pytest.approx(500 + 10 * 4 / 60)
    assert MACHINE.dollars == pytest.approx(2 * 0.056 + 8 * 0.003557 + 25 * 0.000054)
    assert job.around == pytest.approx(36_000 * 6 * 0.005 / 1000 + 36e6 * 0.0004 / 1000 + 36_000 * 500e-9 * 0.011)
    assert job.dollars(MACHINE) == pytest.approx(job.worker_hours(MACHINE) * MACHINE.dollars + job.around)


def test_a_row_for_each_machine() -> None:
    rows = table("pictures", Job(1e6, 10, 24, 256, 0)).splitlines()
    assert (
        rows[0] == "pictures: 1,000,000 records at 10 a second of a vCPU, within 24 hours; requests and shuffle $0.12"
    )
    assert [row.split(" | ")[0] for row in rows[4:6]] == ["| n1-standard-1", "| e2-standard-4"]
