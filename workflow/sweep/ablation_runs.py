"""What an ablation's runs predicted, read from their prediction files: each run's metric, and what tests of it need.

Knows nothing of tables. The same figures can be had by anybody from the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workflow.config.clf_settings import ScoreSection
from workflow.data.scoring import Scoring
from workflow.data.sources import Row
from workflow.errors import ResultsError
from workflow.evaluation.metrics import Floats
from workflow.evaluation.prediction_files import said_of
from workflow.evaluation.repeated import MeanMeasure, Measure, Repeated, ScoreMeasure, repeated
from workflow.evaluation.report import Measured, read_report
from workflow.evaluation.score_files import classes_of, read_scores
from workflow.evaluation.score_forms import as_measured, forms
from workflow.evaluation.text_metrics import OF_ROWS, normalise, wanted_text
from workflow.files import read_json
from workflow.paths import RunPaths, predictions_name, prefixed
from workflow.sweep.ablation_file import Ablation
from workflow.sweep.study import Study

NEAR = 1e-6
"""How far a metric from a prediction file may be from the report's: texts hold as many digits as numbers need."""


@dataclass(frozen=True)
class Predictions:
    """A run's predictions in the form of its measure, and the rows that they are for; of scores what they should be, too."""

    values: Floats
    rows: list[Row]
    wanted: Floats | None = None
    scoring: Scoring | None = None


@dataclass(frozen=True)
class Found:
    """An ablation's finished runs by variant; `measure` is None where only reports can be compared, and `why` says so."""

    variants: Mapping[str, Repeated | None]
    measure: Measure | None
    why: str | None


def read_runs(study: Study, ablation: Ablation) -> Found:
    """Reads what is finished. Raises ResultsError where files contradict each other, or no run has the metric."""
    reported = {name: _reported(study, ablation, name) for name in ablation.variants}
    if not any(reported.values()):
        raise ResultsError(
            f"{study.folder}: none of the finished runs has {ablation.metric} in its {ablation.which} evaluation; "
            "the settings leave it out, or there are no eval rows"
        )
    why = _why_no_rows(ablation)
    measure: Measure | None = None
    predictions: dict[tuple[str, int], Predictions] = {}
    if why is None:
        for name, by_seed in reported.items():
            for seed in by_seed:
                predictions[name, seed] = _read(study, ablation, name, seed)
        measure = _measure(ablation, predictions)
    variants = {
        name: repeated(by_seed, _of(predictions, name, by_seed) if measure else None, measure) if by_seed else None
        for name, by_seed in reported.items()
    }
    return Found(variants, measure, why)


def _of(predictions: Mapping[tuple[str, int], Predictions], name: str, seeds: Mapping[int, Any]) -> dict[int, Floats]:
    return {seed: predictions[name, seed].values for seed in seeds}


def _reported(study: Study, ablation: Ablation, name: str) -> dict[int, float]:
    """The metric of a variant's finished runs, by seed; runs without it are left out."""
    found = {}
    for seed, point in zip(ablation.seeds, ablation.variants[name], strict=True):
        evaluation = _evaluation(study.run_paths(point), ablation, name) if study.finished(point) else None
        record = evaluation.metrics.get(ablation.metric) if evaluation else None
        if record is not None and record.value is not None:
            found[seed] = record.value
    return found


def _evaluation(run: RunPaths, ablation: Ablation, name: str) -> Measured | None:
    """The one that counts, of the variant's average where that is measured; None where the run has none. Raises ResultsError."""
    report = read_report(run.report)
    if (of := ablation.averages.get(name)) is None:
        return report.best if ablation.which == "best" else report.final
    found = report.averages.get(of)
    return found if found and report.final and found.step == report.final.step else None


def _why_no_rows(ablation: Ablation) -> str | None:
    """Why rows cannot be resampled for this metric, if so."""
    if ablation.entry.name == "clf":
        if ablation.settings.run.scores_only:
            return "prediction files of --scores_only have no targets"
        return "eval_loss is not in prediction files" if ablation.metric == "eval_loss" else None
    return None if ablation.metric in OF_ROWS else f"{ablation.metric} is no mean over rows"


