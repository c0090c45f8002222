"""Calibration: fits against brute force and scikit-learn, the choice among them, thresholds, JSON, huge margins."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk
from sklearn.isotonic import IsotonicRegression

from workflow.errors import ConfigError, ResultsError
from workflow.evaluation.calibration import Calibration, calibration_report, fit_calibration, split_rows
from workflow.evaluation.calibration_fits import best_thresholds, fit_platt, fit_temperature
from workflow.evaluation.score_forms import row_log_losses


def two_columns(margin):
    """Logits with this margin, shifted by something that must not matter."""
    margin = np.asarray(margin, dtype=np.float64)
    return np.stack([3.0 - margin / 2, 3.0 + margin / 2], axis=1)


def drawn(rows, *, sharpness=1.0, offset=0.0, seed=0):
    """Logits whose margin is `sharpness` times too sure of itself (and shifted), and hard targets."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=rows) * 1.5
    targets = (rng.random(rows) < expit(true)).astype(float)
    return two_columns(sharpness * true + offset), targets


def drawn_classes(rows, *, sharpness=1.0, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(rows, classes))
    targets = np.array([rng.multinomial(1, p) for p in softmax(true, axis=1)], dtype=float)
    return sharpness * true, targets


def cross_entropy(margin, targets):
    return float((np.logaddexp(0, margin) - targets * margin).mean())


# Fits.


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_temperature_undoes_sharpness(sharpness):
    logits, targets = drawn_classes(20_000, sharpness=sharpness)
    assert fit_temperature(logits, targets) == pytest.approx(sharpness, rel=0.06)


def test_temperature_is_the_minimum_for_soft_targets_too():
    logits, _ = drawn(300, sharpness=3.0)
    margin = logits[:, 1] - logits[:, 0]
    targets = expit(margin / 4 + np.random.default_rng(1).normal(size=300))
    found = fit_temperature(logits, np.stack([1 - targets, targets], axis=1))
    tried = np.exp(np.linspace(-3, 3, 4001))
    best = tried[np.argmin([cross_entropy(margin / t, targets) for t in tried])]
    assert found == pytest.approx(best, rel=2e-3)


def test_temperature_of_rows_all_right_is_bounded_and_of_nothing_to_gain_is_one():
    separable = two_columns([-1.0, -2.0, 1.0, 2.0]), np.eye(2)[[0, 0, 1, 1]]
    assert 0.01 <= fit_temperature(*separable) < 0.1
    assert fit_temperature(np.zeros((4, 3)), np.eye(3)[[0, 1, 2, 0]]) == 1.0


def test_platt_is_the_minimum_on_platts_targets():
    logits, targets = drawn(400, sharpness=2.0, offset=1.5)
    margin = logits[:, 1] - logits[:, 0]
    slope, offset = fit_platt(margin, targets)
    ones = targets.sum()
    wanted = np.where(targets > 0.5, (ones + 1) / (ones + 2), 1 / (400 - ones + 2))
    best = cross_entropy(slope * margin + offset, wanted)
    for step in (-1e-3, 1e-3):
        assert cross_entropy((slope + step) * margin + offset, wanted) > best
        assert cross_entropy(slope * margin + offset + step, wanted) > best
    assert slope == pytest.approx(0.5, abs=0.1)
    assert offset == pytest.approx(-0.75, abs=0.25)


def test_platt_takes_soft_targets_and_never_turns_the_order_round():
    margin = np.linspace(-4, 4, 200)
    slope, offset = fit_platt(margin, expit(0.5 * margin - 1))
    assert (slope, offset) == pytest.approx((0.5, -1), abs=0.05)
    assert fit_platt(margin, expit(-margin))[0] == 0.0


