"""Whether two ways of training differ in a metric, each repeated with the same seeds and measured on the same rows.

Pure functions of numbers; knows nothing of where predictions come from.

Two things make such a difference uncertain: the seed of a run, and which rows happened to be measured on. Each has its own
test, and a difference is claimed only where both find one: the p-value is the larger of the two (the intersection-union
test, Berger 1982), which is valid whatever the two have to do with each other.

- Over seeds: the paired t-test of the runs' differences by seed. Beside it stands the exact sign-flip test (Fisher 1935),
  which assumes nothing of their distribution, but cannot fall below 2 / 2^seeds.
- Over rows: approximate randomisation (Noreen 1989; Yeh 2000), exchanging the predictions of a row in all seeds together,
  because the rows are the same in all of them.

Intervals are of a bootstrap of two levels, seeds and rows drawn with replacement (Davison and Hinkley 1997, section 3.8),
with the same draws for both sides. Where many variants meet one baseline, `comparison.holm` corrects their p-values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from workflow.evaluation.metrics import Floats
from workflow.evaluation.resampling import Statistic, drawn_weights, percentile_interval, swaps
from workflow.evaluation.score_forms import forms

NUM_DRAWS = 2000
NUM_ROUNDS = 10_000
MOST_FLIPPED = 14
"""Seeds up to which every pattern of signs is tried; beyond, `NUM_ROUNDS` random ones."""
_ROUNDING = 1e-12


class Measure(Protocol):
    """A metric of predictions on the same rows."""

    @property
    def num_rows(self) -> int:
        """Rows of a run."""
        ...

    def statistic(self, *runs: Floats) -> Statistic:
        """Of the rows of these runs below each other: weights [r, runs x rows] -> values [r]."""
        ...


@dataclass(frozen=True)
class ScoreMeasure:
    """A metric of SCORE_METRICS[problem] but eval_loss, against these targets; shapes as in `score_forms`."""

    problem: str
    metric: str
    targets: Floats
    unit: float = 1.0

    @property
    def num_rows(self) -> int:
        """Rows of a run."""
        return len(self.targets)

    def statistic(self, *runs: Floats) -> Statistic:
        """Of runs' predictions."""
        targets = np.concatenate([self.targets] * len(runs))
        return forms(self.problem, np.concatenate(runs), targets, unit=self.unit)[self.metric].statistic


@dataclass(frozen=True)
class MeanMeasure:
    """The mean of one value a row, such as whether an answer was right; a run is its rows' values [n]."""

    num_rows: int

    def statistic(self, *runs: Floats) -> Statistic:
        """Of runs' values."""
        values = np.concatenate(runs)
        return lambda weights: np.asarray(weights @ values / weights.sum(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Repeated:
    """A way of training: its metric by seed, and, where predictions are known, that metric on resampled rows [draws, seeds]."""

    values: Mapping[int, float]
    runs: Mapping[int, Floats] | None
    resampled: Floats | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(list(self.values.values())))


@dataclass(frozen=True)
class RepeatedComparison:
    """first - second over the seeds that both have, with its 95 % interval and the two-sided p-values of no difference."""

    difference: float
    low: float | None
    high: float | None
    n: int
    p_seeds: float | None
    p_flips: float | None
    p_rows: float | None

    @property
    def p_value(self) -> float | None:
        """The larger of the tests over seeds and over rows; without predictions, that over seeds alone."""
        if self.p_seeds is None:
            return None
        return max(self.p_seeds, self.p_rows) if self.p_rows is not None else self.p_seeds


def repeated(values: Mapping[int, float], runs: Mapping[int, Floats] | None, measure: Measure | None) -> Repeated:
    """`values` and `runs` by seed; the resampled rows are the same for all that are measured on as many rows."""
    ordered = dict(sorted(values.items()))
    if runs is None or measure is None:
        return Repeated(ordered, None, None)
    weights = list(drawn_weights(measure.num_rows, seed=0, num_draws=NUM_DRAWS))
    columns = []
    for seed in ordered:
        statistic = measure.statistic(runs[seed])
        columns.append(np.concatenate([statistic(block) for block in weights]))
    return Repeated(ordered, runs, np.stack(columns, axis=1))


def interval(given: Repeated) -> tuple[float | None, float | None]:
    """95 % of the mean, over seeds and rows; over seeds alone without predictions; (None, None) of one seed alone."""
    return _interval(np.array(list(given.values.values())), given.resampled)


def _interval(values: Floats, resampled: Floats | None) -> tuple[float | None, float | None]:
    count = len(values)
    if count < 2:
        return None, None
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, count, (NUM_DRAWS, count))
    table = resampled if resampled is not None else np.broadcast_to(values, (NUM_DRAWS, count))
    return percentile_interval(np.take_along_axis(table, drawn, axis=1).mean(axis=1))


