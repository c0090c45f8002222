"""Scores the eval rows on all ranks, measures, and fits threshold and calibration on one part to report them on another.

Knows nothing of training. Every rank makes the same number of scorer calls, whatever its share of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workflow.data.encoders import INPUT, TOKEN_TYPES
from workflow.data.features import Features
from workflow.data.sources import Row
from workflow.evaluation.calibration import Calibration, calibration_report, fit_calibration, split_rows
from workflow.evaluation.evaluator import Evaluation, gathered, slices_of
from workflow.evaluation.metrics import Floats, Metric, mean_metric
from workflow.evaluation.score_metrics import score_metrics
from workflow.inference.scorer import Scorer, ScoreRequest, predictions, score_all
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
        scorer: Scorer,
        row_losses: RowLosses,
        rows: Sequence[Row],
        features: Features,
        calibrate: CalibrationPlan,
        *,
        threshold_metric: str,
        ranks: Ranks,
        batch_size: int,
        unit: float = 1.0,
        slice_by: str | None = None,
    ) -> None:
        self.scorer = scorer
        self.problem = scorer.loaded.problem
        self.row_losses = row_losses
        self.rows = rows
        self.features = features
        self.calibrate = calibrate
        self.threshold_metric = threshold_metric
        self.ranks = ranks
        self.batch_size = batch_size
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
        vectors = predictions(self.problem, logits)
        targets = np.asarray(self.features.targets, dtype=np.float64)
        every = np.arange(len(logits))
        calibration, reported = self._calibration(logits, targets, fitting_logits)
        return ScoreEvaluation(
            metrics={
                **self._metrics(every, logits, vectors, targets),
                **_chosen(calibration, reported, self.threshold_metric),
            },
            slices={
                name: self._metrics(np.array(rows), logits, vectors, targets)
                for name, rows in slices_of(self.rows, self.slice_by).items()
            },
            seconds=time.perf_counter() - started,
            logits=logits,
            vectors=vectors,
            calibration=calibration,
            reported=reported,
        )

    def _logits(self, features: Features) -> Floats | None:
        """All rows' logits on the first rank, each rank having computed a share (dealt by length, so that it is even)."""
        by_length = np.argsort(-features.lengths(INPUT), kind="stable").tolist()
        mine = by_length[self.ranks.rank :: self.ranks.world_size]
        most = -(-len(by_length) // self.ranks.world_size)
        found = score_all(
            self.scorer,
            [request_of(features, row) for row in mine],
            batch_size=self.batch_size,
            num_batches=-(-most // self.batch_size),
        )
        everyone = gathered(dict(zip(mine, found, strict=True)), self.ranks)
        if not self.ranks.is_first:
            return None
        return np.array([everyone[row] for row in range(len(features))]).reshape(len(features), self.scorer.width)

    def _metrics(self, rows: np.ndarray, logits: Floats, vectors: Floats, targets: Floats) -> dict[str, Metric]:
        return {
            "eval_loss": mean_metric(self.row_losses(logits[rows], targets[rows])),
            **measure(self.problem, vectors[rows], targets[rows], unit=self.unit),
        }

    def _calibration(
        self, logits: Floats, targets: Floats, fitting_logits: Floats | None
    ) -> tuple[Calibration | None, dict[str, Metric]]:
        if self.problem not in CALIBRATED:
            return None, {}
        plan, wanted = self.calibrate, _as_fitted(self.problem, targets)
        if plan.features is not None:
            assert fitting_logits is not None
            given = _as_fitted(self.problem, np.asarray(plan.features.targets, dtype=np.float64))
            fitted = fit_calibration(self.problem, fitting_logits, given, seed=plan.seed)
            return fitted, calibration_report(fitted, logits, wanted)
        fitting, others = split_rows(len(logits), plan.share, plan.seed)
        fitted = fit_calibration(self.problem, logits[fitting], wanted[fitting], seed=plan.seed)
        return fitted, calibration_report(fitted, logits[others], wanted[others])


def _as_fitted(problem: str, targets: Floats) -> Floats:
    return targets[:, 1] if problem == "binary" else targets


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
    if problem == "binary":
        return score_metrics(problem, vectors[:, 1], targets[:, 1], unit=unit)
    if problem == "regression":
        return score_metrics(problem, vectors[:, 0], targets[:, 0])
    return score_metrics(problem, vectors, targets)


def request_of(features: Features, row: int) -> ScoreRequest:
    """One row's request."""
    types = features.row(TOKEN_TYPES, row).tolist() if TOKEN_TYPES in features.fields else None
    return ScoreRequest(features.row(INPUT, row).tolist(), types)


def constant_metrics(
    problem: str, mean: Floats, targets: Floats, row_losses: RowLosses, *, unit: float = 1.0
) -> dict[str, Metric]:
    """Metrics of predicting `mean` [width] for every one of the targets [rows, width]."""
    inside = np.clip(mean, LEAST, None)
    logits = {"regression": mean, "multilabel": np.log(inside / np.clip(1 - mean, LEAST, None))}.get(
        problem, np.log(inside)
    )
    everywhere = np.tile(logits, (len(targets), 1))
    return {
        "eval_loss": mean_metric(row_losses(everywhere, targets)),
        **measure(problem, predictions(problem, everywhere), targets, unit=unit),
    }