def test_platt_of_separable_rows_is_finite_and_of_equal_margins_the_base_rate():
    slope, offset = fit_platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert 0 < slope < 10
    assert abs(offset) < 1e-6
    slope, offset = fit_platt(np.full(1000, 7.0), np.repeat([0.0, 1.0], [800, 200]))
    assert expit(slope * 7.0 + offset) == pytest.approx(0.2, abs=0.003)
    assert slope == 1.0


def test_isotonic_is_scikit_learns():
    logits, targets = drawn(300, sharpness=3.0)
    found = fit_calibration("binary", logits, targets, seed=0)
    margin = logits[:, 1] - logits[:, 0]
    other = np.linspace(-30, 30, 1001)
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(expit(margin), targets)
    np.testing.assert_allclose(
        found.apply(two_columns(other), method="isotonic"), expected.predict(expit(other)), atol=1e-12
    )


# The choice.


def test_a_calibrated_model_keeps_its_scores():
    logits, targets = drawn(60, seed=5)
    found = fit_calibration("binary", logits, targets, seed=0)
    assert found.method == min(found.log_losses, key=found.log_losses.get)
    assert found.methods == ("none", "temperature", "platt", "isotonic")
    equal = fit_calibration("binary", np.zeros((40, 2)), np.repeat([0.0, 1.0], 20), seed=3)
    assert equal.log_losses["none"] == pytest.approx(math.log(2))
    assert equal.method == "none"


@pytest.mark.parametrize(
    ("sharpness", "offset", "method"), [(6.0, 0.0, "temperature"), (1.0, 2.5, "platt"), (1.0, 0.0, "none")]
)
def test_the_method_that_fits_the_fault_is_chosen(sharpness, offset, method):
    logits, targets = drawn(3000, sharpness=sharpness, offset=offset, seed=2)
    found = fit_calibration("binary", logits, targets, seed=1)
    assert set(found.log_losses) == {"none", "temperature", "platt", "isotonic"}
    chosen, expected = found.log_losses[found.method], found.log_losses[method]
    assert chosen <= expected < chosen + 1e-3
    if method != "none":
        assert found.method != "none"
        assert found.log_losses["none"] > chosen + 0.05


def test_isotonic_is_chosen_for_a_bent_curve():
    rng = np.random.default_rng(0)
    margin = rng.uniform(-4, 4, 4000)
    targets = (rng.random(4000) < np.where(np.abs(margin) < 2, 0.5, np.where(margin > 0, 0.95, 0.05))).astype(float)
    assert fit_calibration("binary", two_columns(margin), targets, seed=0).method == "isotonic"


def test_log_losses_are_those_of_rows_left_out():
    # An isotonic map may learn rows by heart: on its own rows it is the best of all, on others far from it.
    rng = np.random.default_rng(0)
    logits, targets = two_columns(rng.normal(size=60)), rng.permutation(np.repeat([0.0, 1.0], 30))
    found = fit_calibration("binary", logits, targets, seed=0)
    own = {m: row_log_losses(found.apply(logits, method=m), targets).mean() for m in found.methods}
    assert min(own, key=own.get) == "isotonic"
    assert found.method != "isotonic"
    assert found.log_losses["isotonic"] > own["isotonic"]


def test_multiclass_has_temperature_only():
    logits, targets = drawn_classes(2000, sharpness=4.0)
    found = fit_calibration("multiclass", logits, targets, seed=0)
    assert found.methods == ("none", "temperature")
    assert found.method == "temperature"
    assert found.thresholds == {}
    probabilities = found.apply(logits)
    np.testing.assert_allclose(probabilities, softmax(logits / found.temperature, axis=1))
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(found.apply(logits, method="none"), softmax(logits, axis=1))


def test_none_is_the_models_own_probability():
    logits, targets = drawn(100)
    found = fit_calibration("binary", logits, targets, seed=0)
    np.testing.assert_allclose(found.apply(logits, method="none"), softmax(logits, axis=1)[:, 1])
    np.testing.assert_array_equal(found.apply(logits), found.apply(logits, method=found.method))


