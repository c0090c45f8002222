"""Score metrics as statistics of row weights: the fast forms behind the intervals, whole blocks of draws at a time.

Each builder prepares what does not depend on the weights (sorts, one-hot tables, moments) and gives a statistic:
weights [r, n] -> values [r], NaN where the weighted rows do not define the metric. Rows of weight zero do not count.
Tests hold every statistic to scikit-learn and scipy on rows that were really drawn. Knows nothing of tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.evaluation.metrics import Floats
from workflow.evaluation.resampling import Statistic

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

NUM_BINS = 15
"""Equal-width bins of the expected calibration error."""
_SPREAD = 1e-13
"""A variance below this share of the mean square is rounding: the weighted rows are all equal."""


class _Ties:
    """Rows in groups of equal value, the groups in ascending order."""

    def __init__(self, values: Floats) -> None:
        _, self.group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        self._order = np.argsort(self.group, kind="stable")
        self._ends = np.cumsum(sizes) - 1

    def running(self, weights: Floats) -> Floats:
        """The weight of each group and all groups below it: [r, n] -> [r, groups]."""
        sums = np.cumsum(np.take(weights, self._order, axis=1), axis=1)
        return sums if len(self._ends) == sums.shape[1] else np.take(sums, self._ends, axis=1)

    def midranks(self, weights: Floats) -> tuple[Floats, Floats]:
        """The mean rank (from 1) of each group among the weighted rows, and its weight; both [r, groups]."""
        running = self.running(weights)
        sizes = _steps(running)
        return running - (sizes - 1.0) / 2.0, sizes


def mean(values: Floats) -> Statistic:
    """The mean of one value a row."""
    return lambda weights: (weights @ values) / weights.sum(axis=1)


def root_mean(values: Floats, *, unit: float) -> Statistic:
    """The square root of the mean, times `unit`."""
    average = mean(values)
    return lambda weights: unit * np.sqrt(average(weights))


def calibration_error(confidences: Floats, outcomes: Floats) -> Statistic:
    """Expected calibration error of confidences [n] or [n, d] against outcomes of the same shape: the decisions of a row
    are drawn together.
    """
    table = bin_gaps(confidences, outcomes)
    decisions = confidences.size // max(1, len(confidences))
    return lambda weights: np.abs(weights @ table).sum(axis=1) / (weights.sum(axis=1) * decisions)


def bin_gaps(confidences: Floats, outcomes: Floats) -> Floats:
    """The sum of confidence - outcome of each row in each of the bins: [n, NUM_BINS].

    A bin's weight times its |mean confidence - mean outcome| is the absolute sum of its gaps, so these sums suffice.
    """
    rows = len(confidences)
    bins = np.minimum((confidences * NUM_BINS).astype(np.int64), NUM_BINS - 1).reshape(rows, -1)
    cells = bins + NUM_BINS * np.arange(rows)[:, None]
    gaps = np.bincount(cells.ravel(), weights=(confidences - outcomes).ravel(), minlength=rows * NUM_BINS)
    return gaps.reshape(rows, NUM_BINS).astype(np.float64)


def auc(scores: Floats, positive: Bools) -> Statistic:
    """Area under the ROC curve; ties count one half. Undefined without both classes."""
    ties, hits = _Ties(scores), positive.astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        below, hits_below = ties.running(weights), ties.running(weights * hits)
        hits_here = _steps(hits_below)
        misses = below - hits_below
        wins = (hits_here * (misses - _steps(misses) / 2.0)).sum(axis=1)
        return _ratio(wins, hits_below[:, -1] * misses[:, -1])

    return statistic


def average_precision(scores: Floats, positive: Bools) -> Statistic:
    """Sum over thresholds of precision times the step in recall. Undefined without both classes."""
    ties, hits = _Ties(-scores), positive.astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        above, hits_above = ties.running(weights), ties.running(weights * hits)
        precision = hits_above / np.maximum(above, 1.0)
        total = hits_above[:, -1]
        both = (total > 0) & (total < above[:, -1])
        return _ratio((_steps(hits_above) * precision).sum(axis=1), np.where(both, total, 0.0))

    return statistic


def mean_defined(statistics: list[Statistic]) -> Statistic:
    """The mean of those statistics (of classes, of labels) that the weighted rows define."""

    def statistic(weights: Floats) -> Floats:
        total, defined = np.zeros(len(weights)), np.zeros(len(weights))
        for part in statistics:
            values = part(weights)
            known = ~np.isnan(values)
            total += np.where(known, values, 0.0)
            defined += known
        return _ratio(total, defined)

    return statistic


def pearson(first: Floats, second: Floats) -> Statistic:
    """Pearson's correlation by weighted moments. Undefined where either side is constant."""
    x, y = standardised(first), standardised(second)
    table = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def statistic(weights: Floats) -> Floats:
        mean_x, mean_y, square_x, square_y, product = ((weights @ table) / weights.sum(axis=1)[:, None]).T
        return _correlation(product - mean_x * mean_y, _variance(square_x, mean_x), _variance(square_y, mean_y))

    return statistic


