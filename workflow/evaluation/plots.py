"""Figures of a binary task's scores: reliability, ROC, and how the classes' scores are spread; as .png and .svg.

Knows nothing of runs; it is given numbers and a title.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.score_metrics import score_metrics
from workflow.evaluation.weighted_metrics import NUM_BINS
from workflow.files import whole_file

YES, NO, GRAY = "#0072b2", "#d55e00", "#707070"
SETTINGS = {"svg.hashsalt": "workflow", "font.family": "DejaVu Sans", "axes.axisbelow": True, "svg.fonttype": "path"}
_SIZE = (5.2, 5.2)
_HISTOGRAM_BINS = 40


def write_plots(
    folder: Path, scores: Floats, targets: Floats, *, title: str, only: Collection[str] | None = None
) -> list[Path]:
    """Writes reliability, roc and scores (or `only` some) as .png and .svg into `folder` and returns their paths.

    scores, targets: [n] in [0, 1]; a target of at least 0.5 is a yes. Each file appears whole or not at all, and the same
    numbers give the same .svg. What the rows do not define is said in the figure.
    """
    given, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    found = score_metrics("binary", given, wanted, names=("auc", "ece", "brier"))
    written = []
    # The salt of svg ids can be set nowhere but in matplotlib's settings; they are put back afterwards.
    with matplotlib.rc_context(SETTINGS):
        for name, draw in FIGURES.items():
            if only is not None and name not in only:
                continue
            figure = Figure(figsize=_SIZE, dpi=150, layout="constrained")
            FigureCanvasAgg(figure)
            # The mean of squares is defined for any usable rows.
            if found["brier"].reason:
                _note(plain_axes(figure), found["brier"].reason)
            else:
                draw(figure, given, wanted, found)
            figure.suptitle(printable(title), fontsize=10, color=GRAY, parse_math=False)
            written += [write_figure(figure, folder / f"{name}.{kind}", kind) for kind in ("png", "svg")]
    return written


def write_figure(figure: Figure, path: Path, kind: str) -> Path:
    """Writes a figure as png or svg, whole or not at all, without a date."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    with whole_file(path) as file:
        file.buffer.write(data.getvalue())
    return path


def printable(title: str) -> str:
    """The title in lines, with ? for letters that the font lacks: matplotlib would warn and draw boxes."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    lines = textwrap.fill(textwrap.shorten(title, 160, placeholder=" ..."), 64)
    return "".join(letter if letter == "\n" or ord(letter) in known else "?" for letter in lines)


def _reliability(figure: Figure, scores: Floats, targets: Floats, found: dict[str, Metric]) -> None:
    upper, lower = figure.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = counts > 0
    means = np.bincount(bins, weights=scores, minlength=NUM_BINS)[used] / counts[used]
    shares = np.bincount(bins, weights=targets, minlength=NUM_BINS)[used] / counts[used]
    low, high = wilson_interval(shares, counts[used])
    _plain(upper)
    upper.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--", label="perfectly calibrated")
    upper.errorbar(
        means,
        shares,
        yerr=np.maximum(0.0, [shares - low, high - shares]),
        color=YES,
        marker="o",
        markersize=4.5,
        linewidth=1.2,
        elinewidth=1,
        capsize=2,
        label="rows in a bin, with 95 % interval",
    )
    upper.set(ylabel="mean target", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.set_title(f"Reliability: calibration error (ECE) {_cell(found['ece'])}", fontsize=11)
    upper.legend(loc="upper left", frameon=False, fontsize=9)
    _plain(lower)
    lower.bar((np.arange(NUM_BINS) + 0.5) / NUM_BINS, counts, width=0.9 / NUM_BINS, color=YES, alpha=0.55)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.set(xlabel="score", ylabel="rows")


def wilson_interval(shares: Floats, counts: Any) -> tuple[Floats, Floats]:
    """Wilson's 95 % interval of a share among `counts` rows; for soft targets it is wider than it need be."""
    z = 1.959963984540054
    centre = (shares + z * z / (2 * counts)) / (1 + z * z / counts)
    half = z * np.sqrt(shares * (1 - shares) / counts + z * z / (4 * counts**2)) / (1 + z * z / counts)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _roc(figure: Figure, scores: Floats, targets: Floats, found: dict[str, Metric]) -> None:
    axes = plain_axes(figure)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--", label="guessing")
    if found["auc"].reason:
        axes.set_title("ROC", fontsize=11)
        _note(axes, found["auc"].reason)
        return
    false, true, _ = roc_curve(targets >= 0.5, scores)
    axes.fill_between(false, true, color=YES, alpha=0.08, linewidth=0)
    axes.plot(false, true, color=YES, linewidth=1.8, label="the model")
    axes.set_title(f"ROC: area under the curve {_cell(found['auc'])}", fontsize=11)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _histogram(figure: Figure, scores: Floats, targets: Floats, _: dict[str, Metric]) -> None:
    axes = plain_axes(figure)
    positive = targets >= 0.5
    for chosen, label, colour in ((~positive, "no", NO), (positive, "yes", YES)):
        if not chosen.any():
            continue
        heights, edges = np.histogram(scores[chosen], bins=_HISTOGRAM_BINS, range=(0.0, 1.0))
        heights = heights / chosen.sum()
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(heights, edges, color=colour, linewidth=1.5, label=f"target {label} ({chosen.sum():,} rows)")
    axes.axvline(0.5, ymax=0.85, color=GRAY, linewidth=1, linestyle="--")
    axes.set(xlabel="score", ylabel="share of the class's rows", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0, top=1.18 * axes.get_ylim()[1])
    axes.set_title("Scores by class", fontsize=11)
    axes.legend(loc="upper center", frameon=False, fontsize=9, ncols=2)


def plain_axes(figure: Figure) -> Any:
    """Axes in the style of all our figures."""
    axes = figure.subplots()
    _plain(axes)
    return axes


def _plain(axes: Any) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b0b0b0")


def _note(axes: Any, text: str) -> None:
    axes.text(
        0.5,
        0.5,
        textwrap.fill(text, 36),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=GRAY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 6},
    )


def _cell(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.3f}\u2013{metric.high:.3f})"


FIGURES: dict[str, Callable[[Figure, Floats, Floats, dict[str, Metric]], None]] = {
    "reliability": _reliability,
    "roc": _roc,
    "scores": _histogram,
}
