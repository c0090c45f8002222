"""Heat maps of a matrix of figures, as .png and .svg: a text in each cell, one panel a group of rows.

Knows nothing of runs; it is given numbers, texts and names. The same input gives the same .svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workflow.evaluation.plots import GRAY, SETTINGS, printable, write_figure

_EMPTY = "#eeeeee"
_CELL = (1.25, 0.62)
"""Inches of a cell."""
_MARGIN = (2.6, 1.2)
_LARGEST = 60.0
"""Inches: a page of more is drawn smaller."""
_DARK = 0.55
"""Luminance below which a cell's text is white."""


@dataclass(frozen=True)
class Panel:
    """One matrix: values [rows][columns], None where there is none, and the text of each cell."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    texts: Sequence[Sequence[str]]


def write_heatmap(stem: Path, panels: Sequence[Panel], *, title: str, row_label: str, column_label: str) -> list[Path]:
    """Writes STEM.png and STEM.svg, and returns their paths. Colours are on one scale over all panels."""
    known = [value for panel in panels for row in panel.values for value in row if value is not None]
    scale = Normalize(min(known, default=0.0), max(known, default=1.0))
    widest = max(len(panel.columns) for panel in panels)
    heights = [len(panel.rows) * _CELL[1] + _MARGIN[1] for panel in panels]
    size = (min(_LARGEST, widest * _CELL[0] + _MARGIN[0]), min(_LARGEST, sum(heights) + 0.4))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        found = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, panel in zip(found, panels, strict=True):
            _draw(axes, panel, scale)
            axes.set(xlabel=column_label, ylabel=row_label)
        figure.suptitle(printable(title), fontsize=11, color=GRAY, parse_math=False)
        return [write_figure(figure, stem.with_name(f"{stem.name}.{kind}"), kind) for kind in ("png", "svg")]


def _draw(axes: Any, panel: Panel, scale: Normalize) -> None:
    colours = colormaps["viridis"]
    for row, (values, texts) in enumerate(zip(panel.values, panel.texts, strict=True)):
        for column, (value, text) in enumerate(zip(values, texts, strict=True)):
            colour: Any = _EMPTY if value is None else colours(float(scale(value)))
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2
                )
            )
            ink = "black" if value is None or _luminance(colour) > _DARK else "white"
            axes.text(column, row, printable(text), ha="center", va="center", fontsize=9, color=ink, parse_math=False)
    axes.set(xlim=(-0.5, len(panel.columns) - 0.5), ylim=(len(panel.rows) - 0.5, -0.5))
    axes.set_xticks(
        range(len(panel.columns)), [printable(name) for name in panel.columns], fontsize=9, parse_math=False
    )
    axes.set_yticks(range(len(panel.rows)), [printable(name) for name in panel.rows], fontsize=9, parse_math=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if panel.title:
        axes.set_title(printable(panel.title), fontsize=10, parse_math=False)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance as WCAG 2 defines it, near enough: of 0 (black) to 1."""
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))
