"""Metrics of predicted probabilities (or numbers) against targets, each with a bootstrap 95 % interval over the eval rows.

Pure functions of numbers; knows nothing of models, and of a task only its problem's name.

Targets may be soft. Where a metric needs classes, a probability of at least 0.5 is a yes, in targets and predictions
alike, and the class of a distribution is its largest entry. A metric that the rows do not define (AUC of one class, a
correlation with a constant) has no value but a reason.
"""

from __future__ import annotations

from collections.abc import Collection

from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.resampling import with_intervals
from workflow.evaluation.score_forms import forms


def score_metrics(
    problem: str,
    predictions: Floats,
    targets: Floats,
    *,
    unit: float = 1.0,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> dict[str, Metric]:
    """The metrics of SCORE_METRICS[problem] without eval_loss, in that order; of them only `names` where given.

    Binary and regression take [n], multiclass and multilabel [n, c]. `unit`: width of the user's target range, for rmse.
    Undefined, with a reason, are all metrics of no rows and of rows that hold NaN or infinity.
    """
    found = {
        name: form
        for name, form in forms(problem, predictions, targets, unit=unit).items()
        if names is None or name in names
    }
    points = {name: form.point for name, form in found.items()}
    return with_intervals(points, {name: form.statistic for name, form in found.items()}, len(targets), seed=seed)


def binary_metrics(scores: Floats, targets: Floats, *, unit: float = 1.0, seed: int = 0) -> dict[str, Metric]:
    """Metrics of probabilities of yes [n] against targets [n], both in [0, 1]. rmse is in the user's units (times `unit`)."""
    return score_metrics("binary", scores, targets, unit=unit, seed=seed)


def multiclass_metrics(probabilities: Floats, targets: Floats, *, seed: int = 0) -> dict[str, Metric]:
    """Metrics of distributions [n, c] against distributions [n, c]. AUC is one-vs-rest, averaged over the classes present.

    brier is the sum over classes of the squared error (0 to 2). ece compares the largest probability with the target's
    mass on that class.
    """
    return score_metrics("multiclass", probabilities, targets, seed=seed)


def multilabel_metrics(probabilities: Floats, targets: Floats, *, seed: int = 0) -> dict[str, Metric]:
    """Metrics of label probabilities [n, c] against targets [n, c]. accuracy: all labels of the row right.

    AUC and average precision are averaged over the labels with both classes; F1, precision and recall over all labels
    (0/0 is 0, as in scikit-learn); brier and log_loss are means over labels, ece is over all decisions.
    """
    return score_metrics("multilabel", probabilities, targets, seed=seed)


def regression_metrics(predictions: Floats, targets: Floats, *, unit: float = 1.0, seed: int = 0) -> dict[str, Metric]:
    """spearman, pearson (both with p_value) and rmse (times `unit`) of numbers [n] against numbers [n]."""
    return score_metrics("regression", predictions, targets, unit=unit, seed=seed)
