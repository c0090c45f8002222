"""Suite files: base settings, tasks with settings of their own, seeds, searches.

Knows nothing of whether the settings are good (`suite_checks`) or how runs run.

    {"entry": "clf", "preset": "glue", "base": {SETTINGS}, "num_runs": 3, "tasks": {"cola": {"lr": 1e-5, ...}, ...}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workflow.config.cascade import DEFAULT_FILE, Layer, read_settings_file
from workflow.data.glue import TASKS, GlueTask
from workflow.errors import ConfigError, did_you_mean
from workflow.sweep.entries import ENTRIES, Entry
from workflow.sweep.grid import Grid, parse_grid
from workflow.sweep.transfer_file import listed


class TaskBody(BaseModel):
    """A task of a suite: its settings over the base's, what its table shows, which way its metric is better."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = {}
    metrics: tuple[str, ...] = ()
    best_when: Literal["high", "low"] | None = None
    search: dict[str, Any] | None = None

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return listed(value)


class SuiteBody(BaseModel):
    """A suite file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    entry: Literal["seq2seq", "clf"]
    preset: Literal["glue"] | None = None
    base: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    num_runs: int | None = Field(None, ge=1)
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    search: dict[str, Any] | None = None
    use_best: str | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _check_together(self) -> SuiteBody:
        if self.num_runs is not None and self.seeds is not None:
            raise ValueError('"num_runs" are seeds from 0 on; give it or "seeds", not both')
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError('"seeds" must differ')
        return self


@dataclass(frozen=True)
class Task:
    """A task: layers of its settings, lowest first."""

    name: str
    layers: tuple[Layer, ...]
    metrics: tuple[str, ...]
    best_when: str | None
    search: Grid | None


@dataclass(frozen=True)
class SuiteFile:
    """A suite file that is well formed. `use_best` is a folder of an earlier suite or sweep."""

    path: Path
    name: str
    entry: Entry
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    use_best: Path | None


def read_suite(path: Path) -> SuiteFile:
    """Reads a suite file. Raises ConfigError with every problem of its form."""
    raw = read_settings_file(path)
    try:
        body = SuiteBody.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(*(explained(problem, str(path), SuiteBody) for problem in error.errors())) from None
    entry = ENTRIES[body.entry]
    problems: list[str] = []
    tasks = [task for name, given in body.tasks.items() if (task := _task(path, body, entry, name, given, problems))]
    if problems:
        raise ConfigError(*problems)
    seeds = body.seeds if body.seeds is not None else tuple(range(body.num_runs or 1))
    use_best = path.parent / body.use_best if body.use_best and not Path(body.use_best).exists() else body.use_best
    return SuiteFile(
        path, body.name or path.stem, entry, tuple(tasks), seeds, Path(use_best) if use_best is not None else None
    )


def _task(
    path: Path, body: SuiteBody, entry: Entry, name: str, given: Mapping[str, Any], problems: list[str]
) -> Task | None:
    """A task's own keys beside its settings; the data set is of the task's name unless another is given."""
    where = f"{path}: tasks.{name}"
    own = {key: given[key] for key in TaskBody.model_fields if key in given and key != "settings"}
    settings = {key: value for key, value in given.items() if key not in own}
    try:
        task = TaskBody.model_validate({**own, "settings": settings})
        searched = {**(body.search or {}), **(task.search or {})}
        search = parse_grid({"search": searched}, entry, name=f"{where}.search") if searched else None
    except ValidationError as error:
        problems.extend(explained(problem, where, TaskBody) for problem in error.errors())
        return None
    except ConfigError as error:
        problems.extend(error.problems)
        return None
    default = [Layer(str(DEFAULT_FILE), read_settings_file(DEFAULT_FILE))] if DEFAULT_FILE.is_file() else []
    named = {"data_name", "data"} & {entry.canonical(key) for layer in (body.base, settings) for key in _opened(layer)}
    data = [] if named else [Layer(where, {"data_name": name})]
    metrics, usual = task.metrics, []
    if body.preset is not None:
        try:
            known = glue_task(name, where)
        except ConfigError as error:
            problems.extend(error.problems)
            return None
        usual = [Layer(f"preset {body.preset}: {known.name}", known.settings)]
        metrics = metrics or known.metrics
    layers = (*default, *usual, *data, Layer(f"{path}: base", body.base), Layer(where, settings))
    return Task(name, layers, metrics, task.best_when, search)


def glue_task(name: str, where: str) -> GlueTask:
    """GLUE's task of this name, however it is written: `sts-b`, `STSB`. Raises ConfigError."""
    by_letters = {_letters(task): known for task, known in TASKS.items()}
    if _letters(name) not in by_letters:
        raise ConfigError(
            f"{where}: no task of GLUE{did_you_mean(name.lower(), map(str.lower, TASKS))}; there are {', '.join(TASKS)}"
        )
    return by_letters[_letters(name)]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _opened(settings: Mapping[str, Any]) -> Sequence[str]:
    """Names of settings, also those in sections."""
    inner = [key for value in settings.values() if isinstance(value, dict) for key in value]
    return [*(key for key, value in settings.items() if not isinstance(value, dict)), *inner]


def explained(problem: Any, where: str, of: type[BaseModel]) -> str:
    """One line of a pydantic error of a study's file."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f'{where}: unknown key "{place}"{did_you_mean(place, of.model_fields)}'
    if problem["type"] == "missing":
        return f'{where}: "{place}" is missing'
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {place}: {message}" if place else f"{where}: {message}"