def standardised(values: Floats) -> Floats:
    """The values shifted to mean 0 and scaled to a range of 1; correlations stay, and moments lose no digits."""
    width = np.ptp(values) if len(values) else 0.0
    return (values - values.mean()) / width if width > 0 else np.zeros(len(values))


def spearman(first: Floats, second: Floats) -> Statistic:
    """Spearman's correlation: Pearson's of the mid-ranks among the weighted rows."""
    x, y = _Ties(first), _Ties(second)

    def statistic(weights: Floats) -> Floats:
        middle = (weights.sum(axis=1)[:, None] + 1.0) / 2.0
        ranks_x, sizes_x = x.midranks(weights)
        ranks_y, sizes_y = y.midranks(weights)
        ranks_x, ranks_y = ranks_x - middle, ranks_y - middle
        rows_x, rows_y = np.take(ranks_x, x.group, axis=1), np.take(ranks_y, y.group, axis=1)
        product = np.einsum("rn,rn,rn->r", weights, rows_x, rows_y)
        return _correlation(
            product,
            np.einsum("rg,rg,rg->r", sizes_x, ranks_x, ranks_x),
            np.einsum("rg,rg,rg->r", sizes_y, ranks_y, ranks_y),
        )

    return statistic


def macro(kind: str, predicted: Any, actual: Any, *, skip_absent: bool) -> Statistic:
    """The mean over columns of "f1", "precision" or "recall"; a column's 0/0 counts as 0, as in scikit-learn.

    predicted, actual: 0/1 tables [n, c], dense or sparse. skip_absent: leave out columns (classes) that have neither
    a predicted nor an actual row.
    """
    hits = predicted * actual

    def statistic(weights: Floats) -> Floats:
        tops, given, wanted = _sums(weights, hits), _sums(weights, predicted), _sums(weights, actual)
        values = column_scores(kind, tops, given, wanted)
        counted = (given + wanted > 0) if skip_absent else np.ones(values.shape, dtype=np.bool_)
        return _ratio((values * counted).sum(axis=1), counted.sum(axis=1))

    return statistic


def column_scores(kind: str, hits: Floats, predicted: Floats, actual: Floats) -> Floats:
    """F1, precision or recall from counts of any shape; 0 where there is nothing to divide by."""
    parts: dict[str, tuple[Floats, Floats]] = {
        "f1": (2.0 * hits, predicted + actual),
        "precision": (hits, predicted),
        "recall": (hits, actual),
    }
    top, bottom = parts[kind]
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)


def mcc(predicted: Any, actual: Any) -> Statistic:
    """Matthews' correlation of one-hot tables [n, c] (Gorodkin's R_K); 0 where either side is constant, as in scikit-learn.

    A run that says yes once in many rows says it in some draws only: without the others, intervals would stand too high.
    """
    hits = np.asarray((predicted * actual).sum(axis=1)).ravel()

    def statistic(weights: Floats) -> Floats:
        rows = weights.sum(axis=1)
        given, wanted = _sums(weights, predicted), _sums(weights, actual)
        found = _correlation(
            (weights @ hits) * rows - (given * wanted).sum(axis=1),
            rows**2 - (given**2).sum(axis=1),
            rows**2 - (wanted**2).sum(axis=1),
        )
        return np.nan_to_num(found, nan=0.0)

    return statistic


def one_hot(classes: Integers, num_classes: int) -> Any:
    """A sparse 0/1 table [n, num_classes]: many classes cost no more than few."""
    from scipy.sparse import csr_array

    rows = len(classes)
    return csr_array((np.ones(rows), classes, np.arange(rows + 1)), shape=(rows, num_classes))


def _sums(weights: Floats, table: Any) -> Floats:
    """The weighted sum of each column of a dense or sparse table [n, c]."""
    return np.asarray(weights @ table)


def _steps(running: Floats) -> Floats:
    return np.diff(running, axis=1, prepend=0.0)


def _variance(square: Floats, average: Floats) -> Floats:
    variance = square - average**2
    return np.where(variance > _SPREAD * square, variance, 0.0)


def _correlation(product: Floats, first: Floats, second: Floats) -> Floats:
    return np.clip(_ratio(product, np.sqrt(first) * np.sqrt(second)), -1.0, 1.0)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    quotients: Floats = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    return quotients
