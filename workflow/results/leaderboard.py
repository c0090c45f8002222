"""A task's answers for GLUE's leaderboard, from a file of scores of its test rows.

Knows nothing of where files are looked for (`leaderboard_files`). The rules, which the command tells with each task: of two
classes the second one where its score is at least 0.5, or the threshold that was fitted on dev rows, else the first; of
several the likeliest (of equal ones the first); STS-B's numbers clipped to [0, 5].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow.data.glue import STS_RANGE, GlueTask
from workflow.data.scoring import Scoring
from workflow.errors import ResultsError
from workflow.evaluation.prediction_files import said_of
from workflow.evaluation.score_files import ScoreFile, read_scores
from workflow.files import read_json
from workflow.label_names import places_of
from workflow.paths import scoring_beside

INDEX_KEYS = ("index", "idx")
HALF = 0.5
HEAD = "index\tprediction\n"


@dataclass(frozen=True)
class Answers:
    """A task's file: the answers in the order of their index, from where, and by which rule."""

    task: GlueTask
    answers: tuple[str, ...]
    source: Path | None
    rule: str

    @property
    def text(self) -> str:
        """The TSV file."""
        return HEAD + "".join(f"{number}\t{answer}\n" for number, answer in enumerate(self.answers))

    @property
    def shares(self) -> str:
        """How often each label is answered, for a glance; the range of numbers."""
        if self.task.problem == "regression":
            numbers = [float(answer) for answer in self.answers]
            return f"{min(numbers):g} to {max(numbers):g}"
        counts = Counter(self.answers)
        return ", ".join(f"{label} {counts[label]}" for label in self.task.labels if counts[label])


def answers_of(task: GlueTask, path: Path, *, fitted: bool = False) -> Answers:
    """Reads a file of scores of the task's test rows. Raises ResultsError where it is none of this task.

    `fitted`: two classes are told apart by the threshold that the scored checkpoint has for the task's first metric.
    """
    scoring = _scoring(task, path)
    file = read_scores(path, scoring.targets(from_text=True))
    order = _order(file)
    if task.problem == "regression":
        numbers, rule = _numbers(scoring, file)
        return Answers(task, tuple(task.answer(numbers[row]) for row in order), path, rule)
    threshold, kind = _threshold(task, path) if fitted else (HALF, "")
    classes, rule = _classes(task, scoring, file, threshold, kind)
    return Answers(task, tuple(task.answer(classes[row]) for row in order), path, rule)


def placeholder(task: GlueTask) -> Answers:
    """One constant answer for every row, where there is no model for a task."""
    constant = task.answer(0.0 if task.problem == "regression" else 0)
    return Answers(task, (constant,) * task.num_test, None, f"PLACEHOLDER: {constant} for every row")


def _scoring(task: GlueTask, path: Path) -> Scoring:
    """As the scoring or the run that wrote the file says; without either, as the task's classes are."""
    said = said_of(path, {})
    scoring = said if said is not None else Scoring(task.problem, task.names or ("no", "yes"))
    if task.problem == "regression":
        fits = scoring.problem in ("regression", "binary")
    else:
        fits = scoring.problem in ("binary", "multiclass") and len(scoring.labels) == len(task.labels)
    if not fits:
        raise ResultsError(
            f"{path}: scores of {scoring.problem} targets with labels {', '.join(scoring.labels)} are no answers to {task.name}, "
            f"whose classes are {', '.join(task.names) or 'numbers'}"
        )
    return scoring


def _numbers(scoring: Scoring, file: ScoreFile) -> tuple[Sequence[float], str]:
    low, high = STS_RANGE
    if scoring.problem == "binary":
        return (low + (high - low) * file.vectors[:, 1]).tolist(), f"scores as numbers in [{low:g}, {high:g}]"
    return np.clip(file.vectors[:, 0], low, high).tolist(), f"numbers, clipped to [{low:g}, {high:g}]"


def _threshold(task: GlueTask, path: Path) -> tuple[float, str]:
    """(the threshold that scoring wrote beside its file, what to tell of it); 0.5 where none was fitted."""
    record = read_json(scoring_beside(path))
    found = record.get("thresholds") if isinstance(record, dict) else None
    metric = task.metrics[0]
    value = found.get(metric) if isinstance(found, dict) else None
    return (float(value), f", fitted for {metric}") if value is not None else (HALF, ": no threshold was fitted")


def _classes(task: GlueTask, scoring: Scoring, file: ScoreFile, threshold: float, kind: str) -> tuple[list[int], str]:
    places = _places(task, scoring.labels)
    vectors = file.vectors
    chosen = (vectors[:, 1] >= threshold).astype(int) if scoring.problem == "binary" else vectors.argmax(axis=1)
    rule = f"{scoring.labels[1]} from {threshold:.4g} on{kind}" if scoring.problem == "binary" else "likeliest class"
    answers = [task.labels[place] for place in places]
    if answers != list(scoring.labels):
        rule += f" ({', '.join(f'{own} is {answer}' for own, answer in zip(scoring.labels, answers, strict=True))})"
    return [places[number] for number in chosen.tolist()], rule


def _places(task: GlueTask, labels: Sequence[str]) -> list[int]:
    """The task's class of each of the run's labels: by name where all have names of this task, else by place."""
    for names in (task.labels, task.names):
        if len(names) == len(labels) and (places := places_of(labels, names)) is not None:
            return list(places)
    return list(range(len(labels)))


def _order(file: ScoreFile) -> list[int]:
    """The rows by their index, which must be 0, 1, 2, ...; rows without one are taken in the file's order."""
    count = len(file.vectors)
    key = next((key for key in INDEX_KEYS if file.rows and all(key in row for row in file.rows)), None)
    if key is None or file.rows is None:
        return list(range(count))
    places: dict[int, int] = {}
    for row, values in enumerate(file.rows):
        text = str(values[key])
        number = int(text) if text.isdecimal() else -1
        if not 0 <= number < count or number in places:
            why = "is there twice" if number in places else f"is not in 0 to {count - 1}"
            raise ResultsError(
                f'{file.path}: record {row}: "{key}" {text} {why}; score the whole test file, each row once'
            )
        places[number] = row
    return [places[number] for number in range(count)]
