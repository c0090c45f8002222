"""The figure of a learning-rate range test, as .png and .svg.

Knows nothing of models; is given numbers and a title.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from workflow.evaluation.plots import GRAY, NO, SETTINGS, YES, plain_axes, printable, write_figure
from workflow.evaluation.range_test import Suggestion

_SIZE = (6.4, 4.2)


def write_range_plot(
    folder: Path,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestions: Sequence[Suggestion],
    *,
    title: str,
) -> list[Path]:
    """Writes lr_find.png and .svg: losses by rate, as found and smoothed, with the suggested rates. The same numbers give the same .svg."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=_SIZE, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = plain_axes(figure)
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.plot(rates, losses, color=YES, linewidth=0.9, alpha=0.35, label="as found")
        axes.plot(rates, smoothed, color=YES, linewidth=1.8, label="smoothed")
        for suggestion, colour in zip(suggestions, (NO, GRAY), strict=False):
            label = f"{suggestion.name}: {suggestion.rate:.2g}"
            axes.axvline(suggestion.rate, color=colour, linewidth=1.2, linestyle="--", label=label)
        if smoothed:
            # A loss that has diverged would press all the others flat.
            axes.set_ylim(
                bottom=0.9 * min(*losses, *smoothed), top=min(max(losses), 2.0 * max(smoothed[0], losses[0])) * 1.05
            )
        axes.set_title("Learning-rate range test", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
        figure.suptitle(printable(title), fontsize=10, color=GRAY, parse_math=False)
        return [write_figure(figure, folder / f"lr_find.{kind}", kind) for kind in ("png", "svg")]
