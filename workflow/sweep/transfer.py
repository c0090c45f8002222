"""The transfer matrix: trained on every language and on all of them together, evaluated on each.

Knows nothing of how runs are started. One run a train set is enough for a row of the matrix: its eval rows are those of
all languages, and its report measures each language's apart (`--slice_by language`). Training does not look at eval rows,
so a run for each pair gives the same final figures at as many times the cost; `pairs` makes them where each language
is to choose its own best checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow.config.cascade import Layer, read_layers
from workflow.data.made_files import Made, hash_of, make, write_once
from workflow.data.registry import Entry, Registry, read_registry
from workflow.data.registry_rows import LANGUAGE, NORMAL, Survey, survey
from workflow.errors import ConfigError, DataError, did_you_mean
from workflow.evaluation.evaluator import MAX_SLICES
from workflow.metric_names import SCORE_METRICS
from workflow.sweep.entries import checked_metric
from workflow.sweep.points import HASH_DIGITS, Draft, Point, make_point, readable_name
from workflow.sweep.study import study_name
from workflow.sweep.transfer_file import Model, TransferFile, models_of

Languages = tuple[str, ...]
MOST_NAMED = 4
"""Languages that a train set's name lists."""
LONGEST_TITLE = 48
"""So that the names of a run's further points, which have a number after the run's own, are no longer than others."""


@dataclass(frozen=True)
class DataFile:
    """A data set of the matrix: what it is made of, and its name under mount/data."""

    name: str
    made: Made
    train: Languages
    eval: Languages
    model_type: str


@dataclass(frozen=True)
class Matrix:
    """What a file asks for, checked: data sets to be written, and points."""

    data: tuple[DataFile, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    def write_data(self, mount: Path) -> None:
        """Writes the data sets that are not there yet."""
        for found in self.data:
            write_once(found.made, mount / "data" / f"{found.name}.json")


def plan_matrix(
    given: TransferFile,
    file: Path,
    folder: Path,
    *,
    pairs: bool = False,
    varied: Mapping[str, Mapping[str, Any]] | None = None,
) -> Matrix:
    """Reads and checks all data, names data sets and points by content. Raises ConfigError or DataError; writes nothing.

    `varied`: the file's settings are those of each of these labels in turn, all on the same data.
    """
    registry = read_registry(_beside(file, given.registry))
    languages = Plan.of(given, registry, file)
    surveys = _surveys(given, languages, registry)
    metrics = _metrics(given, next(iter(surveys.values())).entry, file)
    if len(languages.eval) > MAX_SLICES and not pairs:
        raise ConfigError(
            f"{file}: {len(languages.eval)} eval languages, and a run tells {MAX_SLICES} apart; use --pairs"
        )
    study = study_name(folder)
    data = tuple(_data_files(given, languages, surveys, study, pairs=pairs))
    points = tuple(_all_points(given, varied or {"": given.settings}, data, metrics, file, study))
    notes = dict.fromkeys(note for found in surveys.values() for note in found.notes())
    return Matrix(data, points, tuple(notes))


def _beside(file: Path, name: str) -> Path:
    """A relative path starts at the file's folder."""
    return file.parent / Path(name).expanduser()


@dataclass(frozen=True)
class Plan:
    """The languages to train on and to evaluate on, in the registry's order unless named in another."""

    train: Languages
    eval: Languages

    @classmethod
    def of(cls, given: TransferFile, registry: Registry, file: Path) -> Plan:
        """Raises ConfigError for languages that have not the task."""
        known = tuple(dict.fromkeys(entry.language for entry in registry.entries if entry.task == given.task))
        tasks = dict.fromkeys(entry.task for entry in registry.entries)
        if not known:
            raise ConfigError(
                f"{file}: no task {given.task!r} in {registry.label}{did_you_mean(given.task, tasks)} (there are {', '.join(tasks)})"
            )
        train, evaluated = (
            known if part == "all" else tuple(part) for part in (given.languages.train, given.languages.eval)
        )
        problems = [
            f"{file}: no {given.task} data of {language!r} in {registry.label}{did_you_mean(language, known)} (there are {', '.join(known)})"
            for language in dict.fromkeys((*train, *evaluated))
            if language not in known
        ]
        for key, part in (("train", train), ("eval", evaluated)):
            if not part or len(set(part)) < len(part):
                problems.append(f'{file}: "languages": "{key}" names no language, or one twice')
        if problems:
            raise ConfigError(*problems)
        return cls(train, evaluated)

    @property
    def train_sets(self) -> list[Languages]:
        """All together, then each alone."""
        return [*([self.train] if len(self.train) > 1 else []), *((language,) for language in self.train)]


def _surveys(given: TransferFile, languages: Plan, registry: Registry) -> dict[tuple[str, str], Survey]:
    """(language, model type) -> what its data holds. Raises DataError with the problems of all of them."""
    found: dict[tuple[str, str], Survey] = {}
    problems: list[str] = []
    for language in dict.fromkeys((*languages.train, *languages.eval)):
        name = given.name.get(language) if isinstance(given.name, dict) else given.name
        entry = registry.of_task(given.task, language, name)
        for model_type in given.model_types:
            try:
                found[language, model_type] = survey(entry, model_type)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def _metrics(given: TransferFile, entry: Entry, file: Path) -> tuple[str, ...]:
    known = SCORE_METRICS[entry.problem]
    usual = "spearman" if entry.problem == "regression" else "f1_macro"
    wanted = [usual] if given.metric is None else [given.metric] if isinstance(given.metric, str) else given.metric
    return tuple(checked_metric(name, known, where=f"{file}: metric") for name in wanted)


def _data_files(
    given: TransferFile, languages: Plan, surveys: Mapping[tuple[str, str], Survey], study: str, *, pairs: bool
) -> Iterator[DataFile]:
    """A data set a model type and train set; with `pairs` also an eval language."""
    eval_sets: list[Languages] = [(language,) for language in languages.eval] if pairs else [languages.eval]
    for model_type in given.model_types:
        for train in languages.train_sets:
            for evaluated in eval_sets:
                made = make(
                    [surveys[language, model_type] for language in train],
                    [surveys[language, model_type] for language in evaluated],
                    model_type,
                )
                parts = [
                    study,
                    told(train),
                    *([told(evaluated)] if pairs else []),
                    *([model_type] if model_type != NORMAL else []),
                ]
                name = readable_name("-".join(parts), hash_of(made)[:HASH_DIGITS])
                yield DataFile(name, made, train, evaluated, model_type)


def told(languages: Sequence[str]) -> str:
    """What tables call a train set: `english+spanish`, or of many languages their number."""
    return "+".join(languages) if len(languages) <= MOST_NAMED else f"all {len(languages)}"


def _all_points(
    given: TransferFile,
    varied: Mapping[str, Mapping[str, Any]],
    data: Sequence[DataFile],
    metrics: Sequence[str],
    file: Path,
    study: str,
) -> Iterator[Point]:
    """Raises ConfigError with every problem of all settings, each once."""
    problems: dict[str, None] = {}
    for setting, settings in varied.items():
        try:
            for point in _points(given.model_copy(update={"settings": dict(settings)}), data, metrics, file, study):
                yield replace(point, labels={**point.labels, "setting": setting}) if setting else point
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*problems)


