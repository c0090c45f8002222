"""Suites: tasks with settings of their own, several seeded runs each, after a search per task where one is asked for.

Knows nothing of how runs run, or what is checked (`suite_checks`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.config.cascade import Layer
from workflow.errors import ConfigError, ResultsError
from workflow.files import read_json
from workflow.paths import run_name
from workflow.sweep.grid import Grid, check_count
from workflow.sweep.keep import keep_best
from workflow.sweep.points import Draft, Point, make_points
from workflow.sweep.search import Bounds
from workflow.sweep.start import Options, start
from workflow.sweep.study import STUDY_FILE, Study, study_name
from workflow.sweep.suite_checks import Problem, check_point, check_suite
from workflow.sweep.suite_file import SuiteFile, Task
from workflow.sweep.summaries import make_files, say
from workflow.sweep.sweep import Sweep, run_sweep

NOT_TAKEN = (
    "model_init_name",
    "model_init_path",
    "model_pretrain_name",
    "data_name",
    "save_best_metric",
    "best_metric",
)
"""What an earlier study's best settings say of its own model and data, which are the suite's to say."""


@dataclass(frozen=True)
class Suite:
    """Suite files to run as one study. `keep` is best or all; `force` overrules what is merely doubtful."""

    files: Sequence[SuiteFile]
    folder: Path
    mount: Path
    keep: str
    force: bool
    max_points: int

    @property
    def name(self) -> str:
        """The study's."""
        return study_name(self.folder)


def run_suite(suite: Suite, options: Options) -> int:
    """Checks everything, searches where asked, runs every task; gives an exit code."""
    check(suite)
    searched = [(file, task) for file in suite.files for task in file.tasks if task.search is not None]
    if searched and not options.submit:
        say(
            f"{len(searched)} searches come first: {', '.join(task.name for _, task in searched)}; shown are the runs after them"
        )
    elif searched:
        for file, task in searched:
            if code := _search(suite, file, task, options):
                return code
    points = _points(suite, with_best=bool(searched) and options.submit)
    study = Study(suite.folder, "suite", suite.mount, points, {"swept": _searched_names(suite)})

    def tables(study: Study) -> None:
        make_files(study)
        if suite.keep == "best" and (dropped := keep_best(study)):
            say(f"checkpoints removed: {', '.join(dropped)}")

    return start(study, options, tables=tables)


def check(suite: Suite) -> None:
    """Raises ConfigError with every problem of all files, those of form, of settings, and of what they need."""
    names = [file.name for file in suite.files]
    if len(set(names)) < len(names):
        raise ConfigError(f'two suite files go by one name ({", ".join(names)}); give each a "name"')
    count = sum(len(file.tasks) * len(file.seeds) for file in suite.files)
    check_count(count, suite.max_points, where=suite.name)
    found = [problem for file in suite.files for problem in _problems(suite, file)]
    found = list(dict.fromkeys(found))
    hard = [problem.text for problem in found if not problem.is_soft]
    soft = [problem.text for problem in found if problem.is_soft]
    if suite.force:
        for text in soft:
            say(f"notice: {text}")
        soft = []
    if hard or soft:
        told = [*hard, *(f"{text} (--force runs it as it is)" for text in soft)]
        raise ConfigError(*told)


def _problems(suite: Suite, file: SuiteFile) -> list[Problem]:
    """Those of settings, and of what good settings need."""
    found: list[Problem] = []
    points: list[Point] = []
    for task in file.tasks:
        try:
            points += make_points(
                [_draft(suite, file, task, seed, with_best=False) for seed in file.seeds], study=suite.name
            )
            if task.search is not None:
                probes = _search_of(suite, file, task, task.search).probes(Bounds.of(task.search, None, None))
                found += [problem for probe in probes for problem in check_point(file, task, probe, suite.mount)]
        except ConfigError as error:
            where = f"{file.path}: tasks.{task.name}"
            found += [
                Problem(told if told.startswith(str(file.path)) else f"{where}: {told}") for told in error.problems
            ]
    return [*found, *check_suite(file, points, suite.mount, keep=suite.keep)]


def _points(suite: Suite, *, with_best: bool) -> list[Point]:
    drafts = [
        _draft(suite, file, task, seed, with_best=with_best)
        for file in suite.files
        for task in file.tasks
        for seed in file.seeds
    ]
    return make_points(drafts, study=suite.name)


def _draft(suite: Suite, file: SuiteFile, task: Task, seed: int, *, with_best: bool) -> Draft:
    own = search_folder(suite, file, task) if with_best and task.search is not None else None
    best = [layer for folder in (file.use_best, own) if folder is not None for layer in best_layer(folder, task.name)]
    return Draft(
        file.entry.name,
        (*task.layers, *best, Layer(f"{file.path}: seeds", {"seed": seed})),
        {"task": task.name, "setting": file.name},
        " ".join([*([file.name] if len(suite.files) > 1 else []), task.name, f"seed {seed}"]),
        metrics=task.metrics,
        swept=("seed",),
    )


# ---- searches, and what they found


def search_folder(suite: Suite, file: SuiteFile, task: Task) -> Path:
    """Where a task's search stands; its name begins its runs' names."""
    return suite.folder / "searches" / run_name(suite.name, file.name, task.name)


def _search_of(suite: Suite, file: SuiteFile, task: Task, grid: Grid) -> Sweep:
    folder, metric = search_folder(suite, file, task), (task.metrics or (None,))[0]
    return Sweep(file.entry, grid, task.layers, folder, suite.mount, metric, suite.max_points)


def _search(suite: Suite, file: SuiteFile, task: Task, options: Options) -> int:
    """One task's search; its best settings are the suite's best-TASK.json until its own runs are done."""
    assert task.search is not None
    folder = search_folder(suite, file, task)
    say(f"search for {task.name}:")
    sweep = _search_of(suite, file, task, task.search)
    code = run_sweep(sweep, options, n_trials=None, timeout_s=None, storage=None)
    if code == 0 and (folder / "best.json").is_file():
        suite.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "best.json", suite.folder / f"best-{run_name(task.name)}.json")
    return code


def _searched_names(suite: Suite) -> list[str]:
    grids = [task.search for file in suite.files for task in file.tasks if task.search is not None]
    return sorted({name for grid in grids for name in grid.swept})


def best_layer(folder: Path, task: str) -> list[Layer]:
    """What an earlier study found best for a task: of a search, the settings that it varied. Raises ConfigError.

    `folder` has best-TASK.json, or best.json where it was about one task.
    """
    files = [folder / f"best-{run_name(task)}.json", folder / "best.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ConfigError(
            f"{folder}: no {files[0].name} and no best.json here; name the --out of a study that has finished runs"
        )
    try:
        values = dict(read_json(file, broken=ResultsError))
    except (TypeError, ValueError):
        raise ConfigError(f"{file}: is no settings file: {json.dumps(read_json(file))[:80]}") from None
    swept = _swept_of(folder)
    taken = {name: value for name, value in values.items() if name not in NOT_TAKEN and (not swept or name in swept)}
    return [Layer(str(file), taken)]


def _swept_of(folder: Path) -> set[str]:
    """The settings that a study varied; none where it does not say."""
    record: Any = read_json(folder / STUDY_FILE)
    swept = record.get("swept") if isinstance(record, dict) else None
    return {str(name).partition(".")[0] for name in swept} if isinstance(swept, list) else set()
