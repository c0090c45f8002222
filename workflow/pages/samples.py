"""What a model wrote or scored, row by row: the same rows before, amid and after training, and the worst of the last evaluation.

Knows nothing of HTML. Prediction files are streamed: what is kept are the chosen rows, the worst, and two numbers a row.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workflow.config.clf_settings import checked_score
from workflow.data.scoring import Scoring
from workflow.data.sources import file_rows
from workflow.data.targets import Targets
from workflow.data.texts import Texts
from workflow.errors import WorkflowError
from workflow.evaluation.metrics import Floats
from workflow.evaluation.prediction_files import said_of
from workflow.evaluation.score_files import ROW, SCORE, classes_of
from workflow.evaluation.text_metrics import normalise, token_f1, wanted_text
from workflow.pages.run_files import RunFiles
from workflow.paths import SCORES_NAME

NUM_SAMPLES = 8
NUM_WORST = 12
MOST_ROWS = 100_000
"""Rows of a prediction file that a report looks at."""


@dataclass(frozen=True)
class Sample:
    """One eval row: its number, what was asked and wanted, and what was given, by step."""

    row: int
    asked: str
    wanted: str
    given: dict[int, str]
    is_right: dict[int, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrong:
    """A row that was far from its target: `distance` is token F1's shortfall, or the scores' distance, in [0, 1] but for regression."""

    row: int
    asked: str
    wanted: str
    given: str
    distance: float


@dataclass(frozen=True)
class Looked:
    """Of one step's prediction file: how many rows were looked at, of how many were wrong, and the worst."""

    step: int
    rows: int
    wrong: int
    worst: list[Wrong]
    is_cut: bool = False
    vectors: Floats | None = None
    """Predictions [rows, width], of scorers."""
    targets: Floats | None = None
    """[rows, width]; None where the file holds scores alone."""


def records_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The first MOST_ROWS records with their numbers. Raises DataError."""
    return enumerate(itertools.islice((record for _, record in file_rows(path)), MOST_ROWS))


def steps_to_show(steps: Sequence[int]) -> list[int]:
    """The first, the middle and the last of what was evaluated."""
    if len(steps) <= 3:
        return list(steps)
    middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
    return [steps[0], middle, steps[-1]]


def rows_to_show(count: int) -> list[int]:
    """Up to NUM_SAMPLES rows, evenly spread."""
    return sorted({place * count // NUM_SAMPLES for place in range(NUM_SAMPLES)}) if count else []


def targets_of(run: RunFiles) -> Targets:
    """How a scorer's targets are read. Raises ConfigError."""
    file = run.root / SCORES_NAME
    said = {name: run.settings.get(name) for name in ("problem", "labels", "target_range")}
    score = checked_score(**said)
    low, high = score.target_range or (0.0, 1.0)
    scoring = said_of(file, {}) or Scoring(score.kind, score.labels, low, high)
    return scoring.targets(from_text=True, names=classes_of(file, ()))


def _samples(run: RunFiles, count: int, read: Any) -> list[Sample]:
    """The chosen rows of the files of the steps to show; `read(record)` is (asked, wanted, given, is right)."""
    chosen = rows_to_show(count)
    found: dict[int, Sample] = {}
    for step in steps_to_show(list(run.predictions)):
        wanted = set(chosen)
        for number, record in records_of(run.predictions[step]):
            if number not in wanted:
                continue
            asked, target, given, right = read(record)
            sample = found.setdefault(number, Sample(number, asked, target, {}))
            sample.given[step], sample.is_right[step] = given, right
            wanted.discard(number)
            if not wanted:
                break
    return [found[number] for number in chosen if number in found]


def look_at_texts(run: RunFiles, step: int) -> tuple[Looked, list[Sample]]:
    """The worst answers of a step's file, by token F1 (first generation of a row), and samples over the steps. Raises DataError."""
    wrong = count = 0

    def wrongs() -> Iterator[Wrong]:
        nonlocal wrong, count
        for number, record in records_of(run.predictions[step]):
            count += 1
            asked, wanted, given, right = _read_text(record)
            if not right:
                wrong += 1
                yield Wrong(number, asked, wanted, given, 1 - token_f1(given, wanted))

    worst = _worst(wrongs())
    looked = Looked(step, count, wrong, worst, is_cut=count == MOST_ROWS)
    return looked, _samples(run, count, _read_text)


