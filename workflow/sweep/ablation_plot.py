"""A figure of variants: each run's value, the mean, and its interval, as SVG that is light or dark as its page is.

Pure functions; knows nothing of what is drawn but numbers and names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, ROW, TOP, BOTTOM, RIGHT = 720, 34, 34, 40, 24
LETTER = 7.3
"""Width of a letter of names, about."""
MOST_LETTERS = 34
STYLE = (
    ".abl{font:13px system-ui,sans-serif;max-width:720px;width:100%;height:auto;color:#1b1f24}.abl text{fill:currentColor}"
    ".abl .grid{stroke:currentColor;opacity:.15}.abl .base{stroke:currentColor;opacity:.6;stroke-dasharray:4 4}"
    ".abl .span{stroke:#0072b2;stroke-width:3}.abl .mean{fill:#0072b2}.abl .run{fill:none;stroke:currentColor;opacity:.55}"
    "@media(prefers-color-scheme:dark){.abl{color:#e6edf3}.abl .span{stroke:#56b4e9}.abl .mean{fill:#56b4e9}}"
)


@dataclass(frozen=True)
class Bar:
    """A variant: values of its runs, their mean, and the interval of it."""

    name: str
    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None


def plot(bars: Sequence[Bar], *, title: str, reference: float | None, times: float = 1.0) -> str:
    """The figure; `reference` is a line through all variants. The axis shows values `times` a factor."""
    left = 16 + LETTER * max((min(len(bar.name), MOST_LETTERS) for bar in bars), default=0)
    height = TOP + ROW * max(1, len(bars)) + BOTTOM
    numbers = [value for bar in bars for value in (*bar.values, bar.mean, bar.low, bar.high) if value is not None]
    low, high = _around(numbers)

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - RIGHT - left)

    parts = [f'<text x="8" y="20" font-weight="600">{escape(title)}</text>']
    for tick in ticks(low * times, high * times):
        x, end = across(tick / times), height - BOTTOM
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{end}"/>')
        parts.append(f'<text x="{x:.1f}" y="{end + 18}" text-anchor="middle">{tick:g}</text>')
    if reference is not None:
        x = across(reference)
        parts.append(f'<line class="base" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - BOTTOM}"/>')
    for index, bar in enumerate(bars):
        parts += _row(bar, TOP + ROW * (index + 0.5), across)
    parts.append(
        f'<text x="{left:.1f}" y="{height - 6}">\u25cb a run   \u25cf mean and 95 % interval   \u2504 baseline</text>'
    )
    described = "; ".join(f"{bar.name} {bar.mean:.4g}" for bar in bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="abl" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}: {escape(described)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _row(bar: Bar, y: float, across: Callable[[float], float]) -> list[str]:
    name = bar.name if len(bar.name) <= MOST_LETTERS else f"{bar.name[: MOST_LETTERS - 1]}\u2026"
    parts = [f'<text x="8" y="{y + 4:.1f}">{escape(name)}</text>']
    if bar.low is not None and bar.high is not None:
        parts.append(
            f'<line class="span" x1="{across(bar.low):.1f}" y1="{y:.1f}" x2="{across(bar.high):.1f}" y2="{y:.1f}"/>'
        )
    parts += [f'<circle class="run" cx="{across(value):.1f}" cy="{y:.1f}" r="3.5"/>' for value in bar.values]
    return [*parts, f'<circle class="mean" cx="{across(bar.mean):.1f}" cy="{y:.1f}" r="5"/>']


def _around(numbers: Sequence[float]) -> tuple[float, float]:
    """Bounds with some air."""
    if not numbers:
        return 0.0, 1.0
    low, high = min(numbers), max(numbers)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - air, high + air


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within the bounds, about five."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 6), 10)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]
