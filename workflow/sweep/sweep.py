"""Sweeps: a grid file over base settings, all of its points or a search among them.

Knows nothing of arguments' texts (`commands`) or of how points run (`driver`).
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow.config.cascade import Layer
from workflow.errors import ConfigError
from workflow.jobs.local import LocalExecutor
from workflow.metric_names import higher_is_better, metric_of
from workflow.run_folder import FREE_TO_CHANGE
from workflow.sweep.driver import Summary, drive_queue, job_of, outcome_of
from workflow.sweep.entries import Entry, checked_metric
from workflow.sweep.grid import SEED, Grid, check_count, combinations, draft
from workflow.sweep.points import STILL_IN_NAMES, Draft, Point, make_points
from workflow.sweep.search import Bounds, SearchQueue, corners
from workflow.sweep.start import Options, start, tell
from workflow.sweep.study import TRIALS, Study, open_study, study_name
from workflow.sweep.summaries import headline, make_files
from workflow.sweep.trials import Trials


@dataclass(frozen=True)
class Sweep:
    """What is swept: a grid over the layers of base settings. `languages` label points of other data, if there are any."""

    entry: Entry
    grid: Grid
    base: Sequence[Layer]
    folder: Path
    mount: Path
    metric: str | None
    max_points: int

    def drafts(self, values: Mapping[str, Any]) -> Draft:
        """The draft of one combination."""
        made = draft(self.grid, self.entry, self.base, values, {})
        return replace(made, metrics=(self.metric,)) if self.metric else made

    def points(self, combined: Sequence[Mapping[str, Any]]) -> list[Point]:
        """Points of these combinations. Raises ConfigError with every problem of all of them."""
        points = make_points(map(self.drafts, combined), study=study_name(self.folder))
        self._check(points)
        return points

    def probes(self, bounds: Bounds) -> list[Point]:
        """Points with which a search is checked before it starts. Raises ConfigError with every problem of all of them."""
        fixed = {SEED: 0} if SEED in self.grid.axes else {}
        points = self.points([{**fixed, **values} for values in corners(self.grid)])
        check_count(bounds.n_trials if bounds.deadline is None else 1, self.max_points, where=self.grid.name)
        return points

    def _check(self, points: Sequence[Point]) -> None:
        settings = points[0].resolved
        assert settings is not None
        checked_metric(
            metric_of(points[0].metrics[0]), self.entry.metrics(settings.settings), where=f"{self.grid.name}: --metric"
        )


def run_sweep(
    sweep: Sweep, options: Options, *, n_trials: int | None, timeout_s: float | None, storage: str | None
) -> int:
    """Writes and shows the sweep, runs it if asked; gives an exit code."""
    if sweep.grid.search is not None:
        return _search(sweep, options, Bounds.of(sweep.grid, n_trials, timeout_s), storage)
    if n_trials is not None or timeout_s is not None or storage is not None:
        raise ConfigError(
            f'{sweep.grid.name}: --n_trials, --search_timeout_s and --storage are of searches: add "search": {{"kind": "tpe"}}'
        )
    check_count(sweep.grid.num_combinations, sweep.max_points, where=sweep.grid.name)
    points = sweep.points(list(combinations(sweep.grid)))
    study = Study(sweep.folder, "sweep", sweep.mount, points, {"swept": list(sweep.grid.swept)})
    return start(study, options)


def _search(sweep: Sweep, options: Options, bounds: Bounds, storage: str | None) -> int:
    grid = sweep.grid
    search = grid.search
    assert search is not None
    if not isinstance(options.executor, LocalExecutor):
        raise ConfigError(
            "a search chooses each point by the results of others, so it is driven by processes of this program: run the same "
            "command with the local executor on each machine that shares --out"
        )
    probes = sweep.probes(bounds)
    name = study_name(sweep.folder)
    told = {
        "swept": list(grid.swept),
        "search": _described(sweep, probes[0]),
        TRIALS: f"{name}-{secrets.token_hex(4)}",  # a storage may hold searches of many folders of one name
    }
    study = Study(sweep.folder, "sweep", sweep.mount, [], told)
    metric = metric_of(probes[0].metrics[0])
    _show_search(grid, bounds, metric)
    if not options.submit:
        open_study(study)
        print("nothing was run; the same command with --submit runs the search")
        return 0
    open_study(study)
    trials = Trials(
        search,
        name=study.extra.get(TRIALS, study.name),
        higher=higher_is_better(metric),
        ranges=grid.ranges,
        choices={name: values for name, values in grid.axes.items() if name != SEED},
        journal=sweep.folder / "search.journal",
        storage=storage,
    )
    with contextlib.closing(trials):
        to_job = functools.partial(job_of, study, needs=options.needs)
        queue = SearchQueue(study, trials, grid, bounds, metric=metric, make_points=sweep.points, job_of=to_job)
        if options.retry_failed:
            queue.retry()
        drive_queue(
            study,
            options.executor,
            iter(queue),
            at_once=options.at_once,
            summary=Summary(lambda: make_files(study)),
            describe=lambda point: headline(study, point),
            should_stop=queue.should_stop if search.kind == "halving" else None,
        )
    return tell(study, outcome_of(study, options.needs))


def _described(sweep: Sweep, probe: Point) -> dict[str, Any]:
    """What makes it this search and no other: spaces, kind and everything else that is set."""
    grid = sweep.grid
    assert grid.search is not None
    varied = set(grid.swept)
    return {
        "kind": grid.search.kind,
        "seed": grid.search.seed,
        "entry": sweep.entry.name,
        "metric": probe.metrics[0],
        "ranges": {name: given.model_dump(exclude_none=True) for name, given in grid.ranges.items()},
        "choices": {name: list(values) for name, values in grid.axes.items()},
        "settings": {
            name: value
            for name, value in probe.settings.items()
            if name not in varied | (FREE_TO_CHANGE - STILL_IN_NAMES)
        },
    }


def _show_search(grid: Grid, bounds: Bounds, metric: str) -> None:
    assert grid.search is not None
    seeds = len(grid.axes.get(SEED, [0]))
    limit = (
        f"{bounds.n_trials} points"
        if bounds.deadline is None or bounds.n_trials < 10**9
        else "points until the time is over"
    )
    each = f", each of {seeds} seeds" if seeds > 1 else ""
    print(f"{limit} by {grid.search.kind} search over {', '.join(grid.swept)}{each}; best by {metric}", flush=True)
