"""Whether two runs' predictions for the same rows differ in a metric by more than chance.

Pure functions of numbers; knows nothing of where predictions come from.

The test is approximate randomisation (Noreen 1989; Yeh 2000): were the runs alike, either could have made either
prediction of a row, so the rows' predictions are exchanged at random and the difference taken again. The interval is of a
paired bootstrap: both runs are measured on the same draws of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workflow.evaluation.metrics import Floats
from workflow.evaluation.resampling import Statistic, drawn_weights, percentile_interval, swaps
from workflow.evaluation.score_forms import forms

_ROUNDING = 1e-12
"""Differences closer than this are ties: the same rows summed in another order."""


@dataclass(frozen=True)
class Comparison:
    """Both runs' values of a metric, first - second with its 95 % interval, and the two-sided p-value of no difference.

    Without a value of both runs (`reason` says why) the difference is None; interval and p-value are None as well where
    more than half of the resamples do not define the metric.
    """

    metric: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; `reason` only where there is one."""
        return {name: value for name, value in asdict(self).items() if value is not None or name != "reason"}


def compare(
    problem: str,
    first: Floats,
    second: Floats,
    targets: Floats,
    *,
    metric: str,
    unit: float = 1.0,
    seed: int = 0,
    num_rounds: int = 1000,
) -> Comparison:
    """Compares two runs' predictions in one of SCORE_METRICS[problem] but eval_loss; shapes as in `score_metrics`.

    p = (1 + #{|d*| >= |d|}) / (1 + rounds), so it is never below 1 / (1 + num_rounds).
    """
    rows = len(targets)
    one = forms(problem, first, targets, unit=unit)[metric].point
    two = forms(problem, second, targets, unit=unit)[metric].point
    if one.value is None or two.value is None:
        reason = one.reason if one.value is None else two.reason
        return Comparison(metric, one.value, two.value, None, None, None, None, rows, reason)
    both = forms(problem, np.concatenate([first, second]), np.concatenate([targets, targets]), unit=unit)
    statistic, difference = both[metric].statistic, one.value - two.value
    low, high = None, None
    if rows > 1:
        draws = ((weights, np.zeros_like(weights)) for weights in drawn_weights(rows, seed=seed, num_draws=num_rounds))
        low, high = percentile_interval(_differences(statistic, draws))
    exchanges = ((1.0 - swapped, swapped) for swapped in swaps(rows, seed=seed, num_rounds=num_rounds))
    p_value = _p_value(_differences(statistic, exchanges), difference)
    return Comparison(metric, one.value, two.value, difference, low, high, p_value, rows)


def _differences(statistic: Statistic, parts: Iterable[tuple[Floats, Floats]]) -> Floats:
    """One side's value less the other's: a side takes each row by the given weights of the first and the second run.

    Both runs stand below each other, so that a side is nothing but weights of their rows.
    """
    return np.concatenate(
        [
            statistic(np.concatenate([of_first, of_second], axis=1))
            - statistic(np.concatenate([of_second, of_first], axis=1))
            for of_first, of_second in parts
        ]
    )


def _p_value(differences: Floats, found: float) -> float | None:
    defined = differences[~np.isnan(differences)]
    if 2 * len(defined) < len(differences):
        return None
    extreme = int((np.abs(defined) >= abs(found) - _ROUNDING).sum())
    return (1 + extreme) / (1 + len(defined))