def test_the_seed_decides_the_folds():
    logits, targets = drawn(100)
    first, again, other = (fit_calibration("binary", logits, targets, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.log_losses != other.log_losses
    assert first.platt == other.platt


@pytest.mark.parametrize(
    ("rows", "targets", "reason"),
    [
        (19, np.tile([0.0, 1.0], 10)[:19], "19 fitting rows; calibration needs 20"),
        (0, np.zeros(0), "0 fitting rows; calibration needs 20"),
        (30, np.zeros(30), "all 30 fitting rows are of one class; calibration needs two"),
        (30, np.ones(30), "all 30 fitting rows are of one class; calibration needs two"),
    ],
)
def test_nothing_is_fitted_from_too_little(rows, targets, reason):
    logits = two_columns(np.linspace(-1, 1, rows))
    found = fit_calibration("binary", logits, targets, seed=0)
    assert (found.method, found.reason, found.num_rows) == ("none", reason, rows)
    assert found.thresholds == {"accuracy": 0.5, "f1_macro": 0.5, "mcc": 0.5}
    np.testing.assert_allclose(found.apply(logits), expit(np.linspace(-1, 1, rows)))
    with pytest.raises(ConfigError, match=f'"platt" was not fitted .{reason[:9]}.*; there are: none'):
        found.apply(logits, method="platt")
    assert Calibration.from_json(found.as_json()) == found


def test_nothing_is_fitted_from_nan_or_one_class_of_many():
    logits, targets = drawn(40)
    logits[2] = np.nan
    assert fit_calibration("binary", logits, targets, seed=0).reason == (
        "1 of 40 fitting rows have logits that are NaN or infinite"
    )
    logits, targets = drawn_classes(40)
    found = fit_calibration("multiclass", logits, np.eye(4)[[2] * 40], seed=0)
    assert "of one class" in found.reason
    with pytest.raises(AssertionError):
        fit_calibration("multilabel", logits, targets, seed=0)


# Thresholds.

SLOW = {
    "accuracy": sk.accuracy_score,
    "f1_macro": lambda actual, predicted: sk.f1_score(actual, predicted, average="macro", zero_division=0),
    "mcc": lambda actual, predicted: (
        0.0 if len(set(predicted)) == 1 or len(set(actual)) == 1 else sk.matthews_corrcoef(actual, predicted)
    ),
}


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.51, 0.8, 1.0]), st.booleans()), min_size=1, max_size=14)
)
def test_thresholds_are_the_best_of_all_and_the_nearest_to_one_half(rows):
    scores, targets = np.array(rows, dtype=np.float64).T
    distinct = np.unique(scores)
    every = [0.5, distinct[0] / 2, max((distinct[-1] + 1) / 2, np.nextafter(distinct[-1], 2))]
    every += list((distinct[1:] + distinct[:-1]) / 2)
    found = best_thresholds(scores, targets)
    for name, measure in SLOW.items():
        values = [measure(targets > 0.5, scores >= threshold) for threshold in every]
        value = measure(targets > 0.5, scores >= found[name])
        assert value == pytest.approx(max(values)), name
        nearest = min(abs(t - 0.5) for t, v in zip(every, values, strict=True) if v >= max(values) - 1e-12)
        assert abs(found[name] - 0.5) <= nearest + 1e-12, name


def test_a_threshold_lies_midway_and_between_neighbouring_numbers_above():
    assert best_thresholds(np.array([0.6, 0.7, 0.9]), np.array([0.0, 0.0, 1.0]))["accuracy"] == pytest.approx(0.8)
    above = np.nextafter(0.75, 1)
    assert best_thresholds(np.array([0.75, above]), np.array([0.0, 1.0]))["mcc"] == above
    assert best_thresholds(np.array([0.2, 0.9]), np.array([0.0, 1.0]))["mcc"] == 0.5
    assert best_thresholds(np.ones(3), np.zeros(3))["accuracy"] > 1.0


# JSON.


