"""Rows of a registered data set as clf.py takes them: texts joined, labels as classes, all of it checked first.

Knows nothing of where rows stand (`registry_sources`) or of models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.data.class_names import KEY
from workflow.data.glue import GlueTask
from workflow.data.glue_files import LeftOut, find_split
from workflow.data.registry import LINES, Entry
from workflow.data.registry_sources import PHONEME, PHONEME_FIX, class_label_names, column_file, place_of, split_rows
from workflow.data.sources import Row
from workflow.errors import DataError, did_you_mean

NORMAL, IPA = "normal", "ipa"
MODEL_TYPES = (NORMAL, IPA)
"""Models of texts, and models of their phonemes."""
LANGUAGE = "language"
NO_LABEL = "-1"
"""What stands for no label, where no class is called so."""
MAX_PROBLEMS = 10
MAX_SURPLUS = 20
"""Labels beyond the declared number that are still told apart."""


@dataclass
class SplitSurvey:
    """What one pass over a split found. `first` is where each label stands first."""

    split: str
    place: str = ""
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf
    phonemes: int = 0
    """Rows that have a phoneme text for each feature."""
    left_out: LeftOut = field(default_factory=LeftOut)
    unlabelled: int = 0
    """Rows whose label is -1, where no class is called so."""


@dataclass(frozen=True)
class Survey:
    """Both splits of an entry, and its labels in the order of their classes (none for numbers)."""

    entry: Entry
    splits: tuple[SplitSurvey, SplitSurvey]
    labels: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called: as the labels, but in GLUE's tasks, whose labels may be numbers."""
        if self.entry.glue is not None:
            return self.entry.glue[0].names
        said = class_label_names(self.entry)
        are_places = self.labels == tuple(map(str, range(len(self.labels))))
        return said if are_places and len(said) == len(self.labels) else self.labels

    def notes(self) -> list[str]:
        """What is odd, though it may be meant."""
        found = []
        if self.entry.glue is not None and self._measures_on_test(*self.entry.glue):
            found.append(
                f"{self.splits[1].place}: the corpus has no dev file, so the eval rows are its test rows; what is chosen "
                "by them flatters a leaderboard's figures for them"
            )
        for split, other in zip(self.splits, reversed(self.splits), strict=True):
            if split.left_out.count:
                found.append(
                    f"{split.place}: {split.left_out.count} broken rows left out, the first at {split.left_out.first}"
                )
            if split.unlabelled:
                found.append(f"{split.place}: {split.unlabelled} rows without a label (-1) left out")
            if absent := [label for label in self.labels if label not in split.labels]:
                found.append(
                    f"{split.place}: no rows of class {', '.join(absent)}, which {other.split} has or the registry names"
                )
        return found

    def _measures_on_test(self, task: GlueTask, folder: Path) -> bool:
        stem = find_split(folder, task, self.entry.splits[1]).stem
        return self.entry.splits[1] != "test" and stem in task.split_files("test")


def columns_of(entry: Entry, model_type: str) -> tuple[str, ...]:
    """The columns of the texts that a model of this type reads."""
    return tuple(f"{name}{PHONEME}" for name in entry.features) if model_type == IPA else entry.features


def survey(entry: Entry, model_type: str = NORMAL) -> Survey:
    """Reads both splits once and checks every row. Raises DataError with the first problems found."""
    problems = Problems()
    splits = [_survey_split(entry, split, model_type, problems) for split in entry.splits]
    if problems.found:
        raise DataError(problems.told(entry))
    return Survey(entry, (splits[0], splits[1]), _classes(entry, splits))


class Problems:
    """What is wrong with rows: each problem of a split once, with its first place and the number of its rows."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[str, int]] = {}

    def add(self, split: str, where: str, problem: str) -> None:
        """Notes one."""
        first, count = self.found.get((split, problem), (where, 0))
        self.found[split, problem] = first, count + 1

    def told(self, entry: Entry) -> str:
        """All of them as an error's text."""
        lines = [
            f"{where}: {problem}" + (f" ({count:,} rows of {split} have this)" if count > 1 else "")
            for (split, problem), (where, count) in self.found.items()
        ]
        if len(lines) == 1:
            return f"{entry.key}: {lines[0]}"
        shown = "the first problems" if len(lines) >= MAX_PROBLEMS else f"{len(lines)} problems"
        return "\n".join([f"{entry.key}: {shown}:", *(f"  {line}" for line in lines)])


def _survey_split(entry: Entry, split: str, model_type: str, problems: Problems) -> SplitSurvey:
    found = SplitSurvey(split, place_of(entry, split))
    columns, phonemes = columns_of(entry, model_type), columns_of(entry, IPA)
    if entry.dataset.startswith(LINES):
        there = [name for name in phonemes if column_file(entry, split, name).is_file()]
        wanted = dict.fromkeys((*columns, *there, entry.label, *entry.keep))
    else:
        wanted = dict.fromkeys((*columns, entry.label, *entry.keep))
    for where, row in split_rows(entry, split, list(wanted), found.left_out):
        if len(problems.found) >= MAX_PROBLEMS:
            break
        found.rows += 1
        problem = (
            _text_problem(row, columns, model_type)
            or _keep_problem(row, entry.keep)
            or _count(entry, found, where, row)
        )
        if problem:
            problems.add(split, where, problem)
        found.phonemes += all(isinstance(row.get(name), str) for name in phonemes)
    if not found.rows:
        problems.add(split, found.place, "no rows")
    return found


