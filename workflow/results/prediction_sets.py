"""Prediction files as what can be compared: of scores or of texts, for the same rows in the same order.

Knows nothing of runs or tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.data.sources import Row, file_rows
from workflow.errors import ConfigError, DataError, ResultsError, did_you_mean
from workflow.evaluation.comparison import Pair, score_pair
from workflow.evaluation.metrics import Floats
from workflow.evaluation.prediction_files import check_same_rows, other_row, scoring_of, truth_of
from workflow.evaluation.score_files import SCORE, read_scores
from workflow.evaluation.score_forms import as_measured
from workflow.evaluation.text_forms import PREDICTED, ROUGE, text_form
from workflow.evaluation.text_metrics import ROUGE_ROWS, wanted_text
from workflow.metric_names import SCORE_METRICS, listed, metric_of

USUAL = {"binary": "f1_macro", "multiclass": "f1_macro", "multilabel": "f1_macro", "regression": "spearman"}
GENERATIONS = "generations"
REFERENCE = "completion"


@dataclass(frozen=True)
class ScoreSet:
    """Files of scores: each one's predictions and the targets, shaped as `score_metrics` takes them."""

    problem: str
    unit: float
    rows: list[Row]
    targets: Floats
    predictions: Mapping[Path, Floats]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What can be compared."""
        return tuple(name for name in SCORE_METRICS[self.problem] if name != "eval_loss")

    @property
    def usual(self) -> str:
        """What is compared unless a metric is named."""
        return USUAL[self.problem]

    def pair(self, metric: str, first: Path, second: Path, picked: Sequence[int]) -> Pair:
        """Two files' forms on the picked rows."""
        some = list(picked)
        one, two = self.predictions[first][some], self.predictions[second][some]
        unit = self.unit if self.problem == "binary" else 1.0
        return score_pair(self.problem, one, two, self.targets[some], metric=metric, unit=unit)


@dataclass(frozen=True)
class TextSet:
    """Files of texts: each one's samples for each row, and the references."""

    rows: list[Row]
    references: list[str]
    predictions: Mapping[Path, list[list[str]]]
    metrics: tuple[str, ...] = PREDICTED
    usual: str = "exact_match"

    def pair(self, metric: str, first: Path, second: Path, picked: Sequence[int]) -> Pair:
        """Two files' forms on the picked rows."""
        wanted = [self.references[row] for row in picked]
        one, two = ([self.predictions[path][row] for row in picked] for path in (first, second))
        both = text_form(metric, wanted + wanted, one + two).statistic
        return Pair(text_form(metric, wanted, one), text_form(metric, wanted, two), both)


PredictionSet = ScoreSet | TextSet


def read_set(paths: Sequence[Path], *, data: str | None, asked: dict[str, Any], mount: Path) -> PredictionSet:
    """Reads files that are of one kind and of the same rows. Raises ResultsError naming the first row that differs."""
    kinds = {path: _kind(path) for path in paths}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{path} holds {kind}" for path, kind in kinds.items())
        raise ResultsError(f"files of unlike kinds cannot be compared: {told}")
    return _texts(paths) if kinds[paths[0]] == "texts" else _scores(paths, data, asked, mount)


def checked_metrics(found: PredictionSet, given: Sequence[str]) -> list[str]:
    """The named metrics by our names, "all" for every one, else the usual one. Raises ConfigError."""
    if list(given) == ["all"]:
        return list(found.metrics)
    names = [metric_of(name) for name in given] or [found.usual]
    for name in names:
        if name not in found.metrics:
            raise ConfigError(
                f"--metric {name}: cannot be computed from these prediction files{did_you_mean(name, found.metrics)}; "
                f"there are {listed(found.metrics)}, or all"
            )
    return list(dict.fromkeys(names))


def rows_of(found: PredictionSet, metric: str, key: str | None, value: str | None) -> list[int]:
    """The rows that a metric is compared on: a slice's, or all; of ROUGE the first so many, as in reports."""
    rows = list(range(len(found.rows)))
    if value is not None:
        from workflow.evaluation.evaluator import slices_of

        rows = slices_of(found.rows, key).get(value, [])
        if not rows:
            raise ResultsError(f"no eval row has {key} = {value}, the part of the rows that these results are of")
    return rows[:ROUGE_ROWS] if metric in ROUGE else rows


def _kind(path: Path) -> str:
    for record in _records(path):
        if SCORE in record:
            return "scores"
        if GENERATIONS in record:
            return "texts"
        raise ResultsError(f'{path}: record 0: neither "{SCORE}" nor "{GENERATIONS}"; this is no prediction file')
    raise ResultsError(f"{path}: no records")


def _records(path: Path) -> list[Row]:
    if not path.is_file():
        raise ResultsError(f"{path}: no such prediction file")
    try:
        return [record for _, record in file_rows(path)]
    except DataError as error:
        raise ResultsError(str(error)) from None


def _scores(paths: Sequence[Path], data: str | None, asked: dict[str, Any], mount: Path) -> ScoreSet:
    scoring = scoring_of(paths, asked)
    reader = scoring.targets(from_text=True)
    files = {path: read_scores(path, reader) for path in paths}
    truth = truth_of(next(iter(files.values())), scoring, data, mount)
    for file in files.values():
        check_same_rows(file, truth)
    return ScoreSet(
        scoring.problem,
        scoring.high - scoring.low,
        truth.rows,
        as_measured(scoring.problem, truth.targets),
        {path: as_measured(scoring.problem, file.vectors) for path, file in files.items()},
    )


def _texts(paths: Sequence[Path]) -> TextSet:
    every = {path: _records(path) for path in paths}
    first, records = next(iter(every.items()))
    rows = [_row_of(first, number, record) for number, record in enumerate(records)]
    for path, others in every.items():
        if len(others) != len(rows):
            raise ResultsError(f"{path}: {len(others)} records, and {len(rows)} in {first}")
        if different := other_row([_row_of(path, number, record) for number, record in enumerate(others)], rows):
            raise ResultsError(f"{path}: {different} than in {first}")
    samples = {
        path: [_samples(path, number, record) for number, record in enumerate(found)] for path, found in every.items()
    }
    return TextSet(rows, [*map(wanted_text, records)], samples)


def _row_of(path: Path, number: int, record: Row) -> Row:
    row = record.get("orig_d")
    if not isinstance(row, dict) or not isinstance(row.get(REFERENCE), str):
        raise ResultsError(f'{path}: record {number}: no "orig_d" with a "{REFERENCE}" to compare the texts with')
    return row


def _samples(path: Path, number: int, record: Row) -> list[str]:
    try:
        samples = [str(sample["full_generated"]) for sample in record[GENERATIONS]]
    except (KeyError, TypeError):
        samples = []
    if not samples:
        raise ResultsError(f'{path}: record {number}: "{GENERATIONS}" hold no "full_generated" text')
    return samples
