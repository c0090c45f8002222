"""Grid files: `parameters` with lists, scalars or ranges, `languages`, `search`; and the combinations that lists give.

Knows nothing of what the parameters are: `points` validates them by the program's own settings.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workflow.config.cascade import Layer, read_settings_file
from workflow.errors import ConfigError, did_you_mean
from workflow.sweep.entries import Entry, nested
from workflow.sweep.points import Draft, value_text

SEED = "seed"


class Range(BaseModel):
    """Numbers from `low` to `high`, both included; `log` draws their logarithms, `step` and integers make them discrete."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check_together(self) -> Range:
        if self.low >= self.high:
            raise ValueError('"low" must be below "high"')
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError('"log" needs a "low" above 0, and no "step"')
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)


class Search(BaseModel):
    """How values are chosen where they are not all tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["random", "tpe", "halving"]
    parameters: dict[str, Any] = {}
    n_trials: int | None = Field(None, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)
    reduction_factor: int = Field(3, ge=2)


@dataclass(frozen=True)
class Grid:
    """A grid file: `axes` are lists by a setting's own name, `ranges` need a `search`, `fixed` are alike in all points."""

    name: str
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    languages: Mapping[str, Any] | None = None
    search: Search | None = None

    @property
    def num_combinations(self) -> int:
        """How many points the lists give."""
        return math.prod(map(len, self.axes.values()))

    @property
    def swept(self) -> tuple[str, ...]:
        """What varies."""
        return (*self.axes, *self.ranges)


def read_grid(path: Path, entry: Entry) -> Grid:
    """Reads a grid file. Raises ConfigError with every problem of its form."""
    return parse_grid(read_settings_file(path), entry, name=str(path))


def parse_grid(raw: Mapping[str, Any], entry: Entry, *, name: str) -> Grid:
    """The same of an object. `name` stands in messages."""
    known = ("parameters", "languages", "search")
    problems = [f'{name}: unknown key "{key}"{did_you_mean(key, known)}' for key in raw if key not in known]
    parameters, languages = raw.get("parameters", {}), raw.get("languages")
    for key, value in (("parameters", parameters), ("languages", languages or {}), ("search", raw.get("search") or {})):
        if not isinstance(value, dict):
            problems.append(f'{name}: "{key}" must be an object, not {json.dumps(value)}')
    if problems:
        raise ConfigError(*problems)
    search = _search(raw.get("search"), name, problems)
    axes: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    ranges: dict[str, Range] = {}
    for spelled, value in {**parameters, **(search.parameters if search else {})}.items():
        own = entry.canonical(spelled)
        if own in axes or own in fixed or own in ranges:
            problems.append(f'{name}: "{spelled}" is given twice ({own})')
        elif _is_range(value):
            where = f'{name}: "{spelled}"'
            taken = _range(value, where, problems, is_whole=entry.is_whole(own), searched=search is not None)
            ranges |= {own: taken} if taken is not None else {}
        elif isinstance(value, list):
            axes[own] = _distinct([entry.plain(own, one) for one in value])
            if not value:
                problems.append(
                    f'{name}: "{spelled}" is an empty list: no point would be left; give values, or leave it out'
                )
        else:
            fixed[own] = entry.plain(own, value)
    if search and not ranges and not [axis for axis in axes if axis != SEED]:
        problems.append(f'{name}: "search" has nothing to choose: give ranges or lists of parameters')
    if problems:
        raise ConfigError(*problems)
    return Grid(name, axes, fixed, ranges, languages, search)


def _search(raw: Mapping[str, Any] | None, name: str, problems: list[str]) -> Search | None:
    if raw is None:
        return None
    try:
        return Search.model_validate(raw)
    except ValidationError as error:
        problems += [_explained(problem, f'{name}: "search"') for problem in error.errors()]
        return None


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"low", "high"})


def _range(value: Any, where: str, problems: list[str], *, is_whole: bool, searched: bool) -> Range | None:
    """The range; of a setting that takes whole numbers, one of these, however they are written (`5e1`)."""
    if not searched:
        problems.append(f'{where} is a range, which needs a search: add "search": {{"kind": "tpe"}}, or list values')
        return None
    numbers = {key: number for key, number in value.items() if isinstance(number, float)}
    if is_whole and (broken := [key for key, number in numbers.items() if not number.is_integer()]):
        problems += [
            f'{where}."{key}": {numbers[key]}: expected a whole number, as the setting takes' for key in broken
        ]
        return None
    try:
        return Range.model_validate({**value, **{key: int(number) for key, number in numbers.items() if is_whole}})
    except ValidationError as error:
        problems += [_explained(problem, where) for problem in error.errors()]
        return None


def _explained(problem: Any, where: str) -> str:
    key = "".join(f'."{part}"' for part in problem["loc"][:1])
    return f"{where}{key}: {problem['msg'].removeprefix('Value error, ')}"


def _distinct(values: Sequence[Any]) -> list[Any]:
    """The values, equal ones once (`1` and `true` are not equal)."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def combinations(grid: Grid) -> Iterator[dict[str, Any]]:
    """The points of the lists, in order: the last list varies fastest, but seeds faster still."""
    axes = dict(sorted(grid.axes.items(), key=lambda axis: axis[0] == SEED))
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def draft(
    grid: Grid, entry: Entry, base: Sequence[Layer], values: Mapping[str, Any], labels: Mapping[str, Any]
) -> Draft:
    """A point of the grid over the base's layers; its label is its own values but the seed."""
    shown = {entry.short(name): value_text(value) for name, value in values.items()}
    setting = ",".join(f"{name}={value}" for name, value in shown.items() if name != SEED)
    return Draft(
        entry.name,
        (*base, Layer(grid.name, nested({**grid.fixed, **values}))),
        {"setting": setting, **labels},
        " ".join([*map(str, labels.values()), *(f"{name} {value}" for name, value in shown.items())]),
        swept=grid.swept,
    )


def check_count(count: int, most: int, *, where: str) -> None:
    """Raises ConfigError where a study has no points, or more than are meant to be sent at once."""
    if count > most:
        raise ConfigError(
            f"{where}: {count:,} points, more than --max_points {most:,}; give fewer values, search with "
            f'"search": {{"kind": "random"}}, or pass --max_points {count}'
        )
