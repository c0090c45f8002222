"""Calibrated probabilities: maps fitted on some rows, one of them chosen, and what they do to other rows.

Knows nothing of how a map is fitted (`calibration_fits`) or where logits come from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from scipy.special import expit, softmax

from workflow.errors import ConfigError, ResultsError
from workflow.evaluation import calibration_fits as fits
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.score_forms import row_log_losses
from workflow.evaluation.score_metrics import score_metrics
from workflow.evaluation.weighted_metrics import Integers

SCHEMA_VERSION = 1
FEWEST_ROWS = 20
NUM_FOLDS = 5

METHODS = ("none", "temperature", "platt", "isotonic")
"""From the simplest on: of equally good ones the first is chosen."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Calibration:
    """Maps from logits to probabilities, all fitted on the same `num_rows` rows, and the chosen `method` among them.

    `reason` says why nothing was fitted. `log_losses` are the cross-validated ones by which the method was chosen.
    `thresholds` are decision thresholds for the *uncalibrated* score (binary only), by the metric that each is best for.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    problem: Annotated[str, Field(pattern="^(binary|multiclass)$")]
    method: str
    num_rows: int
    reason: str | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    platt: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], Number] | None = None
    isotonic: tuple[tuple[Share, ...], tuple[Share, ...]] | None = None
    log_losses: dict[str, Number] = field(default_factory=dict)
    thresholds: dict[str, Number] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that `apply` takes: "none" and what was fitted."""
        return tuple(method for method in METHODS if method == "none" or getattr(self, method) is not None)

    def apply(self, logits: Floats, *, method: str | None = None) -> Floats:
        """Probabilities by the chosen method, or by `method`: binary [n, 2] (no, yes) -> [n] of yes, multiclass [n, c] -> [n, c].

        Raises ConfigError for a method that was not fitted.
        """
        name = self.method if method is None else method
        if name not in self.methods:
            why = f" ({self.reason})" if self.reason else ""
            raise ConfigError(f'calibration "{name}" was not fitted{why}; there are: {", ".join(self.methods)}')
        values = np.asarray(logits, dtype=np.float64)
        if self.problem == "multiclass":
            temperature = self.temperature if name == "temperature" and self.temperature else 1.0
            return np.asarray(softmax(fits.below_largest(values) / temperature, axis=1), dtype=np.float64)
        margin = fits.margins(values)
        if name == "isotonic" and self.isotonic:
            return fits.apply_isotonic(margin, self.isotonic)
        if name == "platt" and self.platt:
            margin = self.platt[0] * margin + self.platt[1]
        if name == "temperature" and self.temperature:
            margin = margin / self.temperature
        return np.asarray(expit(margin), dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes an equal object."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {"schema_version": SCHEMA_VERSION, **record}

    @classmethod
    def from_json(cls, value: Any, *, where: str = "calibration") -> Calibration:
        """Reads `as_json` back. Raises ResultsError, naming `where`, when it is not such a record."""
        try:
            if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"schema_version is not {SCHEMA_VERSION}")
            fields = {name: part for name, part in value.items() if name != "schema_version"}
            found = _ADAPTER.validate_json(json.dumps(fields))
            _check(found)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ResultsError(f"{where}: not a calibration that this version reads: {reason}; fit it again") from None
        return found


_ADAPTER = TypeAdapter(Calibration)


def _check(found: Calibration) -> None:
    if found.method not in found.methods:
        raise ValueError(f'method "{found.method}" has no parameters')
    if found.problem == "multiclass" and (found.platt or found.isotonic or found.thresholds):
        raise ValueError("multiclass has a temperature only")
    if found.problem == "binary" and set(found.thresholds) != set(fits.THRESHOLD_METRICS):
        raise ValueError(f"thresholds are not of {', '.join(fits.THRESHOLD_METRICS)}")
    if found.isotonic:
        scores, probabilities = found.isotonic
        if not scores or len(scores) != len(probabilities):
            raise ValueError("isotonic: scores and probabilities differ in number")
        if any(np.diff(scores) <= 0) or any(np.diff(probabilities) < 0):
            raise ValueError("isotonic: breakpoints do not ascend")


