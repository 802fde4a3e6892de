from __future__ import annotations

from pathlib import Path

import pytest
from html_page import HOSTILE, read

from benchmarks.all import Benchmark, benchmarks, machine, results_page, run, tables, without_places
from benchmarks.scale import Cost, Look, costs_of, ratio
from mmembed.evaluate import columns
from mmembed.report import table

HEADER = ["way", "CPU s", "after start"]
ROWS = [["mmembed extract", "1.5", ""], ["the Pool", "12.0", "3.1 (0.5)"]]


@pytest.mark.parametrize("form", [table, columns])
def test_a_printed_table_is_read_back(form: object) -> None:
    """Whether its cells are set left or right, and whatever stands around it."""
    assert callable(form)
    text = (
        f"5 pictures\n{form(HEADER, ROWS)}\nin brackets what the Pool took, which is the limit\n\n{form(HEADER, ROWS)}"
    )
    assert tables(text) == [[dict(zip(HEADER, row, strict=True)) for row in ROWS]] * 2


@pytest.mark.parametrize("text", ["", "\n\n", "a line\nof words", "one  two\n\nthree  four"])
def test_what_is_no_table(text: str) -> None:
    assert tables(text) == []


def test_what_is_lacking_is_named(tmp_path: Path) -> None:
    places = {"sample": "none", "images": "none", "folder": str(tmp_path)}
    lacking = Benchmark("a", "A", "none.py", "none.py", packages=("no_such_package",))
    assert run(lacking, False, places)["left_out"] == "needs the package no_such_package"
    assert "lacks" not in run(Benchmark("a", "A", "none.py", "none.py", lacks="needs time"), False, places)
    assert run(Benchmark("a", "A", "no_such_script.py", ""), False, places)["left_out"].startswith("failed: ")


def test_a_benchmark_is_run_and_shown(tmp_path: Path) -> None:
    places = {"sample": "none", "images": "none", "folder": str(tmp_path)}
    costs = Benchmark("cost", "What it costs", "cloud_cost.py --rate pictures=36", "")
    result = run(costs, False, places)
    assert "n2-standard-8" in result["text"]
    assert result["command"] == "python benchmarks/cloud_cost.py --rate pictures=36"
    left_out = {"name": "x", "what": HOSTILE[0], "left_out": HOSTILE[1]}
    shown = read(results_page({"date": "2026-01-01", "machine": machine(), "benchmarks": [result, left_out]}))
    assert "n2-standard-8" in shown.text


def test_nothing_says_whose_machine_it_is() -> None:
    root = Path(__file__).resolve().parents[1]
    assert without_places(f"{root}/a /x/y.jsonl", {"sample": "/x/y.jsonl"}) == "./a {sample}"
    import platform

    assert platform.node() not in "".join(machine().values())


def test_every_script_is_run_or_left_out_on_purpose() -> None:
    """cloud_cost.py measures nothing."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    run_here = {benchmark.words.split()[0] for benchmark in benchmarks()}
    assert {path.name for path in folder.glob("*.py")} - run_here == {"all.py", "cloud_cost.py"}


def test_seconds_and_memory_go_to_the_stage_at_work() -> None:
    looks = [Look(1, 0.5, 10, 7, 0), Look(2, 1.5, 30, 5, 40), Look(3, 4, 20, 9, 0), Look(9, 5, 1, 1, 1)]
    lines = [(1.0, "extract: 1 of 2 records"), (2.0, "extract: done"), (3.0, "fit: done")]
    costs = costs_of(0, 10, lines, looks)
    assert costs["extract"] == Cost(2, 1.5, 30, 7, 40)
    assert costs["fit"] == Cost(1, 2.5, 30, 9, 40)  # a look at the very moment counts for both
    assert costs["project"].wall == 0
    assert costs["evaluate"] == Cost(7, 1, 20, 9, 1)
    assert costs["all"] == Cost(10, 5, 30, 9, 40)
    assert ratio(4.0, 2.0) == "2.00"
    assert ratio(4.0, 0.0) == ""