EXAMPLES = (
    fit_calibration("binary", *drawn(100, sharpness=3), seed=0),
    fit_calibration("binary", *drawn(5), seed=0),
    fit_calibration("multiclass", *drawn_classes(100), seed=0),
)


@pytest.mark.parametrize("found", EXAMPLES, ids=["binary", "unfitted", "multiclass"])
def test_json_round_trip_is_exact(found):
    record = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert record["schema_version"] == 1
    again = Calibration.from_json(record)
    assert again == found
    assert again.as_json() == found.as_json()
    logits = drawn(50)[0] if found.problem == "binary" else drawn_classes(50)[0]
    for method in found.methods:
        np.testing.assert_array_equal(again.apply(logits, method=method), found.apply(logits, method=method))


GOOD = fit_calibration("binary", *drawn(100, sharpness=3), seed=0).as_json()


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": None},
        {"problem": "regression"},
        {"method": "best"},
        {"temperature": 0.0},
        {"temperature": "1.0"},
        {"temperature": math.nan},
        {"temperature": None, "method": "temperature"},
        {"platt": [1.0]},
        {"platt": [-1.0, 0.0]},
        {"platt": [1.0, math.inf]},
        {"isotonic": [[0.1, 0.2], [0.5]]},
        {"isotonic": [[], []]},
        {"isotonic": [[0.2, 0.1], [0.5, 0.6]]},
        {"isotonic": [[0.1, 0.1], [0.5, 0.6]]},
        {"isotonic": [[0.1, 0.2], [0.6, 0.5]]},
        {"isotonic": [[0.1, 0.2], [0.6, 1.5]]},
        {"thresholds": {}},
        {"thresholds": {"accuracy": 0.5, "f1_macro": 0.5, "mcc": "x"}},
        {"num_rows": 1.5},
        {"num_rows": True},
        {"extra": 1},
        {"problem": "multiclass"},
        {"reason": {1, 2}},
    ],
    ids=str,
)
def test_malformed_json_is_refused(change):
    assert Calibration.from_json(GOOD).as_json() == GOOD
    with pytest.raises(ResultsError, match=r"^runs/x: not a calibration that this version reads: .*; fit it again$"):
        Calibration.from_json({**GOOD, **change}, where="runs/x")


@pytest.mark.parametrize("value", [None, [], "x", 3, {}, {"schema_version": 1}])
def test_what_is_no_record_is_refused(value):
    with pytest.raises(ResultsError):
        Calibration.from_json(value)


