"""Comparisons of two runs: exact tests on few rows, error rates, intervals; and ensembles of runs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from workflow.evaluation.comparison import compare
from workflow.evaluation.ensembles import OF_ORDER, mean_ranks, mean_scores, of_order
from workflow.evaluation.score_metrics import score_metrics
from workflow.metric_names import SCORE_METRICS

NAMES = [(problem, name) for problem, names in SCORE_METRICS.items() for name in names if name != "eval_loss"]


def example(problem, rows, seed, noise=1.0):
    """Targets and two runs' predictions, the second with more noise."""
    rng = np.random.default_rng(seed)
    shape = (rows, 3) if problem in ("multiclass", "multilabel") else (rows,)
    hidden = rng.normal(size=shape)
    runs = [hidden + rng.normal(size=shape) * size for size in (0.5, 0.5 + noise)]
    if problem == "regression":
        return *runs, hidden
    if problem == "multiclass":
        return *(np.exp(run) / np.exp(run).sum(axis=1, keepdims=True) for run in runs), np.eye(3)[hidden.argmax(axis=1)]
    return *(1 / (1 + np.exp(-run)) for run in runs), (hidden > 0).astype(float)


@pytest.mark.parametrize(("problem", "name"), NAMES)
def test_values_and_difference_are_the_metrics(problem, name):
    first, second, targets = example(problem, 120, 1)
    found = compare(problem, first, second, targets, metric=name, num_rounds=200)
    one, two = (score_metrics(problem, run, targets, names=(name,))[name].value for run in (first, second))
    assert (found.metric, found.first, found.second, found.n) == (name, one, two, 120)
    assert found.difference == pytest.approx(one - two)
    assert found.low < found.high
    assert 1 / 201 <= found.p_value <= 1
    assert found.reason is None


@pytest.mark.parametrize(("problem", "name"), NAMES)
def test_exchanged_runs_turn_the_difference_round(problem, name):
    first, second, targets = example(problem, 80, 2)
    there = compare(problem, first, second, targets, metric=name, num_rounds=200)
    back = compare(problem, second, first, targets, metric=name, num_rounds=200)
    assert back.difference == pytest.approx(-there.difference)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p_value == there.p_value


MEASURES = {
    "accuracy": lambda targets, scores: np.mean((scores >= 0.5) == (targets >= 0.5)),
    "auc": roc_auc_score,
    "brier": lambda targets, scores: np.mean((scores - targets) ** 2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_p_value_is_that_of_all_exchanges(name):
    """With nine rows all 512 exchanges can be tried."""
    first, second, targets = example("binary", 9, 5, noise=2.0)

    def value(run):
        return MEASURES[name](targets, run)

    found = abs(value(first) - value(second))
    every = [
        abs(value(np.where(swap, second, first)) - value(np.where(swap, first, second)))
        for swap in (np.array(swap) for swap in itertools.product([False, True], repeat=9))
    ]
    exact = np.mean([difference >= found - 1e-12 for difference in every])
    assert 0.01 < exact < 0.9
    estimate = compare("binary", first, second, targets, metric=name, num_rounds=4000).p_value
    assert estimate == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3)


def test_interval_is_a_paired_bootstraps():
    first, second, targets = example("binary", 60, 3)
    found = compare("binary", first, second, targets, metric="auc", num_rounds=2000)
    rng = np.random.default_rng(9)
    draws = (rng.integers(0, 60, 60) for _ in range(2000))
    slow = [roc_auc_score(targets[d], first[d]) - roc_auc_score(targets[d], second[d]) for d in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=0.025)


def test_a_clear_difference_and_none():
    first, second, targets = example("binary", 400, 1, noise=3.0)
    clear = compare("binary", first, second, targets, metric="auc")
    assert clear.p_value == pytest.approx(1 / 1001)
    assert 0 < clear.low < clear.difference < clear.high
    same = compare("binary", first, first, targets, metric="auc")
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "spearman", "log_loss"])
def test_equal_runs_are_called_different_about_as_seldom_as_promised(name):
    below, covered = 0, 0
    for trial in range(300):
        first, second, targets = example("binary", 60, 1000 + trial, noise=0.0)
        found = compare("binary", first, second, targets, metric=name, num_rounds=200)
        below += found.p_value <= 0.05
        covered += found.low <= 0 <= found.high
    assert below / 300 < 0.085
    assert covered / 300 > 0.9
    assert below > 0 or name == "accuracy"


