"""What is measured of prediction files of scores: the files, what their scores are, and the targets of their rows.

Knows nothing of metrics.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workflow import paths as names
from workflow.config.clf_settings import checked_score
from workflow.data.class_names import class_names
from workflow.data.examples import TextRows, load_examples
from workflow.data.scoring import Scoring
from workflow.data.sources import Row, find_source
from workflow.data.tables import AUTO
from workflow.data.texts import TEXT_KEYS
from workflow.errors import ConfigError, DataError, ResultsError
from workflow.evaluation.metrics import Floats
from workflow.evaluation.score_files import ScoreFile, classes_of, read_scores, record_of
from workflow.files import read_json

ANY_ROW = TextRows(texts=())
SAID = ("problem", "labels", "target_range")
"""Settings that say what scores are."""


@dataclass(frozen=True)
class Truth:
    """The rows and their targets [rows, width]."""

    rows: list[Row]
    targets: Floats


@dataclass(frozen=True)
class Measured:
    """What there is to measure: the files, the one to compare with, how they are read, and the truth."""

    paths: list[Path]
    files: list[ScoreFile]
    against: ScoreFile | None
    scoring: Scoring
    truth: Truth


def read_predictions(given: Namespace, mount: Path) -> Measured:
    """Reads what the command line names. Raises ConfigError, DataError or ResultsError where it does not fit together."""
    paths = [prediction_file(name, mount) for name in given.predictions]
    against = prediction_file(given.against, mount) if given.against is not None else None
    asked = {name: getattr(given, name) for name in SAID if getattr(given, name) is not None}
    scoring = scoring_of([*paths, *([against] if against else [])], asked)
    plain = scoring.targets(from_text=True)
    files = [read_scores(path, plain) for path in paths]
    other = read_scores(against, plain) if against else None
    truth = truth_of(files[0], scoring, given.data, mount, given.quoting)
    for file in (*files, *([other] if other else [])):
        check_same_rows(file, truth)
    return Measured(paths, files, other, scoring, truth)


def prediction_file(name: str, mount: Path) -> Path:
    """A file, or a run's: its folder, or its name under the mount."""
    for path in (Path(name), mount / "models" / name):
        if path.is_file():
            return path
        if (path / names.SCORES_NAME).is_file():
            return path / names.SCORES_NAME
        if path.is_dir():
            raise ResultsError(f"{path}: no {names.SCORES_NAME} here; the run has not finished, or is no run of clf.py")
    raise ResultsError(f"{name}: no such prediction file, and no run of this name under {mount / 'models'}")


def scoring_of(paths: Sequence[Path], asked: dict[str, Any]) -> Scoring:
    """What the scores are: as asked (by the names in SAID), else as the files' runs say, all alike; else binary."""
    said = {path: found for path in paths if (found := said_of(path, asked)) is not None}
    first = next(iter(said), None)
    for path, found in said.items():
        assert first is not None
        if differences := found.differences(said[first]):
            raise ConfigError(
                f"{path} holds scores of another kind than {first}: {'; '.join(differences)}; "
                "where that is meant, say what they all are by --problem, --labels and --target_range"
            )
    return said[first] if first is not None else _as_scoring(asked)


def said_of(path: Path, asked: dict[str, Any]) -> Scoring | None:
    """What a file's own run, or the scoring that wrote it, says of its scores, under what is asked; None where neither is there.

    A run says it in scoring.json, since its labels may be those of its model or of its data; older ones in their settings.
    """
    record = record_of(path)
    try:
        if record is not None:
            own = record["scoring"]
            own = {**own, "target_range": (own["low"], own["high"]) if own["problem"] == "binary" else None}
        else:
            own = read_json(path.parent / names.SETTINGS_NAMES[1])["settings"]
        found = _as_scoring({**{name: own.get(name) for name in SAID}, **asked})
        return replace(found, reads=own.get("reads"))
    except (KeyError, TypeError, AttributeError):  # there is no such file, or it is something else
        return None


def _as_scoring(values: dict[str, Any]) -> Scoring:
    score = checked_score(**values)
    low, high = score.target_range or (0.0, 1.0)
    return Scoring(score.kind, score.labels, low, high)


def truth_of(first: ScoreFile, scoring: Scoring, data: str | None, mount: Path, quoting: str = AUTO) -> Truth:
    """The targets, from the records' own rows or from a data set's eval rows."""
    rows, label, classes = first.rows, str(first.path), None
    if data is not None:
        source = find_source(data, mount, quoting)
        label = source.label
        rows = list(load_examples(source, ANY_ROW, names.cache_dir()).eval)
        classes = class_names(row for _, _, row in source.rows())
        if not rows:
            raise DataError(
                f"{label}: no eval rows, which --data takes the targets from; a list of rows is all training rows, "
                'unless each says "split": "eval"'
            )
    if rows is None:
        raise ResultsError(
            f"{first.path}: holds scores alone; pass --data NAME, the data set whose eval rows were scored"
        )
    targets = []
    classes = classes if classes is not None else classes_of(first.path, rows)
    reader = scoring.targets(from_text=True, names=classes)
    if data is not None and len(rows) != len(first.vectors):  # clf.py scores none without a label
        rows = [row for row in rows if not reader.leaves_out(row)]
    for number, row in enumerate(rows):
        unread = scoring.texts.problem_of(row) if scoring.reads and any(key in row for key in TEXT_KEYS) else None
        if problem := reader.problem_of(row) or unread:
            raise ResultsError(f"{label}: row {number}: {problem}")
        targets.append(reader.of(row))
    return Truth(rows, np.array(targets, dtype=np.float64))


def check_same_rows(file: ScoreFile, truth: Truth) -> None:
    """Raises ResultsError where a file's records are of other rows, naming the first and what differs."""
    if len(file.vectors) != len(truth.rows):
        raise ResultsError(f"{file.path}: {len(file.vectors)} records for {len(truth.rows)} rows")
    if different := other_row(file.rows or (), truth.rows):
        raise ResultsError(f"{file.path}: {different} than in the other file or data set")


def other_row(rows: Sequence[Row], others: Sequence[Row]) -> str | None:
    """The first of `rows` that is another than in its place among `others`, told with the keys that differ; or None."""
    for number, (mine, other) in enumerate(zip(rows, others, strict=False)):
        if mine != other:
            keys = [key for key in dict.fromkeys([*mine, *other]) if mine.get(key) != other.get(key)]
            return (
                f"record {number} is of another row (its {', '.join(keys[:4])} differ{'s' if len(keys) == 1 else ''})"
            )
    return None