# Splits and reports.


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 5))
def test_split_rows_parts_all_rows(rows, share, seed):
    fit, report = split_rows(rows, share, seed)
    assert sorted([*fit, *report]) == list(range(rows))
    assert len(fit) == round(share * rows)
    assert list(fit) == sorted(fit)
    for part, again in zip((fit, report), split_rows(rows, share, seed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_splits_differ_by_seed_and_are_mixed():
    first, _ = split_rows(100, 0.5, 0)
    assert list(first) != list(split_rows(100, 0.5, 1)[0])
    assert list(first) != list(range(50))


def test_report_says_what_calibration_does_to_other_rows():
    logits, targets = drawn(4000, sharpness=5.0, offset=2.0, seed=3)
    fit, rest = split_rows(4000, 0.5, 0)
    found = fit_calibration("binary", logits[fit], targets[fit], seed=0)
    report = calibration_report(found, logits[rest], targets[rest])
    methods = ("", "_temperature", "_platt", "_isotonic")
    decisions = ("accuracy", "f1_macro", "mcc")
    assert set(report) == {
        *(f"{name}{method}" for name in ("brier", "ece", "log_loss") for method in methods),
        *(f"{name}{kind}" for name in decisions for kind in ("", "_at_threshold")),
    }
    for metric in report.values():
        assert metric.n == 2000
        assert metric.low < metric.high
    assert report["ece_platt"].value < 0.05 < report["ece"].low
    assert report["log_loss_platt"].high < report["log_loss"].low
    scores = found.apply(logits[rest], method="platt")
    assert report["brier_platt"].value == pytest.approx(np.mean((scores - targets[rest]) ** 2))
    plain = found.apply(logits[rest], method="none")
    decided = plain >= found.thresholds["f1_macro"]
    assert report["f1_macro_at_threshold"].value == pytest.approx(SLOW["f1_macro"](targets[rest], decided))
    assert report["f1_macro"].value == pytest.approx(SLOW["f1_macro"](targets[rest], plain >= 0.5))
    assert report["accuracy_at_threshold"].value > report["accuracy"].value
    one = calibration_report(found, logits[rest], targets[rest], metric="mcc")
    assert one == {name: metric for name, metric in report.items() if "accuracy" not in name and "f1" not in name}


def test_report_of_unfitted_multiclass_and_no_rows():
    few = calibration_report(fit_calibration("binary", *drawn(5), seed=0), *drawn(30, seed=1))
    assert few["accuracy"] == few["accuracy_at_threshold"]
    assert "ece_platt" not in few
    many = calibration_report(fit_calibration("multiclass", *drawn_classes(60), seed=0), *drawn_classes(50, seed=1))
    assert set(many) == {f"{name}{kind}" for name in ("brier", "ece", "log_loss") for kind in ("", "_temperature")}
    empty = calibration_report(fit_calibration("binary", *drawn(60), seed=0), np.zeros((0, 2)), np.zeros(0))
    assert {metric.reason for metric in empty.values()} == {"no rows"}
    logits, targets = drawn(30, seed=1)
    logits[0] = np.nan
    strange = calibration_report(fit_calibration("binary", *drawn(60), seed=0), logits, targets)
    assert {metric.reason for metric in strange.values()} == {"1 of 30 predictions are NaN or infinite"}


# Whatever the logits.

MARGINS = st.sampled_from([-1e4, 1e4, -1e300, 1e300, 0.0, 1e-320, 1e-12, -3.0, 2.0, 2.0 + 1e-15, 40.0, 745.0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(MARGINS, st.sampled_from([0.0, 1.0, 0.3, 0.5])), min_size=20, max_size=30))
def test_any_margins_give_ascending_probabilities(rows):
    margin, targets = np.array(rows).T
    found = fit_calibration("binary", np.stack([np.zeros(len(margin)), margin], axis=1), targets, seed=0)
    ascending = np.unique(np.concatenate([margin, [-1e4, -5, -1e-9, 0, 1e-9, 1, 30, 1e4]]))
    for method in found.methods:
        probabilities = found.apply(np.stack([np.zeros(len(ascending)), ascending], axis=1), method=method)
        assert np.all((probabilities >= 0) & (probabilities <= 1)), method
        assert np.all(np.diff(probabilities) >= -1e-12), method
    for value in dataclasses.asdict(found)["log_losses"].values():
        assert math.isfinite(value)
    assert Calibration.from_json(found.as_json()) == found


def test_infinite_logits_give_certainty_or_nan_without_a_warning():
    found = fit_calibration("binary", *drawn(60), seed=0)
    infinite = np.array([[0.0, np.inf], [-np.inf, 0.0], [0.0, -np.inf], [-np.inf, -np.inf]])
    np.testing.assert_array_equal(found.apply(infinite, method="none"), [1.0, 1.0, 0.0, np.nan])
    many = fit_calibration("multiclass", *drawn_classes(60), seed=0)
    assert np.isnan(many.apply(np.full((1, 4), -np.inf), method="temperature")).all()


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1.0, 1e4, 1e300])
def test_any_logits_of_classes(scale):
    logits, targets = drawn_classes(40)
    found = fit_calibration("multiclass", logits * scale, targets, seed=0)
    for method in found.methods:
        np.testing.assert_allclose(found.apply(logits * scale, method=method).sum(axis=1), 1.0)
