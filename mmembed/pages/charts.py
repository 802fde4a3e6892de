"""Charts as SVG within a page: points and lines over two axes. Colours are the page's, so that they follow its mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmembed.pages.parts import escape, label

SIZE = (480, 300)
"""Width and height of a drawing, in its own units: pixels where the page is as wide."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 42
_SERIES = 6  # colours of the page's style


SHAPES = ("circle", "square", "triangle", "diamond")
"""Of points: with colours they tell series apart for who sees no colours too."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        name: with the unit.
        low: where it begins, above 0 where `log`.
        high: where it ends, above `low`.
        log: whether equal steps are equal ratios.
        percent: whether ticks are shares, shown in percent.
        ticks: whether it has any.
    """

    name: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    ticks: bool = True

    @classmethod
    def over(cls, name: str, values: Sequence[float], log: bool = False, percent: bool = False) -> Axis:
        """An axis that holds some finite values with a little room at both ends."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = max(low, 1e-9), max(high, 1e-9)
            return cls(name, low / 1.25, high * 1.25, True, percent)
        room = 0.06 * (high - low) or abs(high) * 0.1 or 0.5
        return cls(name, low - room, min(high + room, 1.02) if percent else high + room, False, percent)

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the beginning, 1 at the end; beyond them for a value outside."""
        low, high, at = (math.log(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Values at which it has a tick, and what stands there."""
        if not self.ticks:
            return []
        values = _powers(self.low, self.high) if self.log else _round_steps(self.low, self.high)
        return [(value, f"{value:.4g}" if not self.percent else f"{100 * value:.4g} %") for value in values]


def _round_steps(low: float, high: float) -> list[float]:
    """Four to eight multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.99)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten, and some of their multiples where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(values) >= 3:
            return values
    return values if len(values) > 1 else _round_steps(low, high)


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: in the legend; "": none.
        points: (x, y).
        titles: what a point says under the pointer, one each or none at all.
        colour: 0, 1, …
        shape: of the points, one of SHAPES, or "" for none.
        size: half the width of a point, in units of the drawing.
        line: whether the points are joined.
        opacity: of the points.
        ringed: which points have a ring around them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    titles: Sequence[str] = ()
    colour: int = 0
    shape: str = "circle"
    size: float = 4.0
    line: bool = False
    opacity: float = 1.0
    ringed: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Guide:
    """A broken line at a value of an axis, with what it means."""

    value: float
    name: str
    vertical: bool = False


def chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, guides: Sequence[Guide] = (), size: tuple[int, int] = SIZE
) -> str:
    """A figure with its legend. Points outside of the axes are drawn at their border.

    Args:
        title: plain text below the drawing, which says what it shows.
        series: drawn one over the other.
        size: width and height of the drawing.
    """
    frame = _Frame(x, y, *size)
    drawn = "".join([frame.grid(), *(frame.guide(guide) for guide in guides), *(frame.series(each) for each in series)])
    width, height = size
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label(title, 300)}">{drawn}</svg>'
    style = f"max-width:{width}px"
    return f'<figure style="{style}">{_legend(series)}{svg}<figcaption>{escape(title)}</figcaption></figure>'