def test_seeds_repeat_and_differ():
    first, second, targets = example("binary", 50, 4)
    one, again, other = (compare("binary", first, second, targets, metric="brier", seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert (one.low, one.high) != (other.low, other.high)


def test_unit_scales_rmse():
    first, second, targets = example("binary", 50, 4)
    plain, wide = (compare("binary", first, second, targets, metric="rmse", unit=unit) for unit in (1.0, 4.0))
    assert wide.difference == pytest.approx(4 * plain.difference)
    assert wide.high == pytest.approx(4 * plain.high)
    assert wide.p_value == plain.p_value


def test_what_is_undefined_has_a_reason():
    scores = np.linspace(0.1, 0.9, 12)
    found = compare("binary", scores, scores[::-1], np.zeros(12), metric="auc")
    assert found.reason == "all 12 targets are below 0.5: AUC needs both classes"
    assert (found.difference, found.low, found.high, found.p_value) == (None, None, None, None)
    targets = (scores > 0.5).astype(float)
    constant = compare("binary", scores, np.full(12, 0.4), targets, metric="spearman")
    assert constant.first is not None
    assert constant.second is None
    assert constant.reason == "all 12 predictions are equal: a correlation needs them to differ"
    nothing = compare("binary", np.zeros(0), np.zeros(0), np.zeros(0), metric="brier")
    assert nothing.reason == "no rows"
    lost = compare("binary", scores, np.full(12, np.nan), targets, metric="brier")
    assert lost.reason == "12 of 12 predictions are NaN or infinite"


def test_one_row_has_no_interval_and_no_evidence():
    found = compare("binary", np.array([0.9]), np.array([0.1]), np.array([1.0]), metric="brier")
    assert (found.low, found.high, found.p_value) == (None, None, 1.0)


def test_rounds_that_define_nothing_are_left_out():
    # Each run says yes once, to another row: half of the exchanges leave one run constant, and pearson without a
    # value; in the others the difference is as large as found.
    first, second = np.array([0.9, 0.1, 0.1, 0.1]), np.array([0.1, 0.9, 0.1, 0.1])
    targets = np.array([1.0, 0.0, 1.0, 0.0])
    found = [
        compare("binary", first, second, targets, metric="pearson", seed=seed, num_rounds=100) for seed in range(10)
    ]
    assert [comparison.difference for comparison in found] == pytest.approx([2 / np.sqrt(3)] * 10)
    assert {comparison.p_value for comparison in found} == {None, 1.0}


def test_as_json_is_plain():
    first, second, targets = example("binary", 20, 4)
    found = compare("binary", first, second, targets, metric="accuracy", num_rounds=50)
    record = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert set(record) == {"metric", "first", "second", "difference", "low", "high", "p_value", "n"}
    none = compare("binary", first, second, np.zeros(20), metric="auc").as_json()
    assert none["difference"] is None
    assert "AUC" in none["reason"]


# Ensembles.


def test_mean_scores():
    np.testing.assert_allclose(mean_scores([np.array([0.2, 0.4]), np.array([0.4, 1.0])]), [0.3, 0.7])
    np.testing.assert_allclose(mean_scores([np.eye(2), np.ones((2, 2))]), [[1.0, 0.5], [0.5, 1.0]])
    with pytest.raises(AssertionError, match="shapes"):
        mean_scores([np.zeros(2), np.zeros(3)])
    with pytest.raises(AssertionError, match="shapes"):
        mean_scores([])


def test_mean_ranks():
    np.testing.assert_allclose(mean_ranks([np.array([0.1, 0.9, 0.5])]), [0.0, 1.0, 0.5])
    np.testing.assert_allclose(mean_ranks([np.array([0.1, 0.1, 0.5])]), [0.25, 0.25, 1.0])
    np.testing.assert_allclose(mean_ranks([np.array([0, 1e-9, 1]), np.array([5.0, 4.0, 3.0])]), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(mean_ranks([np.full(4, 0.7)]), np.full(4, 0.5))
    assert mean_ranks([np.array([0.3])]).tolist() == [0.5]
    assert mean_ranks([np.zeros(0)]).shape == (0,)
    with pytest.raises(AssertionError, match="shape"):
        mean_ranks([np.eye(2)])


def test_of_mean_ranks_only_metrics_of_order_are_told():
    first, second, targets = example("binary", 60, 1)
    found = of_order(score_metrics("binary", mean_ranks([first, second]), targets))
    assert {name for name, metric in found.items() if metric.value is not None} == set(OF_ORDER)
    assert "no probabilities" in found["brier"].reason


def test_an_ensemble_beats_its_members():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=800)
    runs = [1 / (1 + np.exp(-(hidden + rng.normal(size=800) * 2) * scale)) for scale in (0.1, 1, 5)]
    targets = hidden > 0
    best = max(roc_auc_score(targets, run) for run in runs)
    assert roc_auc_score(targets, mean_scores(runs)) > best
    assert roc_auc_score(targets, mean_ranks(runs)) > roc_auc_score(targets, mean_scores(runs))
