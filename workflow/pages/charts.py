"""Line charts as inline SVG, of any width: lines are stretched to their box, while letters and strokes keep their size.

Knows nothing of what is drawn. Without scripts a chart is whole; its points stand in `data-chart` for the reader's pointer.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflow.pages.markup import number, text

Points = Sequence[tuple[float, float]]
MOST_POINTS = 600
NUM_COLOURS = 8
SIDE = 1000
"""Units of a chart's box in either direction."""
LOG_FROM = 200.0
"""From this ratio of the largest to the least value on, positive values are drawn on a logarithmic scale."""
MARK_UP_TO = 40
_ids = itertools.count(1)


@dataclass(frozen=True)
class Line:
    """Points under one name. `kind` is line, faint (behind others), dashed or steps' marks alone; `run` is whose, for colour and legend."""

    name: str
    points: Points
    run: int = 0
    kind: str = "line"
    marks: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """What one figure shows. `x_range` and `y_range` fix the box, else the points do; `diagonal` draws the line of equals."""

    title: str
    lines: Sequence[Line]
    about: str = ""
    x_label: str = "step"
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    diagonal: bool = False
    wide: bool = False
    may_be_log: bool = False
    intervals: Sequence[tuple[float, float, float]] = ()
    """(x, low, high), drawn as upright strokes."""