@dataclass(frozen=True)
class _Frame:
    """The field between two axes; coordinates in units of the drawing."""

    x: Axis
    y: Axis
    width: int
    height: int

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point of data lies."""
        across, up = (min(max(value, 0.0), 1.0) for value in (self.x.place(point[0]), self.y.place(point[1])))
        return _LEFT + across * (self._end - _LEFT), self._floor - up * (self._floor - _TOP)

    @property
    def _floor(self) -> int:
        return self.height - _BOTTOM

    @property
    def _end(self) -> int:
        return self.width - _RIGHT

    def grid(self) -> str:
        """Both axes with their ticks and names."""
        parts = []
        for value, text in self.x.marks():
            across, _ = self.at((value, self.y.low))
            parts.append(f'<path class="grid" d="M{across:.1f} {_TOP}V{self._floor}"/>')
            parts.append(f'<text x="{across:.1f}" y="{self._floor + 16}" text-anchor="middle">{escape(text)}</text>')
        for value, text in self.y.marks():
            _, down = self.at((self.x.low, value))
            parts.append(f'<path class="grid" d="M{_LEFT} {down:.1f}H{self._end}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        parts.append(f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{self._floor}H{self._end}"/>')
        middle, center = (_LEFT + self._end) / 2, (_TOP + self._floor) / 2
        parts.append(f'<text x="{middle:.1f}" y="{self.height - 6}" text-anchor="middle">{label(self.x.name)}</text>')
        parts.append(
            f'<text transform="translate(12 {center:.1f}) rotate(-90)" text-anchor="middle">{label(self.y.name)}</text>'
        )
        return "".join(parts)

    def guide(self, guide: Guide) -> str:
        """A broken line, with its name at its end."""
        if guide.vertical:
            across, _ = self.at((guide.value, self.y.low))
            line = f'<path class="guide" d="M{across:.1f} {_TOP}V{self._floor}"/>'
            right = across < self.width / 2
            anchor, shift = ("start", 4) if right else ("end", -4)
            place = f'x="{across + shift:.1f}" y="{self._floor - 6}" text-anchor="{anchor}"'
            return f"{line}<text {place}>{label(guide.name)}</text>"
        _, down = self.at((self.x.low, guide.value))
        line = f'<path class="guide" d="M{_LEFT} {down:.1f}H{self._end}"/>'
        return f'{line}<text x="{_LEFT + 6}" y="{down - 4:.1f}">{label(guide.name)}</text>'

    def series(self, series: Series) -> str:
        """Points, and the line that joins them."""
        places = [self.at(point) for point in series.points]
        colour = f"s{series.colour % _SERIES}"
        drawn = ""
        if series.line and len(places) > 1:
            path = "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
            drawn = f'<path class="line {colour}" style="fill:none" d="M{path}"/>'
        if not series.shape:
            return drawn
        titles = [f"<title>{label(title)}</title>" for title in series.titles] or [""] * len(places)
        marks = "".join(
            f'<path d="{_outline(series.shape, across, down, series.size)}">{title}</path>'
            for (across, down), title in zip(places, titles, strict=True)
        )
        rings = "".join(
            f'<circle class="here" cx="{places[i][0]:.1f}" cy="{places[i][1]:.1f}" r="{series.size + 4:g}"/>'
            for i in sorted(series.ringed)
        )
        return f'{drawn}<g class="{colour}" opacity="{series.opacity:g}" stroke="none">{marks}</g>{rings}'


def _outline(shape: str, x: float, y: float, r: float) -> str:
    """A closed path around a point; shapes of one size look equally large."""
    if shape == "square":
        half = 0.88 * r
        return f"M{x - half:.1f} {y - half:.1f}h{2 * half:.1f}v{2 * half:.1f}h{-2 * half:.1f}z"
    if shape == "triangle":
        half = 1.15 * r
        return f"M{x:.1f} {y - half:.1f}l{half:.1f} {1.8 * half:.1f}h{-2 * half:.1f}z"
    if shape == "diamond":
        half = 1.25 * r
        return f"M{x:.1f} {y - half:.1f}l{half:.1f} {half:.1f}l{-half:.1f} {half:.1f}l{-half:.1f} {-half:.1f}z"
    return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"


def _legend(series: Sequence[Series]) -> str:
    named = [each for each in series if each.name]
    if not named:
        return ""
    parts = []
    for each in named:
        sign = f'<path d="{_outline(each.shape or "circle", 7, 7, 4.5)}"/>'
        if each.line and not each.shape:
            sign = '<path d="M1 6h12v2h-12z"/>'
        parts.append(
            f'<span><svg viewBox="0 0 14 14" aria-hidden="true"><g class="s{each.colour % _SERIES}" stroke="none" '
            f'opacity="{each.opacity:g}">{sign}</g></svg>{label(each.name)}</span>'
        )
    return f'<div class="legend">{"".join(parts)}</div>'


def interval(value: float, low: float, high: float, chance: float) -> str:
    """A share with its interval on a line from 0 to 1; a mark says what chance gives. All are in [0, 1]."""
    at = [5 + 90 * min(max(each, 0.0), 1.0) for each in (low, high, value, chance)]
    title = f"{100 * value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %, by chance {100 * chance:.1f} %"
    return (
        f'<svg class="interval" viewBox="0 0 100 12" role="img" aria-label="{title}"><title>{title}</title>'
        f'<path class="axis" d="M5 6H95"/><path class="chance" d="M{at[3]:.1f} 1V11"/>'
        f'<path class="line s0" style="fill:none" d="M{at[0]:.1f} 6H{at[1]:.1f}"/>'
        f'<circle class="s0" stroke="none" cx="{at[2]:.1f}" cy="6" r="3.5"/></svg>'
    )
