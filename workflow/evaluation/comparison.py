"""Whether two runs' predictions for the same rows differ in a metric by more than chance.

Pure functions of numbers; knows nothing of where predictions come from.

The test is approximate randomisation (Noreen 1989; Yeh 2000): were the runs alike, either could have made either
prediction of a row, so the rows' predictions are exchanged at random and the difference taken again. The interval is of a
paired bootstrap: both runs are measured on the same draws of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workflow.evaluation.metrics import Floats
from workflow.evaluation.resampling import Statistic, drawn_weights, percentile_interval, swaps
from workflow.evaluation.score_forms import Form, forms

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


@dataclass(frozen=True)
class Pair:
    """Both runs' forms of a metric for the same rows, and its statistic of both runs' rows below each other."""

    first: Form
    second: Form
    both: Statistic


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
    """Compares two runs' predictions in one of SCORE_METRICS[problem] but eval_loss; shapes as in `score_metrics`."""
    pair = score_pair(problem, first, second, targets, metric=metric, unit=unit)
    return compare_pairs(metric, [pair], len(targets), seed=seed, num_rounds=num_rounds)


def score_pair(problem: str, first: Floats, second: Floats, targets: Floats, *, metric: str, unit: float = 1.0) -> Pair:
    """Two runs' predictions in one of SCORE_METRICS[problem] but eval_loss; shapes as in `score_metrics`."""
    both = forms(problem, np.concatenate([first, second]), np.concatenate([targets, targets]), unit=unit)
    one, two = (forms(problem, given, targets, unit=unit)[metric] for given in (first, second))
    return Pair(one, two, both[metric].statistic)


def compare_pairs(
    metric: str, pairs: Sequence[Pair], num_rows: int, *, seed: int = 0, num_rounds: int = 1000, num_draws: int = 1000
) -> Comparison:
    """Compares the means over pairs (of seeds): a row is exchanged, or drawn, in all pairs at once, for its predictions belong together.

    p = (1 + #{|d*| >= |d|}) / (1 + rounds), so it is never below 1 / (1 + num_rounds).
    """
    for point in (form.point for pair in pairs for form in (pair.first, pair.second)):
        if point.value is None:
            known = [_mean_of([form.point.value for form in side]) for side in _sides(pairs)]
            return Comparison(metric, known[0], known[1], None, None, None, None, num_rows, point.reason)
    first, second = (_mean_of([form.point.value for form in side]) for side in _sides(pairs))
    assert first is not None
    assert second is not None
    statistic: Statistic = lambda weights: np.mean([pair.both(weights) for pair in pairs], axis=0)  # noqa: E731
    low, high = None, None
    if num_rows > 1:
        draws = (
            (weights, np.zeros_like(weights)) for weights in drawn_weights(num_rows, seed=seed, num_draws=num_draws)
        )
        low, high = percentile_interval(_differences(statistic, draws))
    exchanges = ((1.0 - swapped, swapped) for swapped in swaps(num_rows, seed=seed, num_rounds=num_rounds))
    p_value = _p_value(_differences(statistic, exchanges), first - second)
    return Comparison(metric, first, second, first - second, low, high, p_value, num_rows)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979) for the family of all p-values that are known; in the given order."""
    known = sorted((value, number) for number, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, number) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[number] = highest
    return adjusted


def _sides(pairs: Sequence[Pair]) -> tuple[list[Form], list[Form]]:
    return [pair.first for pair in pairs], [pair.second for pair in pairs]


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


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