def thinned(points: Points, *, most: int = MOST_POINTS) -> Points:
    """At most about `most` points: of each stretch of x the least and the largest value, besides the first and the last."""
    if len(points) <= most:
        return points
    buckets = max(1, (most - 2) // 2)
    inner = points[1:-1]
    kept = [points[0]]
    for place in range(buckets):
        part = inner[place * len(inner) // buckets : (place + 1) * len(inner) // buckets]
        if part:
            least, largest = (choose(part, key=lambda point: point[1]) for choose in (min, max))
            kept += sorted({least, largest})
    return [*kept, points[-1]]


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers between two, about so many."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= about + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Scale:
    """Values -> units of the box, 0 to SIDE."""

    low: float
    high: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, from 0 at the low end."""
        ends = (self.low, self.high, value)
        low, high, place = map(math.log10, ends) if self.is_log else ends
        return SIDE * (place - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values; powers of ten on a logarithmic scale."""
        if not self.is_log:
            return ticks(self.low, self.high)
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        found = [10.0**power for power in powers]
        if len(found) < 2:
            found = [factor * 10.0**power for power in range(powers.start - 1, powers.stop + 1) for factor in (1, 2, 5)]
        every = -(-len(found) // 6)
        return [value for value in found[::every] if self.low <= value <= self.high]


def scale_of(values: Sequence[float], given: tuple[float, float] | None, *, may_be_log: bool) -> Scale:
    """A scale that holds all values, with room at its ends; of equal values, around them."""
    if given is not None:
        return Scale(*given)
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOG_FROM:
        return Scale(low / 1.15, high * 1.15, is_log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Scale(min(0.0, low) if low >= 0 and low < 0.35 * high else low - room, high + room)


def chart(drawn: Chart) -> str:
    """The figure."""
    lines = [line for line in drawn.lines if line.points]
    values = [y for line in lines for _, y in line.points]
    values += [end for _, *ends in drawn.intervals for end in ends]
    along = [x for line in lines for x, _ in line.points]
    if not values:
        return ""
    y = scale_of(values, drawn.y_range, may_be_log=drawn.may_be_log)
    x = Scale(*(drawn.x_range or _around(along)))
    number_of = next(_ids)
    named = f'aria-labelledby="t{number_of} d{number_of}"'
    shown = [(line, thinned(line.points)) for line in lines]
    described = drawn.about + " " + "; ".join(_described(line) for line in lines if line.kind != "faint")
    scale_note = '<span class="soft"> logarithmic scale</span>' if y.is_log else ""
    return (
        f'<figure class="chart{" wide" if drawn.wide else ""}" data-chart="{text(_data(drawn, shown))}" '
        f'data-range="{x.low:g} {x.high:g}">'
        f"<figcaption>{text(drawn.title)}{scale_note}</figcaption>"
        f'<div class="frame"><div class="plot"><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" {named}>'
        f'<title id="t{number_of}">{text(drawn.title)}</title><desc id="d{number_of}">{text(described.strip())}</desc>'
        f"{_grid(x, y)}{_extras(drawn, x, y)}{''.join(_path(line, points, x, y) for line, points in shown)}</svg>"
        f"{_labels(x, y)}</div></div>{_axis(drawn)}{_keys(lines)}</figure>"
    )


def _around(along: Sequence[float]) -> tuple[float, float]:
    low, high = min(along), max(along)
    return (low, high) if high > low else (low - 1, high + 1)


def _described(line: Line) -> str:
    (first, begins), (last, ends) = line.points[0], line.points[-1]
    values = [value for _, value in line.points]
    return (
        f"{line.name}: {number(begins)} at {number(first)}, {number(ends)} at {number(last)}, "
        f"least {number(min(values))}, largest {number(max(values))}"
    )


def _data(drawn: Chart, shown: Sequence[tuple[Line, Points]]) -> str:
    lines = [
        {
            "name": line.name,
            "colour": _colour(line),
            "run": line.run,
            "points": [[_short(x), _short(y)] for x, y in points],
        }
        for line, points in shown
        if line.kind != "faint" or len(shown) == 1
    ]
    return json.dumps({"x": drawn.x_label, "lines": lines}, separators=(",", ":"), ensure_ascii=False)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _colour(line: Line) -> int:
    return (line.run if line.colour is None else line.colour) % NUM_COLOURS


def _path(line: Line, points: Points, x: Scale, y: Scale) -> str:
    places = [(round(x(a), 1), round(SIDE - y(b), 1)) for a, b in points]
    kind = f"{line.kind} r{line.run} c{_colour(line)}"
    drawn = f'<path class="{kind}" d="M{"L".join(f"{a:g} {b:g}" for a, b in places)}"/>' if len(places) > 1 else ""
    if (line.marks and len(places) <= MARK_UP_TO) or len(
        places
    ) == 1:  # round, whatever the box: ends of strokes without length
        drawn += (
            f'<path class="marks r{line.run} c{_colour(line)}" d="{"".join(f"M{a:g} {b:g}h0" for a, b in places)}"/>'
        )
    return drawn


def _grid(x: Scale, y: Scale) -> str:
    across = "".join(f"M0 {SIDE - y(value):.1f}H{SIDE}" for value in y.ticks())
    up = "".join(f"M{x(value):.1f} 0V{SIDE}" for value in x.ticks())
    return f'<path class="grid" d="{across}{up}"/><path class="axis" d="M0 0V{SIDE}H{SIDE}"/>'


def _extras(drawn: Chart, x: Scale, y: Scale) -> str:
    parts = ""
    if drawn.diagonal:
        parts += f'<path class="equals" d="M{x(0):.1f} {SIDE - y(0):.1f}L{x(1):.1f} {SIDE - y(1):.1f}"/>'
    if drawn.intervals:
        strokes = "".join(f"M{x(a):.1f} {SIDE - y(low):.1f}V{SIDE - y(high):.1f}" for a, low, high in drawn.intervals)
        parts += f'<path class="interval" d="{strokes}"/>'
    return parts


def _labels(x: Scale, y: Scale) -> str:
    """The numbers at the axes; what is drawn by letters is not stretched."""
    left = "".join(f'<span class="y" style="bottom:{y(value) / 10:.2f}%">{_tick(value)}</span>' for value in y.ticks())
    below = "".join(f'<span class="x" style="left:{x(value) / 10:.2f}%">{_tick(value)}</span>' for value in x.ticks())
    return f'<div aria-hidden="true">{left}{below}</div>'


def _tick(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.10g}"


def _axis(drawn: Chart) -> str:
    about = f'<span class="about">{text(drawn.about)}</span>' if drawn.about else ""
    return f'<div class="below"><span class="unit">{text(drawn.x_label)}</span>{about}</div>'


def _keys(lines: Sequence[Line]) -> str:
    """What the lines are called, where there is more than one to tell apart; runs are told apart by the legend above all charts."""
    named = [line for line in lines if line.kind != "faint"]
    if len(named) < 2 or len({line.run for line in named}) > 1:
        return ""
    keys = "".join(
        f'<li><i class="swatch c{_colour(line)}{" dashed" if line.kind == "dashed" else ""}"></i>{text(line.name)}</li>'
        for line in named
    )
    return f'<ul class="keys">{keys}</ul>'
