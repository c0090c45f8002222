"""Scores the eval rows on all ranks, measures, and fits threshold and calibration on one part to report them on another.

Knows nothing of training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workflow.data.encoders import INPUT
from workflow.data.features import Features
from workflow.data.sources import Row
from workflow.evaluation.calibration import Calibration, calibration_report, fit_calibration, split_rows
from workflow.evaluation.evaluator import Evaluation, gathered, share_by_length, slices_of
from workflow.evaluation.metrics import Floats, Metric, mean_metric
from workflow.evaluation.score_forms import as_measured
from workflow.evaluation.score_metrics import score_metrics
from workflow.inference.batch import predictions, requests_of, score_all
from workflow.inference.interface import Engine
from workflow.runtime import Ranks

LEAST = 1e-7
CALIBRATED = ("binary", "multiclass")

RowLosses = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class ScoreEvaluation(Evaluation):
    """With the logits and predicted vectors [rows, width] in the rows' order, and what was fitted on some of them."""

    logits: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    vectors: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    calibration: Calibration | None = None
    reported: dict[str, Metric] = field(default_factory=dict)
    """What every calibration and threshold does to rows that it was not fitted on."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What to fit on: rows of their own, else this share of the eval rows (the metrics are the others'), drawn by `seed`."""

    features: Features | None
    share: float
    seed: int


class ScoreEvaluator:
    """Evaluates one model on one set of rows, any number of times. `unit` is the width of the user's target range."""

    def __init__(
        self,
        engine: Engine,
        row_losses: RowLosses,
        rows: Sequence[Row],
        features: Features,
        calibrate: CalibrationPlan,
        *,
        problem: str,
        width: int,
        threshold_metric: str,
        ranks: Ranks,
        unit: float = 1.0,
        slice_by: str | None = None,
    ) -> None:
        self.engine = engine
        self.problem = problem
        self.width = width
        self.row_losses = row_losses
        self.rows = rows
        self.features = features
        self.calibrate = calibrate
        self.threshold_metric = threshold_metric
        self.ranks = ranks
        self.unit = unit
        self.slice_by = slice_by

    def evaluate(self) -> ScoreEvaluation:
        """A collective call: all ranks make it, the first one gets the findings."""
        started = time.perf_counter()
        logits = self._logits(self.features)
        own = self.calibrate.features
        fitting_logits = self._logits(own) if own is not None else None
        if not self.ranks.is_first:
            return ScoreEvaluation()
        assert logits is not None
        targets = np.asarray(self.features.targets, dtype=np.float64)
        calibration, reported = self._calibration(logits, targets, fitting_logits)
        return ScoreEvaluation(
            metrics={
                **self._metrics(logits, targets),
                **_chosen(calibration, reported, self.threshold_metric),
            },
            slices={
                name: self._metrics(logits[rows], targets[rows])
                for name, rows in slices_of(self.rows, self.slice_by).items()
            },
            seconds=time.perf_counter() - started,
            logits=logits,
            vectors=predictions(self.problem, logits),
            calibration=calibration,
            reported=reported,
        )

    def _logits(self, features: Features) -> Floats | None:
        """All rows' logits on the first rank, each rank having computed a share."""
        mine = share_by_length(features.lengths(INPUT), self.ranks)
        requests = requests_of(
            {field: [features.row(field, row).tolist() for row in mine] for field in features.fields}
        )

        def score() -> dict[int, Floats]:
            return dict(zip(mine, score_all(self.engine, requests, width=self.width), strict=True))

        everyone = gathered(score, self.ranks)
        if not self.ranks.is_first:
            return None
        return np.array([everyone[row] for row in range(len(features))]).reshape(len(features), self.width)

    def _metrics(self, logits: Floats, targets: Floats) -> dict[str, Metric]:
        return measure_logits(self.problem, logits, targets, self.row_losses, unit=self.unit)

    def _calibration(
        self, logits: Floats, targets: Floats, fitting_logits: Floats | None
    ) -> tuple[Calibration | None, dict[str, Metric]]:
        if self.problem not in CALIBRATED:
            return None, {}
        plan, wanted = self.calibrate, as_measured(self.problem, targets)
        if plan.features is not None:
            assert fitting_logits is not None
            given = as_measured(self.problem, np.asarray(plan.features.targets, dtype=np.float64))
            fitted = fit_calibration(self.problem, fitting_logits, given, seed=plan.seed)
            return fitted, calibration_report(fitted, logits, wanted)
        fitting, others = split_rows(len(logits), plan.share, plan.seed)
        fitted = fit_calibration(self.problem, logits[fitting], wanted[fitting], seed=plan.seed)
        return fitted, calibration_report(fitted, logits[others], wanted[others])


def _chosen(calibration: Calibration | None, reported: dict[str, Metric], threshold_metric: str) -> dict[str, Metric]:
    """Of the report, what the chosen calibration and threshold do."""
    if calibration is None or calibration.reason:
        return {}
    suffix = "" if calibration.method == "none" else f"_{calibration.method}"
    found = {f"{name}_calibrated": reported[f"{name}{suffix}"] for name in ("ece", "brier", "log_loss")}
    name = f"{threshold_metric}_at_threshold"
    return found | ({name: reported[name]} if name in reported else {})


def measure(problem: str, vectors: Floats, targets: Floats, *, unit: float = 1.0) -> dict[str, Metric]:
    """Metrics of predicted vectors [rows, width] against targets of that shape."""
    given, wanted = as_measured(problem, vectors), as_measured(problem, targets)
    return score_metrics(problem, given, wanted, unit=unit if problem == "binary" else 1.0)


def measure_logits(
    problem: str, logits: Floats, targets: Floats, row_losses: RowLosses, *, unit: float = 1.0
) -> dict[str, Metric]:
    """The loss, and the metrics of what the logits predict; all [rows, width]."""
    return {
        "eval_loss": mean_metric(row_losses(logits, targets)),
        **measure(problem, predictions(problem, logits), targets, unit=unit),
    }


def constant_metrics(
    problem: str, mean: Floats, targets: Floats, row_losses: RowLosses, *, unit: float = 1.0
) -> dict[str, Metric]:
    """Metrics of predicting `mean` [width] for every one of the targets [rows, width]."""
    inside = np.clip(mean, LEAST, None)
    logits = {"regression": mean, "multilabel": np.log(inside / np.clip(1 - mean, LEAST, None))}.get(
        problem, np.log(inside)
    )
    return measure_logits(problem, np.tile(logits, (len(targets), 1)), targets, row_losses, unit=unit)
