"""A measured value with its bootstrap 95 % interval over the eval rows.

Pure functions of numbers; knows nothing of what is measured (`text_metrics`, `score_metrics`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.metric_names import higher_is_better

NUM_RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A value, its 95 % interval (None where there are too few rows), and the number of rows behind it.

    `value` is None where the rows do not define the metric; `reason` then says why. `p_value` is of the test that
    belongs to the metric, where there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None
    p_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; `reason` and `p_value` only where there is one."""
        record = asdict(self)
        return {name: value for name, value in record.items() if value is not None or name not in ("reason", "p_value")}


def undefined(reason: str, n: int) -> Metric:
    """A metric that these rows do not define."""
    return Metric(None, None, None, n, reason=reason)


def mean_metric(values: Floats, *, seed: int = 0) -> Metric:
    """The mean of one value a row."""
    return ratio_metric(values, np.ones(len(values)), seed=seed)


def ratio_metric(numerators: Floats, denominators: Floats, *, seed: int = 0) -> Metric:
    """sum(numerators) / sum(denominators), resampled by rows with replacement (percentile bootstrap)."""
    size = len(numerators)
    value = float(numerators.sum() / denominators.sum())
    if size < 2:
        return Metric(value, None, None, size)
    rng = np.random.default_rng(seed)
    means = np.empty(NUM_RESAMPLES)
    for number in range(NUM_RESAMPLES):
        drawn = rng.integers(0, size, size)
        means[number] = numerators[drawn].sum() / denominators[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return Metric(value, float(low), float(high), size)


def is_better(name: str, value: float | None, than: float | None) -> bool:
    """Whether `value` of this metric beats `than` (a value beats None, None beats nothing)."""
    if value is None or than is None:
        return value is not None and than is None
    return value > than if higher_is_better(name) else value < than