def _read(study: Study, ablation: Ablation, name: str, seed: int) -> Predictions:
    """One run's predictions at the evaluation that counts; they must give what its report says."""
    point = ablation.variants[name][ablation.seeds.index(seed)]
    run = study.run_paths(point)
    found, of = _evaluation(run, ablation, name), ablation.averages.get(name, "")
    assert found is not None, "only runs that have it are read"
    record = found.metrics[ablation.metric]
    if ablation.entry.name == "clf":
        read, value = _read_scores(run.step_scores(found.step, of), ablation)
    else:
        settings = point.resolved.settings.evaluation if point.resolved else ablation.settings.evaluation
        file = predictions_name(temperature=settings.temperature, n_samples=settings.n_samples, step=found.step)
        read, value = _read_texts(run.root / prefixed(file, of), ablation)
    if value is None or record.value is None or abs(value - record.value) > NEAR * max(1.0, abs(record.value)):
        raise ResultsError(
            f"{run.root}: {ablation.metric} is {record.value} in report.json, but {value} by the predictions of step {found.step}"
        )
    return read


def _read_scores(file: Path, ablation: Ablation) -> tuple[Predictions, float | None]:
    scoring = said_of(file, {}) or _asked(ablation.settings.score)
    read = read_scores(file, scoring.targets(from_text=True))
    if read.rows is None:
        raise ResultsError(f"{file}: holds scores alone, without the rows' targets")
    reader = scoring.targets(from_text=True, names=classes_of(file, read.rows))
    targets = np.array([reader.of(row) for row in read.rows])
    given, wanted = (as_measured(scoring.problem, vectors) for vectors in (read.vectors, targets))
    value = forms(scoring.problem, given, wanted, unit=_unit(scoring))[ablation.metric].point.value
    return Predictions(given, read.rows, wanted, scoring), value


def _asked(score: ScoreSection) -> Scoring:
    """What scores are under these settings."""
    return Scoring(score.kind, score.labels, *(score.target_range or (0.0, 1.0)))


def _unit(scoring: Scoring) -> float:
    return scoring.high - scoring.low if scoring.problem == "binary" else 1.0


def _read_texts(file: Path, ablation: Ablation) -> tuple[Predictions, float | None]:
    records = read_json(file, broken=ResultsError)
    if not isinstance(records, list):
        raise ResultsError(f"{file}: no such prediction file")
    rows = [record["orig_d"] for record in records]
    texts = [[normalise(part["lm_postprocess"]) for part in record["generations"]] for record in records]
    values = OF_ROWS[ablation.metric](texts, [normalise(wanted_text(record)) for record in records])
    return Predictions(values, rows), float(values.mean())


def _measure(ablation: Ablation, predictions: Mapping[tuple[str, int], Predictions]) -> Measure | None:
    """What all runs are measured by: the same metric on the same rows. Raises ResultsError where the rows differ."""
    if not predictions:
        return None
    (first_name, first), *others = predictions.items()
    for name, other in others:
        if other.rows != first.rows:
            raise ResultsError(
                f"{ablation.path}: the eval rows of {name[0]}, seed {name[1]} are others than those of {first_name[0]}, seed "
                f"{first_name[1]}: the data changed, or a variant names other data"
            )
        if other.scoring and first.scoring and (differences := other.scoring.differences(first.scoring)):
            raise ResultsError(
                f"{ablation.path}: {name[0]} and {first_name[0]} score otherwise ({'; '.join(differences)}); say it for both in the base"
            )
    if ablation.entry.name == "seq2seq":
        return MeanMeasure(len(first.rows))
    assert first.wanted is not None
    assert first.scoring is not None
    return ScoreMeasure(first.scoring.problem, ablation.metric, first.wanted, _unit(first.scoring))