def _text_problem(row: Row, columns: Sequence[str], model_type: str) -> str | None:
    for name in columns:
        value = row.get(name)
        if value is None:
            fix = 'correct "train_features"'
            if model_type == IPA:
                fix = PHONEME_FIX
            return f'no "{name}"{did_you_mean(name, row)} (the row has {", ".join(map(str, row))}); {fix}'
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            return f'"{name}" is a {type(value).__name__}, not a text'
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return f'"{name}" holds half a surrogate pair, which is no character'
    return None


def _keep_problem(row: Row, keep: Sequence[str]) -> str | None:
    absent = [name for name in keep if name not in row]
    return f'no "{absent[0]}", which "keep" names{did_you_mean(absent[0], row)}' if absent else None


def _count(entry: Entry, found: SplitSurvey, where: str, row: Row) -> str | None:
    """Counts the row's label; gives what is wrong with it, or None."""
    value = row.get(entry.label)
    if value is None or value == "":
        return f'no label in "{entry.label}"{did_you_mean(entry.label, row)} (the row has {", ".join(map(str, row))})'
    if entry.classes == 0:
        number = number_of(value)
        if number is None:
            return f'"{entry.label}" is {value!r}, not a number'
        found.low, found.high = min(found.low, number), max(found.high, number)
        return None
    label = label_of(value)
    if label is None:
        return f'"{entry.label}" is {value!r}, neither a text nor a whole number, so no class'
    if label == NO_LABEL and entry.labels and label not in entry.labels:
        found.unlabelled += 1
        found.rows -= 1
        return None
    if entry.labels and label not in entry.labels:
        return (
            f'"{entry.label}" is {label!r}{did_you_mean(label, entry.labels)}; "labels" has {", ".join(entry.labels)}'
        )
    if label in found.labels or len(found.labels) < entry.classes + MAX_SURPLUS:
        found.labels[label] += 1
        found.first.setdefault(label, where)
    return None


def label_of(value: Any) -> str | None:
    """A label as a text: 1, 1.0, True and "1" are one label; None for what is no label."""
    if isinstance(value, bool | int):
        return str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return value.strip() if isinstance(value, str) else None


def number_of(value: Any) -> float | None:
    """A finite number, also where it is written as a text; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _classes(entry: Entry, splits: Sequence[SplitSurvey]) -> tuple[str, ...]:
    """The labels in the order of their classes: the registry's, else numbers by value, else texts by alphabet.

    Raises DataError where there are more or fewer than the registry declares.
    """
    if entry.classes == 0 or entry.labels:
        return entry.labels
    found = sorted({label for split in splits for label in split.labels}, key=_by_value)
    if NO_LABEL in found and len(found) == entry.classes + 1:  # as GLUE's test splits on the hub
        found.remove(NO_LABEL)
        for split in splits:
            split.unlabelled = split.labels.pop(NO_LABEL, 0)
            split.rows -= split.unlabelled
            if not split.rows:
                raise DataError(
                    f"{entry.key}: {split.place}: no row has a label (all are -1), so it cannot be learnt from or measured on"
                )
    if len(found) == entry.classes:
        return tuple(found)
    first = {label: where for split in reversed(splits) for label, where in split.first.items()}
    shown = "; ".join(f"{label!r} first at {first[label]}" for label in found[: entry.classes + MAX_SURPLUS])
    fix = (
        'correct "classes" or "eval_feature"'
        if len(found) > entry.classes
        else 'correct "classes", or name all "labels"'
    )
    raise DataError(f"{entry.key}: declares {entry.classes} classes, and the data has {len(found)}: {shown}; {fix}")


def _by_value(label: str) -> tuple[int, int, str]:
    digits = label.removeprefix("-")
    return (0, int(label), "") if digits.isdecimal() and digits.isascii() else (1, 0, label)


def made_rows(
    entry: Entry, split: str, classes: Mapping[str, Mapping[str, Any]], model_type: str = NORMAL
) -> Iterator[Row]:
    """The rows of a surveyed split: `input` (and `input_pair`), `target`, `language`, and what the entry keeps.

    `classes` are what the rows of each label say of their class; none for numbers.
    """
    columns = columns_of(entry, model_type)
    for _, row in split_rows(entry, split, [*dict.fromkeys((*columns, entry.label, *entry.keep))], LeftOut()):
        value = row[entry.label]
        if classes and label_of(value) == NO_LABEL and NO_LABEL not in classes:
            continue
        yield {
            **made_texts(entry, row, columns),
            **(classes[label_of(value) or ""] if classes else {KEY: number_of(value)}),
            LANGUAGE: entry.language,
            **{name: row[name] for name in entry.keep},
        }


def unlabelled_rows(entry: Entry, split: str, model_type: str = NORMAL) -> Iterator[Row]:
    """The rows of a split without targets, such as a leaderboard's. Raises DataError for a row without its texts."""
    columns = columns_of(entry, model_type)
    wanted = [*dict.fromkeys((*columns, *entry.keep))]
    for where, row in split_rows(entry, split, wanted, LeftOut(), labelled=False):
        if problem := _text_problem(row, columns, model_type) or _keep_problem(row, entry.keep):
            raise DataError(f"{entry.key}: {where}: {problem}")
        yield {**made_texts(entry, row, columns), LANGUAGE: entry.language, **{name: row[name] for name in entry.keep}}


def made_texts(entry: Entry, row: Row, columns: Sequence[str]) -> Row:
    """One feature is `input`, two are `input` and `input_pair`, more are one `input` with the entry's separator between."""
    texts = [str(row[name]) for name in columns]
    if len(texts) == 2:
        return {"input": texts[0], "input_pair": texts[1]}
    return {"input": entry.separator.join(texts)}