def _read_text(record: dict[str, Any]) -> tuple[str, str, str, bool]:
    generations = record.get("generations") or [{}]
    given, wanted = str(generations[0].get("full_generated", "")), wanted_text(record)
    return str(record.get("prompt", "")), wanted, given, normalise(given) == normalise(wanted)


def _worst(found: Iterable[Wrong]) -> list[Wrong]:
    """The first rows among equally bad ones."""
    return heapq.nsmallest(NUM_WORST, found, key=lambda wrong: (-wrong.distance, wrong.row))


class ScoreReader:
    """Reads a scorer's records: what was asked, wanted and given, and the vectors behind them."""

    def __init__(self, run: RunFiles) -> None:
        self.targets = targets_of(run)
        self.texts = Texts(run.template)

    def asked(self, row: dict[str, Any]) -> str:
        """The input; both parts of a pair."""
        try:
            return "\n".join(part for part in self.texts.of(row) if part)
        except (WorkflowError, KeyError, TypeError, AttributeError):
            return str(row.get("input", row))

    def shown(self, vector: Sequence[float]) -> str:
        """A number in the targets' own range; of several labels, the likeliest, or all above one half."""
        targets = self.targets
        if targets.problem in ("binary", "regression"):
            return f"{float(targets.prediction(vector)):.3f}"
        if targets.problem == "multiclass":
            best = int(np.argmax(vector))
            return f"{targets.labels[best]} ({vector[best]:.2f})"
        return ", ".join(label for label, share in zip(targets.labels, vector, strict=True) if share >= 0.5) or "none"

    def distance(self, given: Sequence[float], wanted: Sequence[float]) -> float:
        """Total variation of distributions, the largest difference of labels' numbers, or the difference of numbers."""
        apart = np.abs(np.asarray(given) - np.asarray(wanted))
        return float(apart.sum() / 2 if self.targets.problem in ("binary", "multiclass") else apart.max())

    def read(self, record: dict[str, Any]) -> tuple[str, str, str, bool]:
        """(asked, wanted, given, whether the decision is right)."""
        given = self.targets.from_prediction(record[SCORE])
        row = record.get(ROW)
        if not isinstance(row, dict):
            return "(scores alone)", "", self.shown(given), True
        wanted = self.targets.of(row)
        return self.asked(row), self.shown(wanted), self.shown(given), self.decides(given) == self.decides(wanted)

    def decides(self, vector: Sequence[float]) -> Any:
        """What a vector comes down to at one half."""
        if self.targets.problem == "multiclass":
            return int(np.argmax(vector))
        return [share >= 0.5 for share in (vector[1:] if self.targets.problem == "binary" else vector)]


def look_at_scores(run: RunFiles, step: int) -> tuple[Looked, list[Sample]]:
    """Scores and targets of a step's file, the rows farthest off, and samples over the steps. Raises WorkflowError."""
    reader = ScoreReader(run)
    vectors: list[list[float]] = []
    targets: list[list[float]] = []
    wrong = 0

    def wrongs() -> Iterator[Wrong]:
        nonlocal wrong
        for number, record in records_of(run.predictions[step]):
            given = reader.targets.from_prediction(record[SCORE])
            vectors.append(given)
            row = record.get(ROW)
            if not isinstance(row, dict):
                continue
            wanted = reader.targets.of(row)
            targets.append(wanted)
            wrong += reader.decides(given) != reader.decides(wanted)
            yield Wrong(
                number, reader.asked(row), reader.shown(wanted), reader.shown(given), reader.distance(given, wanted)
            )

    worst = _worst(wrongs())
    whole = np.array(targets) if len(targets) == len(vectors) else None
    looked = Looked(step, len(vectors), wrong, worst, len(vectors) == MOST_ROWS, np.array(vectors), whole)
    return looked, _samples(run, len(vectors), reader.read)
