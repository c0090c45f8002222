"""Ablation files: variants of base settings, seeds, the baseline that they are compared with.

Knows nothing of statistics (`ablation_tables`) or how runs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workflow.config.cascade import DEFAULT_FILE, Layer, read_settings_file
from workflow.errors import ConfigError, did_you_mean
from workflow.metric_names import metric_of
from workflow.sweep.entries import ENTRIES, Entry, checked_metric, nested
from workflow.sweep.points import Draft, Point, make_points
from workflow.sweep.suite_file import explained
from workflow.sweep.transfer_file import listed

DEFAULT_SEEDS = (0, 1, 2, 3, 4)


class AblationBody(BaseModel):
    """An ablation file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: Literal["seq2seq", "clf"]
    base: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(min_length=2)
    baseline: str
    seeds: tuple[int, ...] = Field(DEFAULT_SEEDS, min_length=1)
    metric: str | None = None
    which: Literal["final", "best"] = "final"
    weights: dict[str, Literal["own", "swa", "ema"]] = {}

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _check_together(self) -> AblationBody:
        if self.baseline not in self.variants:
            raise ValueError(
                f'"baseline": "{self.baseline}" is none of the variants{did_you_mean(self.baseline, self.variants)}'
            )
        for name in self.weights:
            if name not in self.variants:
                raise ValueError(f'"weights": "{name}" is none of the variants{did_you_mean(name, self.variants)}')
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError('"seeds" must differ')
        return self


@dataclass(frozen=True)
class Ablation:
    """An ablation, checked. `which` evaluation of a run counts: the last one, or that of its best checkpoint.

    `averages` names the average that is measured in a variant's place of its own weights, for those that make one.
    """

    path: Path
    entry: Entry
    variants: Mapping[str, tuple[Point, ...]]
    baseline: str
    seeds: tuple[int, ...]
    metric: str
    which: Literal["final", "best"]
    averages: Mapping[str, str]

    @property
    def points(self) -> list[Point]:
        """Every run, seed by seed, so that an ablation that is cut short has all variants alike."""
        return [points[index] for index in range(len(self.seeds)) for points in self.variants.values()]

    @property
    def settings(self) -> Any:
        """Those of the baseline's first run."""
        resolved = self.variants[self.baseline][0].resolved
        assert resolved is not None
        return resolved.settings


def read_ablation(path: Path, *, study: str) -> Ablation:
    """Reads an ablation file. Raises ConfigError with every problem of its form, or of all of its runs' settings."""
    raw = read_settings_file(path)
    try:
        body = AblationBody.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(*(explained(problem, str(path), AblationBody) for problem in error.errors())) from None
    entry = ENTRIES[body.entry]
    base = [
        *([Layer(str(DEFAULT_FILE), read_settings_file(DEFAULT_FILE))] if DEFAULT_FILE.is_file() else []),
        Layer(f"{path}: base", nested(body.base)),
    ]
    drafts = {(name, seed): _draft(path, body, base, name, seed) for seed in body.seeds for name in body.variants}
    points = _points(path, drafts, study)
    by_label = {(str(point.labels["setting"]), int(point.labels["seed"])): point for point in points}
    variants = {name: tuple(by_label[name, seed] for seed in body.seeds) for name in body.variants}
    _check_distinct(path, variants)
    _check_comparable(path, body, variants)
    averages = _averages(path, body, variants)
    found = Ablation(path, entry, variants, body.baseline, body.seeds, points[0].metrics[0], body.which, averages)
    checked_metric(found.metric, entry.metrics(found.settings), where=f'{path}: "metric"')
    return found


def _points(path: Path, drafts: Mapping[tuple[str, int], Draft], study: str) -> list[Point]:
    """Raises ConfigError with every problem, by file and variant."""
    problems: dict[str, None] = {}
    for name in dict.fromkeys(name for name, _ in drafts):
        try:
            make_points([draft for (of, _), draft in drafts.items() if of == name], study=study)
        except ConfigError as error:
            where = f"{path}: variants.{name}"
            problems |= {told if told.startswith(str(path)) else f"{where}: {told}": None for told in error.problems}
    if problems:
        raise ConfigError(*problems)
    return make_points(drafts.values(), study=study)


def _draft(path: Path, body: AblationBody, base: list[Layer], name: str, seed: int) -> Draft:
    own = Layer(f"{path}: variants.{name}", nested(body.variants[name]))
    return Draft(
        body.entry,
        (*base, own, Layer(f"{path}: seeds", {"seed": seed})),
        {"setting": name},
        f"{name} seed {seed}",
        swept=("seed",),
        metrics=(metric_of(body.metric),) if body.metric else (),
        varied=tuple(ENTRIES[body.entry].canonical(key) for key in body.variants[name]),
    )


def _check_distinct(path: Path, variants: Mapping[str, tuple[Point, ...]]) -> None:
    """Two names of one thing would be two samples of one thing, compared."""
    by_content: dict[str, str] = {}
    problems = []
    for name, points in variants.items():
        other = by_content.setdefault(points[0].digest, name)
        if other != name:
            problems.append(f'{path}: variants "{other}" and "{name}" are the same settings; leave one out')
    if problems:
        raise ConfigError(*problems)


def _check_comparable(path: Path, body: AblationBody, variants: Mapping[str, tuple[Point, ...]]) -> None:
    """Refuses settings under which a variant could not be measured, or not on what the baseline is measured on."""
    settings = {name: points[0].resolved.settings for name, points in variants.items() if points[0].resolved}
    baseline, problems = settings[body.baseline], []
    for name, own in settings.items():
        where = f'{path}: variant "{name}"'
        if body.which == "final" and own.evaluation.no_eval_at_end:
            problems.append(
                f'{where}: no_eval_at_end leaves out the final evaluation, which counts; pass "which": "best"'
            )
        if body.entry == "clf" and own.run.scores_only != baseline.run.scores_only:
            problems.append(
                f"{where}: scores_only is not the baseline's; it changes only prediction files: set it in base"
            )
    if problems:
        raise ConfigError(*problems)


def _averages(path: Path, body: AblationBody, variants: Mapping[str, tuple[Point, ...]]) -> dict[str, str]:
    """What a variant averages is what it is there for: its average is measured unless "weights" says otherwise."""
    found, problems = {}, []
    for name, points in variants.items():
        assert points[0].resolved is not None
        made = points[0].resolved.settings.strategies.averages
        wanted = body.weights.get(name, made[0] if made else "own")
        where = f'{path}: "weights" of "{name}"'
        if name not in body.weights and len(made) > 1:
            problems.append(f"{where}: it makes two averages; say which is measured: own, {' or '.join(made)}")
        elif wanted not in ("own", *made):
            problems.append(f'{where}: it makes no such average; turn "{wanted}" on there, or leave it out')
        elif wanted != "own" and body.which == "best":
            problems.append(
                f'{where}: no best step is chosen by averages; pass "which": "final", or "weights": {{"{name}": "own"}}'
            )
        elif wanted != "own":
            found[name] = wanted
    if problems:
        raise ConfigError(*problems)
    return found
