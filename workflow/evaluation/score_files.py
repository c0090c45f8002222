"""Prediction files of scores: `[{"orig_d", "pred_score"}]`, one record a row, in the rows' order.

Knows nothing of models. `.jsonl` files hold one record a line, others one list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from workflow.data.class_names import ClassNames, class_names
from workflow.data.scoring import Scoring
from workflow.data.sources import Row, file_rows
from workflow.data.targets import Targets
from workflow.errors import DataError, ResultsError
from workflow.evaluation.calibration import Calibration
from workflow.evaluation.metrics import Floats, Metric
from workflow.files import is_stream, read_json, whole_file, write_json
from workflow.paths import METRICS_NAME, SCORING_NAME, scoring_beside

SCORE = "pred_score"
LABEL = "pred_label"
ROW = "orig_d"
MOST_LISTED = 1000
"""Labels whose scores a record lists; a file of ten thousand for each row would hold nothing else."""
NUM_LISTED = 100
THRESHOLDS_ARE_OF = "scores in [0, 1]; with --target_range LOW HIGH, of (pred_score - LOW) / (HIGH - LOW)"


def score_record(row: Row | None, vector: Sequence[float], targets: Targets) -> dict[str, Any]:
    """One record; without a row the score alone. Multi-class records name the likeliest label, multi-label ones all above 0.5.

    Of more than MOST_LISTED labels the NUM_LISTED likeliest are kept, by name.
    """
    is_long = targets.width > MOST_LISTED
    record: dict[str, Any] = {SCORE: _likeliest(vector, targets.labels) if is_long else targets.prediction(vector)}
    if targets.problem == "multiclass":
        record[LABEL] = targets.labels[int(np.argmax(vector))]
    if targets.problem == "multilabel":
        record[LABEL] = [label for label, share in zip(targets.labels, vector, strict=True) if share >= 0.5]
    return record if row is None else {ROW: row, **record}


def _likeliest(vector: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    places = np.argsort(-np.asarray(vector), kind="stable")[:NUM_LISTED]
    return {labels[place]: float(f"{vector[place]:.6g}") for place in places.tolist()}


def write_scores(
    path: Path, rows: Iterable[Row], vectors: Floats, targets: Targets, *, scores_only: bool = False
) -> None:
    """Writes the records of rows and their predicted vectors [rows, width]."""
    records = (
        score_record(None if scores_only else row, vector.tolist(), targets)
        for row, vector in zip(rows, vectors, strict=True)
    )
    with whole_file(path) as file:
        write_records(file, records, as_lines=in_lines(path))


def in_lines(path: Path) -> bool:
    """Whether a prediction file has one record a line, by its name; what has none of a list, such as `-`, has lines."""
    return path.suffix == ".jsonl" or (path.suffix != ".json" and is_stream(path))


def write_records(file: TextIO, records: Iterable[dict[str, Any]], *, as_lines: bool) -> None:
    """One record a line, within a list unless `as_lines`."""
    count = 0
    for count, record in enumerate(records, start=1):
        file.write("" if as_lines else "[\n" if count == 1 else ",\n")
        # A date of a Parquet file, which JSON has not, becomes a text, as in the cache.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
        file.write(text + ("\n" if as_lines else ""))
    if not as_lines:
        file.write("\n]\n" if count else "[]\n")


def copy_scores(path: Path, target: Path) -> None:
    """Writes the records of a prediction file to another: a list or lines, as its name says, and no link to the first."""
    with whole_file(target) as file:
        write_records(file, _records(path), as_lines=in_lines(target))


@dataclass(frozen=True)
class ScoreFile:
    """A prediction file: its predicted vectors [rows, width], and the rows unless it holds scores alone."""

    path: Path
    vectors: Floats
    rows: list[Row] | None


def read_scores(path: Path, targets: Targets) -> ScoreFile:
    """Reads a prediction file. Raises ResultsError naming the record that is none."""
    if not path.is_file():
        raise ResultsError(f"{path}: no such prediction file")
    vectors: list[list[float]] = []
    rows: list[Row] = []
    for number, record in enumerate(_records(path)):
        if SCORE not in record:
            raise ResultsError(
                f'{path}: record {number}: no "{SCORE}"; prediction files of clf.py and `workflow score` have it'
            )
        try:
            vectors.append(targets.from_prediction(record[SCORE]))
        except ValueError as reason:
            raise ResultsError(f'{path}: record {number}: "{SCORE}" {reason}') from None
        if isinstance(record.get(ROW), dict):
            rows.append(record[ROW])
    if not vectors:
        raise ResultsError(f"{path}: no records")
    if rows and len(rows) < len(vectors):
        raise ResultsError(f'{path}: some records have "{ROW}", others not')
    return ScoreFile(path, np.array(vectors), rows or None)


def scoring_record(scoring: Scoring, names: ClassNames) -> dict[str, Any]:
    """What files of scores are: of which scorer, and what the scored data calls its classes."""
    return {"scoring": scoring.as_json(), "classes": asdict(names)}


def record_of(path: Path) -> dict[str, Any] | None:
    """What was recorded of a file of scores by the scoring, the run or the evaluation that wrote it; None without it."""
    places = (scoring_beside(path), path.with_name(SCORING_NAME), path.with_name(METRICS_NAME))
    records = (read_json(place) for place in places)
    return next((found for found in records if isinstance(found, dict) and "scoring" in found), None)


def classes_of(path: Path, rows: Iterable[Row]) -> ClassNames:
    """What the rows of a file of scores call their classes: as recorded, else as they say it themselves."""
    said = (record_of(path) or {}).get("classes")
    if not isinstance(said, dict):
        return class_names(rows)
    return ClassNames(tuple(said.get("numbers", ())), tuple(said.get("names", ())))


def write_calibration(
    path: Path, calibration: Calibration, reported: Mapping[str, Metric], *, threshold_metric: str
) -> None:
    """`calibration.json`: the fitted maps, the threshold that counts, and what they do to rows they were not fitted on."""
    write_json(
        path,
        {
            **calibration.as_json(),
            "threshold_metric": threshold_metric,
            "thresholds_are_of": THRESHOLDS_ARE_OF,
            "reported": {name: metric.as_json() for name, metric in reported.items()},
        },
    )


def read_calibration(path: Path) -> Calibration | None:
    """The calibration in a checkpoint, or None where it has none. Raises ResultsError."""
    values = read_json(path, broken=ResultsError)
    if values is None:
        return None
    if isinstance(values, dict):
        for key in ("threshold_metric", "thresholds_are_of", "reported"):
            values.pop(key, None)
    return Calibration.from_json(values, where=str(path))


def _records(path: Path) -> Iterator[Row]:
    try:
        for _, record in file_rows(path):
            yield record
    except DataError as error:
        raise ResultsError(str(error)) from None