def _points(
    given: TransferFile, data: Sequence[DataFile], metrics: Sequence[str], file: Path, study: str
) -> Iterator[Point]:
    problems: dict[str, None] = {}
    for found in data:
        for model in models_of(given, found.model_type):
            for seed in given.seeds:
                try:
                    yield from _cells(_draft(given, found, model, seed, metrics, file), found, study)
                except ConfigError as error:
                    problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*problems)


def _cells(draft: Draft, data: DataFile, study: str) -> Iterator[Point]:
    """The cells that a run fills: a point an eval language, all of one run."""
    run = make_point(draft, study=study)
    for number, language in enumerate(data.eval):
        # The first one carries the run's own name, by which its job is known.
        name = f"{run.name}-{number}" if number else run.name
        yield replace(run, name=name, slice=language, labels={**run.labels, "eval": language})


def _draft(given: TransferFile, data: DataFile, model: Model, seed: int, metrics: Sequence[str], file: Path) -> Draft:
    made = data.made
    usual: dict[str, Any] = {"problem": made.problem, "save_best_metric": metrics[0]}
    if made.problem == "multiclass":
        usual["labels"] = list(made.names)
    *defaults, _ = read_layers([], {})
    layers = (
        *defaults,
        Layer(f"{file}: of the data", usual),
        Layer(f"{file}: settings", given.settings),
        Layer(f"{file}: models", dict(model.settings)),
        Layer(str(file), {"data_name": data.name, "slice_by": LANGUAGE, "seed": seed}),
    )
    labels = {
        "task": given.task,
        "model": model.name,
        "type": data.model_type,
        "train": told(data.train),
        "seed": seed,
    }
    title = f"{told(data.train)}-{data.model_type}-seed-{seed}-{model.name}"
    return Draft("clf", layers, labels, title[:LONGEST_TITLE], swept=("data_name", "seed"), metrics=tuple(metrics))
