"""Maps from a model's logits to calibrated probabilities, fitted on rows: temperature, Platt's sigmoid, isotonic steps.

Also the best decision thresholds. Pure functions of numbers; knows nothing of which map is chosen or how it is stored.
Binary logits are [n, 2] with columns (no, yes) as everywhere; their margin is yes - no.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from workflow.evaluation.metrics import Floats
from workflow.evaluation.weighted_metrics import column_scores

THRESHOLD_METRICS = ("accuracy", "f1_macro", "mcc")
TEMPERATURES = (1e-2, 1e4)
"""The range searched: rows that the model gets all right would drive it to 0."""
LARGEST_MARGIN = 1e6
"""Beyond it every probability is 0 or 1, and squares would overflow."""
_EQUAL = 1e-9
"""Margins within this share of their size are equal: no slope can be fitted to them."""


def margins(logits: Floats) -> Floats:
    """yes - no of binary logits [n, 2], at most LARGEST_MARGIN either way: [n]."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits give NaN, which the caller reports
        margin: Floats = np.clip(logits[:, 1] - logits[:, 0], -LARGEST_MARGIN, LARGEST_MARGIN)
        return margin


def below_largest(logits: Floats) -> Floats:
    """Each logit less its row's largest, [n, c], at most LARGEST_MARGIN below: the same softmax, at any temperature."""
    with np.errstate(invalid="ignore", over="ignore"):
        shifted: Floats = logits - logits.max(axis=1, keepdims=True)
        return np.maximum(shifted, -LARGEST_MARGIN)


def fit_temperature(logits: Floats, targets: Floats) -> float:
    """The T in TEMPERATURES with the least cross-entropy of softmax(logits / T) [n, c] with distributions [n, c].

    It stays 1 unless another is better.
    """

    shifted = below_largest(logits)

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(shifted / np.exp(log_temperature), axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x)) if loss(found.x) < loss(0.0) else 1.0


def fit_platt(margin: Floats, targets: Floats) -> tuple[float, float]:
    """(a, b) of sigmoid(a * margin + b) with a >= 0, for targets [n] in [0, 1].

    As Platt (1999), targets are drawn in by one invented row of each class, so that separable rows have finite a and b.
    """
    positives = targets.sum()
    lowest, highest = 1.0 / (len(targets) - positives + 2.0), (positives + 1.0) / (positives + 2.0)
    wanted = lowest + (highest - lowest) * targets
    centre, width = margin.mean(), margin.std()
    level = float(np.log(wanted.mean()) - np.log1p(-wanted.mean()))
    if np.ptp(margin) <= _EQUAL * max(1.0, float(np.abs(margin).max())):
        return 1.0, float(level - centre)
    scaled = (margin - centre) / width

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        slope, offset = coefficients
        line = slope * scaled + offset
        error = expit(line) - wanted
        value = float((np.logaddexp(0.0, line) - wanted * line).mean())
        return value, np.array([(error * scaled).mean(), error.mean()])

    found = minimize(
        loss,
        np.array([1.0, level]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500},
    )
    slope = float(found.x[0] / width)
    return slope, float(found.x[1] - slope * centre)


def fit_isotonic(margin: Floats, targets: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Breakpoints (scores, probabilities), both ascending, of the best monotone map of the score sigmoid(margin)."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(expit(margin), targets)
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())


def apply_isotonic(margin: Floats, points: tuple[tuple[float, ...], tuple[float, ...]]) -> Floats:
    """Interpolates between the breakpoints; outside them their ends."""
    return np.asarray(np.clip(np.interp(expit(margin), *points), 0.0, 1.0), dtype=np.float64)


def best_thresholds(scores: Floats, targets: Floats) -> dict[str, float]:
    """For each of THRESHOLD_METRICS the threshold t whose decisions `score >= t` are best, for scores [n] in [0, 1].

    A threshold lies midway between neighbouring scores, or is 0.5 itself; of equally good ones the nearest to 0.5.
    """
    distinct, group = np.unique(scores, return_inverse=True)
    positive = (targets >= 0.5).astype(np.float64)
    # Cut k calls the groups from k on a yes; the last cut none.
    below = np.concatenate([[0.0], np.cumsum(np.bincount(group))])
    positive_below = np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=positive))])
    wanted = np.array([len(scores) - positive.sum(), positive.sum()])
    given = np.stack([below, len(scores) - below], axis=1)
    hits = np.stack([below - positive_below, wanted[1] - positive_below], axis=1)
    cuts = _cuts(distinct)
    return {name: _nearest_best(cuts, _MEASURES[name](hits, given, wanted)) for name in THRESHOLD_METRICS}


def _cuts(distinct: Floats) -> Floats:
    edges = np.concatenate([[0.0], distinct, [max(1.0, np.nextafter(distinct[-1], 2.0))]])
    middle = (edges[:-1] + edges[1:]) / 2.0
    # Between neighbouring numbers there is no third, and the score above a cut must count as a yes, the one below not.
    cuts = np.where(middle > edges[:-1], middle, edges[1:])
    cuts[0] = edges[1] / 2.0
    cuts[np.searchsorted(distinct, 0.5)] = 0.5
    return cuts


def _nearest_best(cuts: Floats, values: Floats) -> float:
    best = cuts[values >= values.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _accuracy(hits: Floats, _: Floats, wanted: Floats) -> Floats:
    return np.asarray(hits.sum(axis=1) / wanted.sum(), dtype=np.float64)


def _f1_macro(hits: Floats, given: Floats, wanted: Floats) -> Floats:
    present = given + wanted > 0
    values = column_scores("f1", hits, given, np.broadcast_to(wanted, given.shape))
    return np.asarray((values * present).sum(axis=1) / present.sum(axis=1), dtype=np.float64)


def _mcc(hits: Floats, given: Floats, wanted: Floats) -> Floats:
    """0 where all decisions are the same: better than a negative correlation, worse than any other."""
    rows = wanted.sum()
    product = hits.sum(axis=1) * rows - given @ wanted
    spread = np.sqrt(rows**2 - (given**2).sum(axis=1)) * np.sqrt(rows**2 - (wanted**2).sum())
    return np.asarray(np.divide(product, spread, out=np.zeros(len(product)), where=spread > 0), dtype=np.float64)


_MEASURES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "accuracy": _accuracy,
    "f1_macro": _f1_macro,
    "mcc": _mcc,
}
