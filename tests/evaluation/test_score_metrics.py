"""Score metrics against scikit-learn and scipy, on the rows and on really resampled rows; their intervals and edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from workflow.evaluation import resampling
from workflow.evaluation.resampling import drawn_weights, percentile_interval, swaps, with_intervals
from workflow.evaluation.score_forms import forms
from workflow.evaluation.score_metrics import (
    binary_metrics,
    multiclass_metrics,
    multilabel_metrics,
    regression_metrics,
    score_metrics,
)
from workflow.metric_names import SCORE_METRICS

PROBLEMS = tuple(SCORE_METRICS)


def slow_ece(confidences, outcomes) -> float:
    """The textbook's loop over bins."""
    confidences, outcomes = np.ravel(confidences), np.ravel(outcomes)
    total = 0.0
    for number in range(15):
        inside = [i for i, value in enumerate(confidences) if min(int(value * 15), 14) == number]
        if inside:
            gap = sum(confidences[i] for i in inside) / len(inside) - sum(outcomes[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(gap)
    return total


def slow_log_loss(probabilities, targets) -> float:
    return float(np.mean(-np.sum(targets * np.log(np.maximum(probabilities, 1e-7)), axis=1)))


def macro(function, actual, predicted):
    return function(actual, predicted, average="macro", zero_division=0)


def class_values(actual, predicted) -> dict:
    constant = len(set(actual)) == 1 or len(set(predicted)) == 1
    return {
        "accuracy": sk.accuracy_score(actual, predicted),
        "f1_macro": macro(sk.f1_score, actual, predicted),
        "precision_macro": macro(sk.precision_score, actual, predicted),
        "recall_macro": macro(sk.recall_score, actual, predicted),
        "mcc": 0.0 if constant else sk.matthews_corrcoef(actual, predicted),
    }


def mean_over_columns(function, positive, scores) -> float:
    columns = [k for k in range(positive.shape[1]) if len(set(positive[:, k])) == 2]
    return np.mean([function(positive[:, k], scores[:, k]) for k in columns]) if columns else math.nan


def slow_binary(scores, targets, unit=1.0) -> dict:
    actual, predicted = targets >= 0.5, scores >= 0.5
    two = len(set(actual)) == 2
    both = np.stack([1 - scores, scores], axis=1), np.stack([1 - targets, targets], axis=1)
    return {
        **class_values(actual, predicted),
        **slow_regression(scores, targets, unit),
        "f1": sk.f1_score(actual, predicted, zero_division=0) if (actual | predicted).any() else math.nan,
        "auc": sk.roc_auc_score(actual, scores) if two else math.nan,
        "average_precision": sk.average_precision_score(actual, scores) if two else math.nan,
        "brier": np.mean((scores - targets) ** 2),
        "ece": slow_ece(scores, targets),
        "log_loss": slow_log_loss(*both),
    }


def slow_multiclass(probabilities, targets, unit=1.0) -> dict:
    actual, predicted = targets.argmax(axis=1), probabilities.argmax(axis=1)
    positive = np.eye(targets.shape[1], dtype=bool)[actual]
    return {
        **class_values(actual, predicted),
        "auc": mean_over_columns(sk.roc_auc_score, positive, probabilities),
        "brier": np.mean(np.sum((probabilities - targets) ** 2, axis=1)),
        "ece": slow_ece(probabilities.max(axis=1), targets[np.arange(len(targets)), predicted]),
        "log_loss": slow_log_loss(probabilities, targets),
    }


def slow_multilabel(probabilities, targets, unit=1.0) -> dict:
    actual, predicted = (targets >= 0.5).astype(int), (probabilities >= 0.5).astype(int)
    columns = range(targets.shape[1])
    pairs = [[np.stack([1 - v[:, k], v[:, k]], axis=1) for v in (probabilities, targets)] for k in columns]
    return {
        "accuracy": sk.accuracy_score(actual, predicted),
        "auc": mean_over_columns(sk.roc_auc_score, actual, probabilities),
        "average_precision": mean_over_columns(sk.average_precision_score, actual, probabilities),
        "f1_macro": macro(sk.f1_score, actual, predicted),
        "precision_macro": macro(sk.precision_score, actual, predicted),
        "recall_macro": macro(sk.recall_score, actual, predicted),
        "brier": np.mean((probabilities - targets) ** 2),
        "ece": slow_ece(probabilities, targets),
        "log_loss": np.mean([slow_log_loss(*pair) for pair in pairs]),
    }


def slow_regression(predictions, targets, unit=1.0) -> dict:
    constant = np.ptp(predictions) == 0 or np.ptp(targets) == 0
    return {
        "spearman": math.nan if constant else stats.spearmanr(predictions, targets).statistic,
        "pearson": math.nan if constant else stats.pearsonr(predictions, targets).statistic,
        "rmse": unit * math.sqrt(sk.mean_squared_error(targets, predictions)),
    }


SLOW = {
    "binary": slow_binary,
    "multiclass": slow_multiclass,
    "multilabel": slow_multilabel,
    "regression": slow_regression,
}


def example(problem, rows, seed, *, ties, soft, columns=4):
    """Predictions that know something of the targets; `ties` rounds both to one decimal."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns) if problem in ("multiclass", "multilabel") else (rows,)
    hidden, noise = rng.normal(size=shape), rng.normal(size=shape)
    if problem == "regression":
        predictions, targets = hidden * 3 + 100, (hidden + noise) * 5
    elif problem == "multiclass":
        predictions = np.exp(hidden) / np.exp(hidden).sum(axis=1, keepdims=True)
        mixed = np.exp(2 * (hidden + noise))
        targets = mixed / mixed.sum(axis=1, keepdims=True)
    else:
        predictions, targets = 1 / (1 + np.exp(-hidden)), 1 / (1 + np.exp(-hidden - noise))
    if ties:
        predictions, targets = np.round(predictions, 1), np.round(targets, 1)
    if not soft and problem == "multiclass":
        targets = np.eye(columns)[targets.argmax(axis=1)]
    elif not soft and problem != "regression":
        targets = np.round(targets)
    return predictions, targets


CASES = [(problem, rows, ties, soft) for problem in PROBLEMS for rows in (7, 60) for ties in (0, 1) for soft in (0, 1)]


@pytest.mark.parametrize(("problem", "rows", "ties", "soft"), CASES)
def test_fast_forms_equal_the_libraries_on_resampled_rows(problem, rows, ties, soft):
    predictions, targets = example(problem, rows, rows, ties=ties, soft=soft)
    found = forms(problem, predictions, targets, unit=3.0)
    weights = next(iter(drawn_weights(rows, seed=1, num_draws=25)))
    values = {name: form.statistic(weights) for name, form in found.items()}
    for number, counts in enumerate(weights):
        drawn = np.repeat(np.arange(rows), counts.astype(int))
        expected = SLOW[problem](predictions[drawn], targets[drawn], 3.0)
        for name in found:
            assert values[name][number] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("problem", "rows", "ties", "soft"), CASES)
def test_values_equal_the_libraries_and_the_fast_forms_at_unit_weights(problem, rows, ties, soft):
    predictions, targets = example(problem, rows, rows + 1, ties=ties, soft=soft)
    expected = SLOW[problem](predictions, targets, 3.0)
    for name, form in forms(problem, predictions, targets, unit=3.0).items():
        undefined = 0.0 if name == "mcc" else math.nan  # of draws, mcc counts as 0; as a value it has a reason
        value = undefined if form.point.value is None else form.point.value
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name
        assert form.statistic(np.ones((2, rows))) == pytest.approx([expected[name]] * 2, abs=1e-9, nan_ok=True), name


def test_hard_log_loss_and_brier_are_the_libraries():
    scores, targets = example("binary", 50, 3, ties=False, soft=False)
    found = binary_metrics(scores, targets)
    assert found["log_loss"].value == pytest.approx(sk.log_loss(targets, scores))
    assert found["brier"].value == pytest.approx(sk.brier_score_loss(targets, scores))
    probabilities, wanted = example("multiclass", 50, 3, ties=False, soft=False)
    assert multiclass_metrics(probabilities, wanted)["log_loss"].value == pytest.approx(
        sk.log_loss(wanted.argmax(axis=1), probabilities)
    )


@pytest.mark.parametrize("problem", PROBLEMS)
def test_names_order_rows_and_intervals(problem):
    predictions, targets = example(problem, 80, 5, ties=True, soft=True)
    found = score_metrics(problem, predictions, targets)
    assert tuple(found) == tuple(name for name in SCORE_METRICS[problem] if name != "eval_loss")
    for name, metric in found.items():
        assert metric.n == 80
        assert metric.low < metric.high, name
        assert (metric.p_value is not None) == (name in ("spearman", "pearson"))
        if name != "ece":  # which is at least 0, so that resampling moves it up
            assert metric.low < metric.value < metric.high, name


def test_each_problem_has_its_function():
    for problem, function in zip(
        PROBLEMS, (binary_metrics, multiclass_metrics, multilabel_metrics, regression_metrics), strict=True
    ):
        predictions, targets = example(problem, 30, 5, ties=True, soft=True)
        assert function(predictions, targets, seed=4) == score_metrics(problem, predictions, targets, seed=4)


def test_only_the_named_metrics_with_the_same_draws():
    predictions, targets = example("binary", 40, 5, ties=True, soft=True)
    whole = score_metrics("binary", predictions, targets, seed=1)
    part = score_metrics("binary", predictions, targets, seed=1, names=("ece", "auc"))
    assert part == {name: whole[name] for name in ("auc", "ece")}
    assert list(part) == ["auc", "ece"]


def test_seeds_decide_the_interval_only():
    predictions, targets = example("binary", 40, 5, ties=True, soft=True)
    first, again, other = (score_metrics("binary", predictions, targets, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["auc"].value == other["auc"].value
    assert (first["auc"].low, first["auc"].high) != (other["auc"].low, other["auc"].high)


def test_rmse_is_in_the_users_units():
    found = binary_metrics(np.array([0.5, 0.5, 0.0]), np.array([0.0, 1.0, 0.0]), unit=10.0)
    assert found["rmse"].value == pytest.approx(10 * math.sqrt(0.5 / 3))
    assert found["rmse"].high <= 5.0 + 1e-9
    assert regression_metrics(np.array([0.0, 2.0]), np.array([0.0, 0.0]), unit=3.0)["rmse"].value == pytest.approx(
        3 * math.sqrt(2)
    )


def test_p_values_are_scipys():
    predictions, targets = example("regression", 30, 5, ties=False, soft=False)
    found = regression_metrics(predictions, targets)
    assert found["spearman"].p_value == pytest.approx(stats.spearmanr(predictions, targets).pvalue)
    assert found["pearson"].p_value == pytest.approx(stats.pearsonr(predictions, targets).pvalue)


def test_soft_targets_count_from_one_half():
    found = binary_metrics(np.array([0.5, 0.49, 0.9]), np.array([0.5, 0.49, 0.51]))
    assert found["accuracy"].value == 1.0


def test_a_certain_and_wrong_row_costs_a_finite_loss():
    found = binary_metrics(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    assert found["log_loss"].value == pytest.approx(-math.log(1e-7) / 2)
    assert multiclass_metrics(np.eye(2), 1 - np.eye(2))["log_loss"].value == pytest.approx(-math.log(1e-7))
    assert binary_metrics(np.array([1.0, 0.0]), np.array([1.0, 0.0]))["log_loss"].value == 0.0


def test_scores_on_the_edge_of_the_last_bin():
    assert binary_metrics(np.array([1.0, 14.5 / 15]), np.array([1.0, 1.0]))["ece"].value == pytest.approx(0.25 / 15)


# Edges.


def reasons(found: dict) -> dict:
    for metric in found.values():
        assert (metric.value is None) == (metric.reason is not None)
        for number in (metric.value, metric.low, metric.high, metric.p_value):
            assert number is None or math.isfinite(number)
    return {name: metric.reason for name, metric in found.items() if metric.reason}


def test_one_class():
    scores = np.linspace(0.1, 0.9, 40)
    below = reasons(binary_metrics(scores, scores * 0.4))
    assert below == {
        "auc": "all 40 targets are below 0.5: AUC needs both classes",
        "average_precision": "all 40 targets are below 0.5: average precision needs both classes",
        "mcc": "all 40 targets are of one class: mcc needs two",
    }
    above = reasons(binary_metrics(scores, np.ones(40)))
    assert above["auc"] == "all 40 targets are at least 0.5: AUC needs both classes"
    assert above["spearman"] == "all 40 targets are equal: a correlation needs them to differ"
    one = reasons(multiclass_metrics(np.full((9, 3), 1 / 3), np.eye(3)[[1] * 9]))
    assert one["auc"] == "all 9 targets are of one class: AUC needs two"
    none = reasons(multilabel_metrics(np.full((9, 3), 0.4), np.eye(3)[[1] * 9]))
    assert none["auc"] == "no label has both classes among the 9 targets, as AUC needs"


def test_constant_predictions():
    targets = np.array([0.0, 1.0, 1.0, 0.0])
    found = binary_metrics(np.full(4, 0.3), targets)
    assert reasons(found) == {
        "mcc": "all 4 predictions are of one class: mcc needs two",
        "spearman": "all 4 predictions are equal: a correlation needs them to differ",
        "pearson": "all 4 predictions are equal: a correlation needs them to differ",
    }
    assert found["auc"].value == 0.5
    assert found["f1_macro"].value == pytest.approx(1 / 3)


def test_f1_is_of_the_positive_class():
    scores, targets = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    assert binary_metrics(scores, targets)["f1"].value == sk.f1_score(targets, scores >= 0.5) == 0.5
    assert binary_metrics(scores, np.array([1.0, 0.0, 0.0, 0.0]))["f1"].value == pytest.approx(2 / 3)
    assert binary_metrics(1 - targets, targets)["f1"].value == 0.0
    no_yes = reasons(binary_metrics(np.array([0.3, 0.1]), np.zeros(2)))
    assert no_yes["f1"] == "all 2 targets and predictions are below 0.5: F1 needs a yes"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_few_rows(problem):
    for rows in (0, 1, 2, 3):
        predictions, targets = example(problem, rows, 1, ties=False, soft=True)
        found = score_metrics(problem, predictions, targets)
        why = reasons(found)
        assert all(metric.n == rows for metric in found.values())
        if rows == 0:
            assert set(why.values()) == {"no rows"}
            assert set(why) == set(found)
        elif rows == 1:
            assert "log_loss" not in why
            assert all(metric.low is None and metric.high is None for metric in found.values())
        elif "spearman" in found and rows == 2:
            assert why["spearman"] == "a correlation needs 3 rows, and there are 2"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_nan_is_a_reason_not_a_crash(problem):
    predictions, targets = example(problem, 10, 1, ties=False, soft=True)
    predictions[3] = np.nan
    assert set(reasons(score_metrics(problem, predictions, targets)).values()) == {
        "1 of 10 predictions are NaN or infinite"
    }
    targets[:2] = np.inf
    assert set(reasons(score_metrics(problem, targets, np.zeros_like(targets))).values()) == {
        "2 of 10 predictions are NaN or infinite"
    }


def test_what_is_no_probability_is_a_programmers_error():
    with pytest.raises(AssertionError, match="probabilities from"):
        binary_metrics(np.array([1.1, 0.0]), np.array([1.0, 0.0]))
    with pytest.raises(AssertionError, match="against targets"):
        binary_metrics(np.array([1.0, 0.0]), np.array([1.0]))
    with pytest.raises(AssertionError, match="of shape"):
        multiclass_metrics(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert binary_metrics(np.array([1.0 + 1e-7, 0.0]), np.array([1.0, 0.0]))["brier"].value == 0.0


def test_one_label_alone():
    predictions, targets = example("multilabel", 30, 2, ties=True, soft=False, columns=1)
    found = multilabel_metrics(predictions, targets)
    assert found["f1_macro"].value == pytest.approx(sk.f1_score(targets[:, 0], predictions[:, 0] >= 0.5))
    assert found["auc"].value == pytest.approx(sk.roc_auc_score(targets[:, 0], predictions[:, 0]))


def test_many_classes_with_few_rows_each():
    predictions, targets = example("multiclass", 30, 2, ties=False, soft=True, columns=200)
    assert "f1_macro" not in reasons(multiclass_metrics(predictions, targets))


def test_spearman_sees_differences_in_the_last_digits():
    scores = 0.5 + np.arange(20) * 1e-15
    found = binary_metrics(scores, np.arange(20) / 19)
    assert found["spearman"].value == pytest.approx(1.0)
    assert found["pearson"].value is None


EDGES = st.sampled_from([0.0, 1.0, 0.5, 0.3, 5e-324, 1e-300, 1 - 2**-53, 0.5 - 1e-16, 0.5 + 1e-15])
PAIRS = st.lists(st.tuples(EDGES, EDGES), max_size=8)


@settings(deadline=None, max_examples=150)
@given(PAIRS)
def test_no_values_crash_warn_or_give_nan(pairs):
    scores, targets = np.array(pairs).reshape(-1, 2).T
    reasons(binary_metrics(scores, targets))
    reasons(multilabel_metrics(scores.reshape(-1, 1), targets.reshape(-1, 1)))
    reasons(multiclass_metrics(np.stack([scores, 1 - scores], axis=1), np.stack([targets, 1 - targets], axis=1)))
    reasons(regression_metrics(scores * 1e9, targets * 1e-9))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=3, max_size=12))
def test_any_weights_are_copies_of_rows(rows):
    scores, targets, counts = np.array(rows, dtype=np.float64).T
    scores = scores / 4
    drawn = np.repeat(np.arange(len(rows)), counts.astype(int))
    if len(drawn) < 3:
        return
    expected = slow_binary(scores[drawn], targets[drawn])
    for name, form in forms("binary", scores, targets).items():
        assert form.statistic(counts[None])[0] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


# Resampling.


def test_draws_are_of_n_rows_and_the_same_in_blocks_of_any_size(monkeypatch):
    whole = np.concatenate(list(drawn_weights(9, seed=3, num_draws=50)))
    assert whole.shape == (50, 9)
    assert set(whole.sum(axis=1)) == {9.0}
    assert whole.mean() == 1.0
    exchanged = np.concatenate(list(swaps(9, seed=3, num_rounds=50)))
    monkeypatch.setattr(resampling, "BLOCK_ELEMENTS", 30)
    blocks = list(drawn_weights(9, seed=3, num_draws=50))
    assert len(blocks) == 17
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(np.concatenate(list(swaps(9, seed=3, num_rounds=50))), exchanged)
    assert set(np.unique(exchanged)) == {0.0, 1.0}
    assert 0.4 < exchanged.mean() < 0.6


def test_undefined_resamples_are_dropped_and_too_many_leave_no_interval():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    assert percentile_interval(values) == pytest.approx((1.05, 2.95))
    assert percentile_interval(np.array([1.0, np.nan])) == (1.0, 1.0)
    assert percentile_interval(np.array([1.0, np.nan, np.nan])) == (None, None)
    assert percentile_interval(np.array([np.nan])) == (None, None)


def test_draws_without_any_yes_count_for_mcc():
    # 37 % of the draws lack the only yes, and say nothing of the targets: the interval must reach down to 0.
    scores, targets = np.zeros(40), np.zeros(40)
    scores[0], targets[[0, 1]] = 1.0, 1.0
    found = binary_metrics(scores, targets)["mcc"]
    assert found.value == pytest.approx(math.sqrt(38 / 78))
    assert (found.low, found.high) == (0.0, pytest.approx(1.0))


def test_one_positive_in_few_rows_leaves_an_auc_with_interval_and_two_rows_none():
    # The only positive of n rows is missing from (1 - 1/n)^n = 37 % of the draws; with two rows half have one class.
    found = binary_metrics(np.array([0.9, 0.2, 0.3, 0.95, 0.1]), np.array([1.0, 0.0, 0.0, 0.0, 0.0]))
    assert found["auc"].value == 0.75
    assert found["auc"].low is not None
    skewed = np.zeros(50)
    skewed[0] = np.nan
    metric = with_intervals({"x": found["auc"]}, {"x": lambda w: np.where(w[:, 0] > 1, 1.0, np.nan)}, 50, seed=0)["x"]
    assert (metric.value, metric.low, metric.high) == (0.75, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "auc", "spearman", "brier"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(name):
    def drawn(rows, seed):
        rng = np.random.default_rng(seed)
        scores = rng.random(rows)
        return scores, (rng.random(rows) < scores).astype(float)

    truth = forms("binary", *drawn(400_000, 1))[name].point.value
    hits = 0
    for trial in range(200):
        found = score_metrics("binary", *drawn(120, 100 + trial), seed=trial, names=(name,))[name]
        hits += found.low <= truth <= found.high
    assert 0.9 < hits / 200 < 0.995
