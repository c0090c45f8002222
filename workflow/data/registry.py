"""The registry of data sets: language -> task -> name -> where its rows are and which of their columns are read.

Knows nothing of rows (`registry_rows`): no data file is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.config.cascade import read_settings_file
from workflow.data.glue import NINE, TASKS, GlueTask, glue_task
from workflow.data.glue_files import folder_of_task, task_of_folder
from workflow.errors import ConfigError, DataError, did_you_mean

GLUE = "glue:"
"""Before a folder of one of GLUE's tasks."""
LINES = "lines:"
"""Before a folder with a file a column: `SPLIT_COLUMN.txt`, a row a line."""
SEPARATOR = " | "
"""Between the texts of three or more features."""
BUILT_IN = "glue"
"""The name of the registry of a folder of GLUE's tasks."""
ENGLISH = "english"
KEYS = (
    "dataset",
    "train_features",
    "eval_feature",
    "splits",
    "task_type",
    "classes",
    "labels",
    "separator",
    "keep",
)

OWN_KEYS = ("input", "input_pair", "target", "target_name", "language")
"""What rows made of an entry hold."""


@dataclass(frozen=True)
class Entry:
    """A registered data set. `home` is the folder that a relative path starts at."""

    language: str
    task: str
    name: str
    dataset: str
    features: tuple[str, ...]
    label: str
    splits: tuple[str, str]
    classes: int
    """0 for numbers (`task_type` regression)."""
    labels: tuple[str, ...] = ()
    """The labels in the order of their classes, where the registry says so."""
    separator: str = SEPARATOR
    keep: tuple[str, ...] = ()
    """Columns that rows keep besides their texts and their label."""
    home: Path = Path()

    @property
    def key(self) -> str:
        """`LANGUAGE/TASK/NAME`."""
        return f"{self.language}/{self.task}/{self.name}"

    @property
    def problem(self) -> str:
        """What clf.py calls such targets."""
        return {0: "regression", 2: "binary"}.get(self.classes, "multiclass")

    @property
    def glue(self) -> tuple[GlueTask, Path] | None:
        """The task and its folder, where this is one of GLUE's."""
        if not self.dataset.startswith(GLUE):
            return None
        task, folder = task_of_folder(self.dataset.removeprefix(GLUE))
        return task, self.home / folder.expanduser()


@dataclass(frozen=True)
class Registry:
    """Entries in the order of the file. `label` names the registry in messages."""

    label: str
    entries: tuple[Entry, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(entry.language for entry in self.entries))

    def find(self, wanted: str) -> Entry:
        """The entry `LANGUAGE/TASK/NAME`; its ends may be left out where one entry alone is meant. Raises ConfigError."""
        parts = wanted.split("/", 2)
        chosen = list(self.entries)
        if len(parts) == 1:
            return self._one([entry for entry in chosen if wanted in (entry.name, entry.language)], wanted)
        for place, (part, level) in enumerate(zip(parts, ("language", "task", "name"), strict=False)):
            names = list(dict.fromkeys(getattr(entry, level) for entry in chosen))
            if part not in names:
                where = "/".join(parts[:place])
                raise ConfigError(
                    f"{self.label}: {wanted}: no {level} {part!r}{f' in {where}' if where else ''}"
                    f"{did_you_mean(part, names)} (there {'is' if len(names) == 1 else 'are'} {', '.join(names)})"
                )
            chosen = [entry for entry in chosen if getattr(entry, level) == part]
        return self._one(chosen, wanted)

    def _one(self, found: Sequence[Entry], wanted: str) -> Entry:
        if len(found) == 1:
            return found[0]
        keys = [entry.key for entry in found or self.entries]
        if found:
            raise ConfigError(f"{self.label}: {wanted} may mean {', '.join(keys)}; write out the one you mean")
        names = [part for entry in self.entries for part in (entry.name, entry.language, entry.key)]
        raise ConfigError(
            f"{self.label}: no data set {wanted!r}{did_you_mean(wanted, names)}; there are {', '.join(keys)}"
        )

    def of_task(self, task: str, language: str, name: str | None = None) -> Entry:
        """The one data set (or the one of this name) that a language has for a task. Raises ConfigError."""
        return self.find(f"{language}/{task}/{name}" if name is not None else f"{language}/{task}")


def read_registry(path: Path) -> Registry:
    """Reads `language-database.json` (with // comments if need be). Raises ConfigError with all problems of the file."""
    problems: list[str] = []
    entries = []
    for where, record in _records(read_settings_file(path), problems):
        found = len(problems)
        entry = _entry(where, record, path.parent, problems)
        if len(problems) == found:
            entries.append(entry)
    if not entries and not problems:
        problems.append("holds no data sets; a registry is {language: {task: {name: {dataset, train_features, ...}}}}")
    if problems:
        raise ConfigError(*(f"{path}: {problem}" for problem in problems))
    return Registry(str(path), tuple(entries))


def glue_registry(glue_dir: Path) -> Registry:
    """The registry of those GLUE tasks that a folder has rows to learn from. Raises ConfigError without any."""
    found = []
    for task in map(TASKS.__getitem__, NINE):
        try:
            found.append(glue_entry(task, glue_dir))
        except DataError:
            continue
    if not found:
        folders = ", ".join(task.folder or task.name for task in TASKS.values())
        raise ConfigError(f"{glue_dir}: no folder of a GLUE task; a GLUE folder holds {folders}")
    return Registry(f"{BUILT_IN} ({glue_dir})", tuple(found))


