"""One prediction from several runs' predictions for the same rows.

Pure functions of numbers; knows nothing of where predictions come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workflow.evaluation.metrics import Floats, Metric, undefined

OF_ORDER = ("auc", "average_precision", "spearman")
"""Metrics that ask for nothing but the rows' order."""
NO_PROBABILITIES = "mean ranks are no probabilities: only metrics of order have a meaning"


def mean_scores(predictions: Sequence[Floats]) -> Floats:
    """The mean over runs of probabilities or numbers of equal shape, [n] or [n, c]."""
    means: Floats = np.mean(_stacked(predictions), axis=0)
    return means


def mean_ranks(predictions: Sequence[Floats]) -> Floats:
    """The mean over runs of each row's rank by its score [n], scaled so that the lowest is 0 and the highest 1.

    Equal scores share the mean of their ranks; one row alone, or equal scores throughout, stand at 0.5. Ranks make runs
    of unlike calibration comparable, but are no probabilities: only metrics of order keep their meaning.
    """
    from scipy.stats import rankdata

    scores = _stacked(predictions)
    assert scores.ndim == 2, f"scores of shape {scores.shape[1:]}"
    rows = scores.shape[1]
    if rows < 2:
        return np.full(rows, 0.5)
    ranks = (rankdata(scores, axis=1) - 1.0) / (rows - 1.0)
    means: Floats = np.mean(ranks, axis=0)
    return means


def of_order(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics of mean ranks: those of order as they are, the others undefined."""
    return {
        name: metric if name in OF_ORDER else undefined(NO_PROBABILITIES, metric.n) for name, metric in metrics.items()
    }


def _stacked(predictions: Sequence[Floats]) -> Floats:
    shapes = {np.shape(part) for part in predictions}
    assert len(shapes) == 1, f"predictions of shapes {sorted(shapes)}"
    return np.stack([np.asarray(part, dtype=np.float64) for part in predictions])
