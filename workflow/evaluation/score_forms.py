"""Every score metric of given rows in both forms: its value by scikit-learn or scipy, and its statistic of row weights.

Knows nothing of how rows are resampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from workflow.evaluation import weighted_metrics as weighted
from workflow.evaluation.metrics import Floats, Metric, undefined
from workflow.evaluation.resampling import Statistic
from workflow.evaluation.weighted_metrics import Bools, Integers
from workflow.metric_names import SCORE_METRICS

SMALLEST_PROBABILITY = 1e-7
"""The log loss takes no probability for smaller: a certain and wrong row costs 16.1 nats, not infinitely many."""
_ROUNDING = 1e-6
"""How far outside [0, 1] a probability may lie: softmax in low precision."""
_FEWEST_FOR_CORRELATION = 3


@dataclass(frozen=True)
class Form:
    """A metric's value (or the reason why there is none), and its statistic of row weights."""

    point: Metric
    statistic: Statistic


def forms(problem: str, predictions: Floats, targets: Floats, *, unit: float = 1.0) -> dict[str, Form]:
    """The forms of SCORE_METRICS[problem] without eval_loss, in that order.

    predictions, targets: [n] for binary and regression, [n, c] for multiclass and multilabel; all in [0, 1] but for
    regression. All are undefined without rows and where rows hold NaN or infinity.
    """
    given, wanted = np.asarray(predictions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    assert given.shape == wanted.shape, f"predictions {given.shape} against targets {wanted.shape}"
    assert given.ndim == (2 if problem in ("multiclass", "multilabel") else 1), f"{problem} of shape {given.shape}"
    names = [name for name in SCORE_METRICS[problem] if name != "eval_loss"]
    reason = _unusable(given, wanted)
    if reason:
        return {name: Form(undefined(reason, len(wanted)), _nowhere) for name in names}
    found = _PROBLEMS[problem](given, wanted, unit)
    return {name: found[name] for name in names}


def as_measured(problem: str, vectors: Floats) -> Floats:
    """Vectors [rows, width] as metrics and calibration take them: the share of yes [rows], the number [rows], or whole."""
    column = {"binary": 1, "regression": 0}.get(problem)
    return vectors if column is None else vectors[:, column]


def _unusable(given: Floats, wanted: Floats) -> str | None:
    rows = len(wanted)
    if rows == 0:
        return "no rows"
    for what, values in (("predictions", given), ("targets", wanted)):
        strange = rows - int(np.isfinite(values.reshape(rows, -1)).all(axis=1).sum())
        if strange:
            return f"{strange} of {rows} {what} are NaN or infinite"
    return None


def _nowhere(weights: Floats) -> Floats:
    return np.full(len(weights), np.nan)


def _binary(given: Floats, wanted: Floats, unit: float) -> dict[str, Form]:
    scores, targets = _probabilities(given), _probabilities(wanted)
    predicted, actual = scores >= 0.5, targets >= 0.5
    side = "at least" if actual.all() else "below"
    return {
        **_class_forms(predicted.astype(np.int64), actual.astype(np.int64), 2),
        "f1": _f1_form(predicted.astype(np.float64), actual.astype(np.float64)),
        **_ranking_forms(
            scores[:, None], actual[:, None], f"all {len(targets)} targets are {side} 0.5: {{}} needs both classes"
        ),
        **_regression(scores, targets, unit),
        "brier": _mean_form((scores - targets) ** 2),
        "ece": _ece_form(scores, targets),
        "log_loss": _mean_form(row_log_losses(scores, targets)),
    }


def _multiclass(given: Floats, wanted: Floats, _: float) -> dict[str, Form]:
    probabilities, targets = _probabilities(given), _probabilities(wanted)
    rows, classes = targets.shape
    predicted, actual = probabilities.argmax(axis=1), targets.argmax(axis=1)
    return {
        **_class_forms(predicted, actual, classes),
        **_ranking_forms(
            probabilities,
            actual[:, None] == np.arange(classes),
            f"all {rows} targets are of one class: {{}} needs two",
        ),
        "brier": _mean_form(((probabilities - targets) ** 2).sum(axis=1)),
        "ece": _ece_form(probabilities.max(axis=1), targets[np.arange(rows), predicted]),
        "log_loss": _mean_form(row_log_losses(probabilities, targets)),
    }


def _multilabel(given: Floats, wanted: Floats, _: float) -> dict[str, Form]:
    probabilities, targets = _probabilities(given), _probabilities(wanted)
    predicted, actual = probabilities >= 0.5, targets >= 0.5
    label_losses = row_log_losses(probabilities.ravel(), targets.ravel())
    return {
        "accuracy": _mean_form((predicted == actual).all(axis=1).astype(np.float64)),
        **_macro_forms(predicted.astype(np.float64), actual.astype(np.float64), skip_absent=False),
        **_ranking_forms(
            probabilities, actual, f"no label has both classes among the {len(targets)} targets, as {{}} needs"
        ),
        "brier": _mean_form(((probabilities - targets) ** 2).mean(axis=1)),
        "ece": _ece_form(probabilities, targets),
        "log_loss": _mean_form(label_losses.reshape(targets.shape).mean(axis=1)),
    }


def _regression(given: Floats, wanted: Floats, unit: float) -> dict[str, Form]:
    return {
        "spearman": Form(_spearman(given, wanted), weighted.spearman(given, wanted)),
        "pearson": Form(_pearson(given, wanted), weighted.pearson(given, wanted)),
        "rmse": Form(
            _known(unit * sk.root_mean_squared_error(wanted, given), len(wanted)),
            weighted.root_mean((given - wanted) ** 2, unit=unit),
        ),
    }


_PROBLEMS: dict[str, Callable[[Floats, Floats, float], dict[str, Form]]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _probabilities(values: Floats) -> Floats:
    low, high = values.min(), values.max()
    assert low >= -_ROUNDING and high <= 1 + _ROUNDING, f"probabilities from {low} to {high}"  # noqa: PT018
    return np.clip(values, 0.0, 1.0)


def row_log_losses(probabilities: Floats, targets: Floats) -> Floats:
    """Cross-entropy of each row with its target, [n]: of distributions [n, c], or of probabilities of yes [n]."""
    if probabilities.ndim == 1:
        probabilities, targets = (np.stack([1.0 - values, values], axis=1) for values in (probabilities, targets))
    losses: Floats = -(targets * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))).sum(axis=1)
    return losses


