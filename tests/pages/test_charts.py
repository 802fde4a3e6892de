"""Charts as SVG."""

from __future__ import annotations

import html_page
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed.pages.charts import SIZE, Axis, Guide, Series, chart, interval

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def numbers(path: str) -> list[float]:
    return [float(word) for word in path.translate(str.maketrans("MLHVhvlaz", " " * 9)).split()]


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=20), st.booleans())
def test_any_points_lie_within_the_drawing(points: list[tuple[float, float]], line: bool) -> None:
    x, y = (Axis.over("a", [point[axis] for point in points]) for axis in range(2))
    page = html_page.read(chart("a title", [Series("s", points, line=line)], x, y))
    for path in page.values("path", "d"):
        across, down = numbers(path)[:2]
        assert -10 <= across <= SIZE[0] + 10 and -10 <= down <= SIZE[1] + 10


@given(st.lists(st.floats(1e-6, 1e9), min_size=1), st.booleans())
def test_an_axis_has_ticks_within_it(values: list[float], log: bool) -> None:
    axis = Axis.over("a", values, log=log)
    marks = axis.marks()
    assert 2 <= len(marks) <= 40
    assert all(axis.low <= value <= axis.high or log for value, _ in marks)
    assert all(0 <= axis.place(value) <= 1 for value in values)


def test_round_steps_and_powers_of_ten() -> None:
    assert [text for _, text in Axis("a", 0, 1).marks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [text for _, text in Axis("a", 0.05, 200, log=True).marks()] == ["0.1", "1", "10", "100"]
    assert [text for _, text in Axis("a", 0.8, 1, percent=True).marks()][-1] == "100 %"


def test_what_lies_outside_is_drawn_at_the_border() -> None:
    axis = Axis("a", 0, 1)
    markup = chart("t", [Series("s", [(5.0, -5.0)])], axis, axis)
    assert f"M{SIZE[0] - 14 - 4:.1f} " in markup


def test_points_say_what_they_are_and_the_chosen_one_has_a_ring() -> None:
    axis = Axis("a", 0, 1)
    series = Series("<b>", [(0.1, 0.1), (0.5, 0.5)], ["one", "</title><script>"], ringed=frozenset([1]))
    guides = [Guide(0.9, "<asked>"), Guide(0.2, "x", vertical=True)]
    page = html_page.read(chart("a & b", [series], axis, axis, guides))
    assert page.tags.count("title") == 2 and page.tags.count("circle") == 1
    assert {"one", "</title><script>", "<b>", "<asked>", "a & b"} <= set(page.texts)


def test_titles_are_one_each_or_none() -> None:
    axis = Axis("a", 0, 1)
    with pytest.raises(ValueError, match="zip"):
        chart("t", [Series("s", [(0, 0), (1, 1)], ["one"])], axis, axis)


def test_no_points_no_fault() -> None:
    html_page.read(chart("t", [Series("", [])], Axis.over("a", []), Axis.over("b", [], log=True)))


def test_an_interval_says_its_figures() -> None:
    page = html_page.read(interval(0.5, 0.25, 0.75, 0.1))
    assert page.texts == ["50.0 %, 95 % interval 25.0 to 75.0 %, by chance 10.0 %"]
