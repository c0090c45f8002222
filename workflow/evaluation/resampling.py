"""Resampling by row weights: bootstrap draws, swaps of two runs' rows, and percentile intervals of what they give.

Knows nothing of what is measured: a statistic maps blocks of row weights [r, n] to values [r], NaN where the
weighted rows do not define it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from workflow.evaluation.metrics import NUM_RESAMPLES, Floats, Metric

Statistic = Callable[[Floats], Floats]

BLOCK_ELEMENTS = 2**17
"""Weights held at once: a block of draws and what is computed from it stay in the processor's cache."""


def drawn_weights(num_rows: int, *, seed: int, num_draws: int = NUM_RESAMPLES) -> Iterator[Floats]:
    """Blocks [r, num_rows] of how often each row is drawn with replacement; `num_draws` draws in all."""
    rng = np.random.default_rng(seed)
    for size in _block_sizes(num_rows, num_draws):
        drawn = rng.integers(0, num_rows, (size, num_rows)) + num_rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_rows)
        yield counts.reshape(size, num_rows).astype(np.float64)


def swaps(num_rows: int, *, seed: int, num_rounds: int) -> Iterator[Floats]:
    """Blocks [r, num_rows] of 0 and 1, each with probability 1/2; `num_rounds` rounds in all."""
    rng = np.random.default_rng(seed)
    for size in _block_sizes(num_rows, num_rounds):
        yield (rng.random((size, num_rows)) < 0.5).astype(np.float64)


def _block_sizes(num_rows: int, total: int) -> Iterator[int]:
    size = max(1, BLOCK_ELEMENTS // num_rows)
    for start in range(0, total, size):
        yield min(size, total - start)


def with_intervals(
    points: Mapping[str, Metric], statistics: Mapping[str, Statistic], num_rows: int, *, seed: int
) -> dict[str, Metric]:
    """The points with bootstrap intervals from their statistics; all metrics see the same draws.

    Undefined points stay as they are, and one row alone has no interval.
    """
    wanted = [name for name, point in points.items() if point.value is not None] if num_rows > 1 else []
    values: dict[str, list[Floats]] = {name: [] for name in wanted}
    for weights in drawn_weights(num_rows, seed=seed) if wanted else ():
        for name in wanted:
            values[name].append(statistics[name](weights))
    found = dict(points)
    for name in wanted:
        low, high = percentile_interval(np.concatenate(values[name]))
        found[name] = replace(points[name], low=low, high=high)
    return found


def percentile_interval(values: Floats) -> tuple[float | None, float | None]:
    """The middle 95 % of the values that are not NaN; (None, None) when more than half of them are."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or 2 * len(defined) < len(values):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
