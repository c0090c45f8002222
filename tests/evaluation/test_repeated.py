"""Comparisons of repeated runs: exact where they can be, and no claim without a reason."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workflow.evaluation.repeated import (
    MeanMeasure,
    ScoreMeasure,
    compare_repeated,
    exchange_rows,
    interval,
    paired_t,
    repeated,
    sign_flips,
)

ROWS = 120


def runs(share, seeds=range(5), *, offset=0):
    """By seed, whether each row was answered right."""
    return {seed: (np.random.default_rng(seed + offset).random(ROWS) < share).astype(float) for seed in seeds}


def way(given, measure=None):
    measure = measure or MeanMeasure(ROWS)
    return repeated({seed: float(values.mean()) for seed, values in given.items()}, given, measure)


def test_sign_flips_are_exact():
    assert sign_flips(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flips(np.array([1.0, -1.0])) == 1.0
    assert sign_flips(np.array([0.1] * 5)) == 2 / 32
    assert sign_flips(np.array([0.1])) is None
    many = sign_flips(np.random.default_rng(0).normal(0.3, 1, 40))
    assert many == pytest.approx(stats.ttest_1samp(np.random.default_rng(0).normal(0.3, 1, 40), 0).pvalue, abs=0.03)


def test_the_t_test_is_scipy_s():
    differences = np.array([0.1, 0.2, 0.05, 0.12])
    assert paired_t(differences) == pytest.approx(stats.ttest_rel(differences, np.zeros(4)).pvalue)
    assert paired_t(np.zeros(5)) == 1.0
    assert paired_t(np.full(5, 0.1)) == 2 / 32
    assert paired_t(np.array([0.1])) is None


def test_an_honest_difference_is_found_and_none_is_not():
    plain, better, same = way(runs(0.6)), way(runs(0.8, offset=100)), way(runs(0.6, offset=200))
    found = compare_repeated(better, plain, MeanMeasure(ROWS))
    assert found.p_value == max(found.p_seeds, found.p_rows) < 0.01
    assert found.low > 0
    assert found.low < found.difference < found.high
    nothing = compare_repeated(same, plain, MeanMeasure(ROWS))
    assert nothing.p_value > 0.05
    assert nothing.low < 0 < nothing.high


def test_luck_of_seeds_is_no_difference_although_rows_are_sure():
    """Every run of a seed is far from the others; exchanging rows alone would call it certain."""
    base = np.arange(ROWS) / ROWS
    first = {seed: (base < share).astype(float) for seed, share in enumerate([0.3, 0.9, 0.35, 0.95, 0.9])}
    second = {seed: (base < share).astype(float) for seed, share in enumerate([0.6, 0.5, 0.6, 0.55, 0.5])}
    found = compare_repeated(way(first), way(second), MeanMeasure(ROWS))
    assert found.p_rows < 0.01
    assert found.p_value == found.p_seeds > 0.2
    assert found.low < 0 < found.high


def test_only_seeds_of_both_are_compared():
    first, second = way(runs(0.8, seeds=(0, 1, 2))), way(runs(0.6, seeds=(1, 2, 3)))
    found = compare_repeated(first, second, MeanMeasure(ROWS))
    assert found.n == 2
    assert found.difference == pytest.approx(np.mean([first.values[s] - second.values[s] for s in (1, 2)]))
    assert compare_repeated(first, way(runs(0.5, seeds=(7,))), MeanMeasure(ROWS)) is None


def test_without_predictions_seeds_are_all_there_is():
    first, second = (repeated({0: a, 1: b, 2: c}, None, None) for a, b, c in ((0.5, 0.6, 0.7), (0.4, 0.55, 0.6)))
    found = compare_repeated(first, second, None)
    assert found.p_rows is None
    assert found.p_value == found.p_seeds
    assert interval(repeated({0: 0.5}, None, None)) == (None, None)


def test_scores_are_measured_by_their_own_metric():
    rng = np.random.default_rng(3)
    targets = (rng.random(ROWS) < 0.5).astype(float)
    good = {seed: np.clip(targets * 0.6 + rng.random(ROWS) * 0.4, 0, 1) for seed in range(3)}
    poor = {seed: rng.random(ROWS) for seed in range(3)}
    measure = ScoreMeasure("binary", "mcc", targets)
    assert measure.statistic(good[0])(np.ones((1, ROWS)))[0] == pytest.approx(1.0)
    assert exchange_rows([(good[seed], poor[seed]) for seed in range(3)], measure, 0.9) < 0.001
    assert exchange_rows([(poor[seed], poor[seed]) for seed in range(3)], measure, 0.0) == 1.0