def _known(value: float, rows: int, p_value: float | None = None) -> Metric:
    return Metric(float(value), None, None, rows, p_value=p_value)


def _mean_form(values: Floats) -> Form:
    return Form(_known(values.mean(), len(values)), weighted.mean(values))


def _ece_form(confidences: Floats, outcomes: Floats) -> Form:
    gaps = weighted.bin_gaps(confidences, outcomes).sum(axis=0)
    value = np.abs(gaps).sum() / confidences.size
    return Form(_known(value, len(confidences)), weighted.calibration_error(confidences, outcomes))


def _class_forms(predicted: Integers, actual: Integers, num_classes: int) -> dict[str, Form]:
    given, wanted = weighted.one_hot(predicted, num_classes), weighted.one_hot(actual, num_classes)
    return {
        "accuracy": _mean_form((predicted == actual).astype(np.float64)),
        **_macro_forms(given, wanted, skip_absent=True),
        "mcc": Form(_mcc(predicted, actual, weighted.mcc(given, wanted)), weighted.mcc(given, wanted)),
    }


def _f1_form(predicted: Floats, actual: Floats) -> Form:
    """F1 of the positive class, of 0/1 values [n], as GLUE has it for MRPC and QQP; undefined without any yes."""
    rows = len(actual)
    statistic = weighted.macro("f1", predicted[:, None], actual[:, None], skip_absent=True)
    if not (predicted.any() or actual.any()):
        return Form(undefined(f"all {rows} targets and predictions are below 0.5: F1 needs a yes", rows), statistic)
    return Form(_known(sk.f1_score(actual, predicted, zero_division=0), rows), statistic)