def fit_calibration(problem: str, logits: Floats, targets: Floats, *, seed: int) -> Calibration:
    """Fits every method on all rows and chooses the one with the least cross-validated log loss (5 folds by `seed`).

    Binary: logits [n, 2] (no, yes), targets [n] in [0, 1], by temperature, Platt and isotonic regression. Multiclass:
    logits and target distributions [n, c], by temperature. With fewer than FEWEST_ROWS rows, rows of one class or
    NaN among the logits nothing is fitted, and the reason stands in the result.
    """
    values, wanted = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    assert values.ndim == 2, f"logits {values.shape}"
    assert wanted.shape == (values[:, 0].shape if problem == "binary" else values.shape), f"targets {wanted.shape}"
    assert problem == "multiclass" or (problem == "binary" and values.shape[1] == 2), f"{problem} {values.shape}"
    reason = _unfit(problem, values, wanted)
    if reason:
        halves = dict.fromkeys(fits.THRESHOLD_METRICS, 0.5) if problem == "binary" else {}
        return Calibration(problem, "none", len(values), reason=reason, thresholds=halves)
    losses = _cross_validated(problem, values, wanted, seed)
    return replace(
        _fit_all(problem, values, wanted),
        method=min(losses, key=lambda name: losses[name]),
        log_losses=losses,
        thresholds=fits.best_thresholds(expit(fits.margins(values)), wanted) if problem == "binary" else {},
    )


def _unfit(problem: str, logits: Floats, targets: Floats) -> str | None:
    rows = len(logits)
    if rows < FEWEST_ROWS:
        return f"{rows} fitting rows; calibration needs {FEWEST_ROWS}"
    strange = int((~np.isfinite(logits).all(axis=1)).sum())
    if strange:
        return f"{strange} of {rows} fitting rows have logits that are NaN or infinite"
    classes = targets >= 0.5 if problem == "binary" else targets.argmax(axis=1)
    if (classes == classes[0]).all():
        return f"all {rows} fitting rows are of one class; calibration needs two"
    return None


def _fit_all(problem: str, logits: Floats, targets: Floats) -> Calibration:
    plain = Calibration(problem, "none", len(logits))
    if problem == "multiclass":
        return replace(plain, temperature=fits.fit_temperature(logits, targets))
    margin = fits.margins(logits)
    return replace(
        plain,
        temperature=fits.fit_temperature(logits, np.stack([1.0 - targets, targets], axis=1)),
        platt=fits.fit_platt(margin, targets),
        isotonic=fits.fit_isotonic(margin, targets),
    )


def _cross_validated(problem: str, logits: Floats, targets: Floats, seed: int) -> dict[str, float]:
    """The mean log loss of each method over rows that it was not fitted on."""
    shuffled = np.random.default_rng(seed).permutation(len(logits))
    losses: dict[str, float] = {}
    for held_out in np.array_split(shuffled, NUM_FOLDS):
        rest = np.setdiff1d(shuffled, held_out)
        fitted = _fit_all(problem, logits[rest], targets[rest])
        for method in fitted.methods:
            found = row_log_losses(fitted.apply(logits[held_out], method=method), targets[held_out])
            losses[method] = losses.get(method, 0.0) + float(found.sum()) / len(logits)
    return losses


def split_rows(num_rows: int, share: float, seed: int) -> tuple[Integers, Integers]:
    """(rows to fit on, rows to report on), each ascending: a random `share` (0 to 1) of the rows, and the others."""
    assert 0.0 <= share <= 1.0, f"share {share}"
    shuffled = np.random.default_rng(seed).permutation(num_rows)
    count = round(share * num_rows)
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


def calibration_report(
    calibration: Calibration, logits: Floats, targets: Floats, *, metric: str | None = None, seed: int = 0
) -> dict[str, Metric]:
    """What each fitted method does to rows that it was not fitted on; shapes as in `fit_calibration`.

    brier, ece and log_loss as the model gives them, then `ece_platt` and so on by method. Binary also accuracy, f1_macro
    and mcc of the decisions at 0.5, and `accuracy_at_threshold` and so on at the threshold fitted for each; of the three
    only `metric` where given.
    """
    wanted = np.asarray(targets, dtype=np.float64)
    report: dict[str, Metric] = {}
    for method in calibration.methods:
        probabilities = calibration.apply(logits, method=method)
        found = score_metrics(calibration.problem, probabilities, wanted, seed=seed, names=("brier", "ece", "log_loss"))
        report |= {name if method == "none" else f"{name}_{method}": value for name, value in found.items()}
    if calibration.problem == "binary":
        names = fits.THRESHOLD_METRICS if metric is None else (metric,)
        report |= _decisions(calibration, calibration.apply(logits, method="none"), wanted, names, seed)
    return report


def _decisions(
    calibration: Calibration, scores: Floats, targets: Floats, names: tuple[str, ...], seed: int
) -> dict[str, Metric]:
    report = score_metrics("binary", scores, targets, seed=seed, names=names)
    for name in names:
        decided = np.where(np.isfinite(scores), scores >= calibration.thresholds[name], np.nan).astype(np.float64)
        report[f"{name}_at_threshold"] = score_metrics("binary", decided, targets, seed=seed, names=(name,))[name]
    return report