def glue_entry(task: GlueTask, glue_dir: Path) -> Entry:
    """A task of a folder of GLUE's TSV files. Raises DataError where the folder has it not."""
    folder = folder_of_task(glue_dir, task)
    return Entry(
        ENGLISH,
        BUILT_IN,
        task.name,
        f"{GLUE}{task.name}={folder.absolute()}",
        task.texts,
        task.label,
        ("train", "dev"),
        len(task.labels),
        task.labels,
        keep=("index",),
    )


def _records(
    content: Mapping[str, Any], problems: list[str]
) -> Iterator[tuple[tuple[str, str, str], Mapping[str, Any]]]:
    """((language, task, name), record) of every data set; what is no object is a problem."""
    for language, tasks in _objects((), content, problems):
        for task, names in _objects((language,), tasks, problems):
            for name, record in _objects((language, task), names, problems):
                if any(not part.strip() or "/" in part for part in (language, task, name)):
                    problems.append(f"{language!r} / {task!r} / {name!r}: a name is not empty and has no slash")
                else:
                    yield (language, task, name), record


def _objects(
    where: tuple[str, ...], content: Mapping[str, Any], problems: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield str(key), value
        else:
            problems.append(
                f"{'/'.join((*where, str(key)))}: is {_shown(value)}; expected an object (language: task: name: data set)"
            )


def _entry(where: tuple[str, str, str], record: Mapping[str, Any], home: Path, problems: list[str]) -> Entry:
    """The entry; with problems noted it is not to be used."""
    found = _Fields("/".join(where), record, problems)
    dataset = found.text("dataset")
    task = found.glue_task(dataset)
    features = found.texts("train_features", default=task.texts if task else None)
    label = found.text("eval_feature", default=task.label if task else None)
    splits = found.texts("splits", default=("train", "dev") if task else None)
    classes = found.classes(default=len(task.labels) if task else None)
    labels = found.texts("labels", default=task.labels if task else ())
    separator = record.get("separator", SEPARATOR)
    if len(splits) != 2 or splits[0] == splits[1]:
        found.add('"splits" names two different splits, to learn from and to measure on: ["train", "validation"]')
    if labels and len(labels) != classes:
        found.add(f'"labels" has {len(labels)} names and "classes" is {classes}')
    if not isinstance(separator, str):
        found.add(f'"separator" is a text, not {_shown(separator)}')
    keep = found.texts("keep", default=())
    if own := [name for name in keep if name in OWN_KEYS]:
        found.add(f'"keep" names "{own[0]}", which made rows have already; rename that column')
    splits = (splits[0], splits[1]) if len(splits) == 2 else ("", "")
    return Entry(*where, dataset, features, label, splits, classes, labels, str(separator), keep, home)


class _Fields:
    """Reads an entry's fields; what is wrong becomes a problem that names the entry."""

    def __init__(self, where: str, record: Mapping[str, Any], problems: list[str]) -> None:
        self.where, self.record, self.problems = where, record, problems
        for key in record:
            if key not in KEYS:
                self.add(f'unknown key "{key}"{did_you_mean(key, KEYS)} (known are {", ".join(KEYS)})')

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self.problems.append(f"{self.where}: {problem}")

    def glue_task(self, dataset: str) -> GlueTask | None:
        """The task of a `glue:` data set, whose columns need not be named."""
        if not dataset.startswith(GLUE):
            return None
        try:
            return task_of_folder(dataset.removeprefix(GLUE))[0]
        except ConfigError as error:
            self.add(str(error))
            return glue_task("CoLA")  # any: its columns are not told of as missing too

    def text(self, key: str, *, default: str | None = None) -> str:
        """A text that is not empty."""
        value = self.record.get(key, default)
        if isinstance(value, str) and value.strip():
            return value
        self.add(f'"{key}" is missing' if value is None else f'"{key}" is a text, not {_shown(value)}')
        return ""

    def texts(self, key: str, *, default: tuple[str, ...] | None) -> tuple[str, ...]:
        """A list of different texts; a text alone counts as one."""
        value = self.record.get(key, default)
        if isinstance(value, str):
            value = [value]
        if value is None or (key == "train_features" and not value):
            self.add(f'"{key}" is missing')
        elif not isinstance(value, list | tuple) or not all(isinstance(part, str) and part for part in value):
            self.add(f'"{key}" is a list of texts, not {_shown(value)}')
        elif key != "splits" and len(set(value)) < len(value):
            self.add(f'"{key}" names one twice: {", ".join(value)}')
        else:
            return tuple(value)
        return ()

    def classes(self, *, default: int | None) -> int:
        """How many classes, 0 for numbers: of `task_type` and `classes` together."""
        kind = self.record.get("task_type", "regression" if default == 0 else "classification" if default else None)
        count = self.record.get("classes", default)
        if isinstance(kind, str) and "regress" in kind.lower():
            if count not in (None, 0, 1):
                self.add(f'"classes" is {_shown(count)}, but regression has none; leave it out')
            return 0
        if not isinstance(kind, str) or "classif" not in kind.lower():
            self.add(f'"task_type" is {_shown(kind)}; expected "classification" or "regression"')
        if type(count) is not int or count < 2:
            self.add(f'"classes" is {_shown(count)}; expected a whole number, 2 or more')
            return 2
        return count


def _shown(value: Any) -> str:
    return "missing" if value is None else json.dumps(value, ensure_ascii=False, default=str)[:60]