def _mcc(predicted: Integers, actual: Integers, statistic: Statistic) -> Metric:
    rows = len(actual)
    for what, classes in (("targets", actual), ("predictions", predicted)):
        if (classes == classes[0]).all():
            return undefined(f"all {rows} {what} are of one class: mcc needs two", rows)
    # scikit-learn warns of multiclass targets with few rows a class; a test holds this form to its matthews_corrcoef.
    return _known(statistic(np.ones((1, rows)))[0], rows)


def _macro_forms(predicted: Any, actual: Any, *, skip_absent: bool) -> dict[str, Form]:
    """F1, precision and recall of 0/1 tables [n, c], dense or sparse."""
    values = _column_values(predicted, actual, skip_absent=skip_absent).mean(axis=0)
    return {
        f"{kind}_macro": Form(
            _known(value, predicted.shape[0]), weighted.macro(kind, predicted, actual, skip_absent=skip_absent)
        )
        for kind, value in zip(("precision", "recall", "f1"), values, strict=True)
    }


def _column_values(predicted: Any, actual: Any, *, skip_absent: bool) -> Floats:
    # Column by column: scikit-learn reads a table of one label as two classes.
    columns = np.arange(actual.shape[1])
    if skip_absent:
        columns = columns[(predicted.sum(axis=0) + actual.sum(axis=0)) > 0]
    scores = [
        sk.precision_recall_fscore_support(
            _column(actual, number), _column(predicted, number), labels=[1], average=None, zero_division=0
        )[:3]
        for number in columns
    ]
    return np.array(scores).reshape(len(columns), 3)


def _column(table: Any, number: int) -> Integers:
    column = table[:, [number]]
    return np.asarray(column if isinstance(table, np.ndarray) else column.toarray(), dtype=np.int64).ravel()


def _ranking_forms(scores: Floats, positive: Bools, reason: str) -> dict[str, Form]:
    """AUC and average precision, averaged over those columns of [n, c] that have both classes."""
    columns = [number for number in range(positive.shape[1]) if 0 < positive[:, number].sum() < len(positive)]

    def form(title: str, score: Callable[[Bools, Floats], float], fast: Callable[[Floats, Bools], Statistic]) -> Form:
        values = [score(positive[:, number], scores[:, number]) for number in columns]
        point = _known(float(np.mean(values)), len(scores)) if values else undefined(reason.format(title), len(scores))
        return Form(point, weighted.mean_defined([fast(scores[:, number], positive[:, number]) for number in columns]))

    return {
        "auc": form("AUC", sk.roc_auc_score, weighted.auc),
        "average_precision": form("average precision", sk.average_precision_score, weighted.average_precision),
    }


def _spearman(given: Floats, wanted: Floats) -> Metric:
    reason = _no_correlation(given, wanted, least_spread=0.0)
    if reason:
        return undefined(reason, len(wanted))
    found = stats.spearmanr(given, wanted)
    return _known(found.statistic, len(wanted), float(found.pvalue))


def _pearson(given: Floats, wanted: Floats) -> Metric:
    # Differences in the last digits are ranks, but no moments.
    reason = _no_correlation(given, wanted, least_spread=1e-12)
    if reason:
        return undefined(reason, len(wanted))
    found = stats.pearsonr(weighted.standardised(given), weighted.standardised(wanted))
    return _known(found.statistic, len(wanted), float(found.pvalue))


def _no_correlation(given: Floats, wanted: Floats, *, least_spread: float) -> str | None:
    rows = len(wanted)
    if rows < _FEWEST_FOR_CORRELATION:
        return f"a correlation needs {_FEWEST_FOR_CORRELATION} rows, and there are {rows}"
    for what, values in (("targets", wanted), ("predictions", given)):
        if np.ptp(values) <= least_spread * np.abs(values).max():
            return f"all {rows} {what} are equal: a correlation needs them to differ"
    return None