def compare_repeated(first: Repeated, second: Repeated, measure: Measure | None) -> RepeatedComparison | None:
    """The difference over the seeds that both sides have; None where they share none."""
    seeds = [seed for seed in first.values if seed in second.values]
    if not seeds:
        return None
    differences = np.array([first.values[seed] - second.values[seed] for seed in seeds])
    resampled = None
    if first.resampled is not None and second.resampled is not None:
        resampled = _columns(first, seeds) - _columns(second, seeds)
    low, high = _interval(differences, resampled)
    p_rows = None
    if measure is not None and first.runs is not None and second.runs is not None:
        pairs = [(first.runs[seed], second.runs[seed]) for seed in seeds]
        p_rows = exchange_rows(pairs, measure, float(differences.mean()))
    return RepeatedComparison(
        float(differences.mean()), low, high, len(seeds), paired_t(differences), sign_flips(differences), p_rows
    )


def _columns(given: Repeated, seeds: Sequence[int]) -> Floats:
    assert given.resampled is not None
    order = list(given.values)
    return given.resampled[:, [order.index(seed) for seed in seeds]]


def paired_t(differences: Floats) -> float | None:
    """Two-sided p of the mean difference; None for fewer than two. Equal differences have no spread: their sign-flip test."""
    if len(differences) < 2:
        return None
    if float(np.ptp(differences)) <= _ROUNDING:
        return sign_flips(differences)
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def sign_flips(differences: Floats) -> float | None:
    """Two-sided p of the mean difference among all patterns of signs (random ones for many seeds); None for fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    if count <= MOST_FLIPPED:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(0).random((NUM_ROUNDS, count)) < 0.5
        signs = np.concatenate([np.ones((1, count)), np.where(drawn, -1.0, 1.0)])
    extreme = np.abs(signs @ differences) >= abs(float(differences.sum())) - _ROUNDING
    return float(extreme.mean())


def exchange_rows(pairs: Sequence[tuple[Floats, Floats]], measure: Measure, difference: float) -> float | None:
    """Two-sided p of the mean difference when rows' predictions are exchanged, in all pairs alike.

    p = (1 + #{|d*| >= |d|}) / (1 + rounds); None where more than half of the rounds do not define the metric.
    """
    statistics = [measure.statistic(*pair) for pair in pairs]
    extreme = defined = 0
    for swapped in swaps(measure.num_rows, seed=0, num_rounds=NUM_ROUNDS):
        one, other = np.concatenate([1 - swapped, swapped], axis=1), np.concatenate([swapped, 1 - swapped], axis=1)
        found = np.mean([statistic(one) - statistic(other) for statistic in statistics], axis=0)
        usable = found[~np.isnan(found)]
        defined += len(usable)
        extreme += int((np.abs(usable) >= abs(difference) - _ROUNDING).sum())
    return (1 + extreme) / (1 + defined) if 2 * defined >= NUM_ROUNDS else None
