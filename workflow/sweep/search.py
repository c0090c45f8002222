"""Searches: points that come one after the other, each trial's chosen in the light of those before it.

Knows nothing of how trials are stored or samplers work (`trials`), nor of how jobs run.

A trial is one point for each seed of the grid file; its value is the mean over them. Which process runs which point does
not matter: points lie in study.json before they run, whoever finds a free one takes it, and whoever sees a trial's last
point end tells its value.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.jobs.drive import held
from workflow.jobs.job import Job, JobRecord, Status
from workflow.sweep.grid import SEED, Grid
from workflow.sweep.points import Draft, Point
from workflow.sweep.study import Study
from workflow.sweep.trials import Trial, Trials

DEFAULT_TRIALS = 20
PAUSE_S = 1.0
RUNNING = "RUNNING"
OVER = (Status.FAILED, Status.CANCELLED, Status.PRUNED)

DraftOf = Callable[[Mapping[str, Any]], Draft]
"""Values of a trial, with a seed where seeds vary -> the draft of a point."""


def corners(grid: Grid) -> Iterator[dict[str, Any]]:
    """Values with which everything that a search could choose is checked before it starts: each end and each choice once."""
    options = {
        **{name: list(values) for name, values in grid.axes.items()},
        **{name: [given.low, given.high] for name, given in grid.ranges.items()},
    }
    for index in range(max(map(len, options.values()))):
        yield {name: values[min(index, len(values) - 1)] for name, values in options.items()}


@dataclass(frozen=True)
class Bounds:
    """When no further trial is begun. `deadline` is a time of the monotonic clock."""

    n_trials: int
    deadline: float | None

    @classmethod
    def of(cls, grid: Grid, n_trials: int | None, timeout_s: float | None) -> Bounds:
        """As given by flags, else by the grid file."""
        assert grid.search is not None
        timeout_s = timeout_s or grid.search.timeout_s
        unbounded = 10**9 if timeout_s else DEFAULT_TRIALS
        return cls(
            n_trials or grid.search.n_trials or unbounded,
            time.monotonic() + timeout_s if timeout_s else None,
        )

    def allow(self, num_trials: int) -> bool:
        """Whether one more may begin."""
        return num_trials < self.n_trials and (self.deadline is None or time.monotonic() < self.deadline)


class SearchQueue:
    """The jobs of a search: of trials that were begun, and then of new ones, while the bounds allow them."""

    def __init__(
        self,
        study: Study,
        trials: Trials,
        grid: Grid,
        bounds: Bounds,
        *,
        metric: str,
        make_points: Callable[[Sequence[Mapping[str, Any]]], list[Point]],
        job_of: Callable[[Point], Job],
    ) -> None:
        self.study, self.trials, self.bounds, self.metric = study, trials, bounds, metric
        self.make_points, self.job_of = make_points, job_of
        self.seeds = grid.axes.get(SEED)
        self.given: set[str] = set()
        self.is_exhausted = False

    def __iter__(self) -> Iterator[Job | None]:
        """Jobs to start now; None where all that is left is run by somebody."""
        while True:
            with self.study.locked():
                self.settle()
                job = self._next()
                left = any(trial.state == RUNNING for trial in self.trials.all())
            if job is not None:
                yield job
            elif not left:
                return
            else:
                asked = time.monotonic()
                while time.monotonic() < asked + PAUSE_S:
                    yield None

    def _next(self) -> Job | None:
        points = {point.name: point for point in self.study.points}
        for trial in self._begun():
            for name in trial.points:
                if name in points and not self._is_over(points[name]) and self._is_free(points[name]):
                    return self._given(points[name])
        return self._new()

    def _given(self, point: Point) -> Job:
        self.given.add(point.name)
        return self.job_of(point)

    def _begun(self) -> list[Trial]:
        return [trial for trial in self.trials.all() if trial.state == RUNNING]

    def _new(self) -> Job | None:
        """The first job of a new trial. Values whose points are known already are not tried again."""
        if self.is_exhausted or not self.bounds.allow(len(self.trials.all())):
            return None
        known = {point.name for point in self.study.points}
        for values in self.trials.draw():
            points = self.make_points(
                [values] if self.seeds is None else [{**values, SEED: seed} for seed in self.seeds]
            )
            if any(point.name in known for point in points):
                continue
            self.trials.add(
                values, [point.name for point in points]
            )  # killed now, it counts as failed, and is drawn again
            self.study.add(points)
            return self._given(points[0])
        self.is_exhausted = True
        return None

    # ---- what came of trials

    def settle(self) -> None:
        """Ends trials whose points are all over, or of which one is not worth going on with. Under the study's lock.

        Trials and points are added under this lock too, so a trial without points is of a process that was killed between.
        """
        self.study.reread()
        points = {point.name: point for point in self.study.points}
        for trial in self._begun():
            mine = [points[name] for name in trial.points if name in points]
            statuses = [self._record(point).status for point in mine]
            if Status.PRUNED in statuses:
                self.trials.prune(trial.number)
                self._leave_out(mine)
            elif not mine or all(self._is_over(point) for point in mine):
                if mine:
                    self._report(trial, mine[0])  # later trials are compared with all of it
                self.trials.tell(trial.number, self._mean(mine))

    def _leave_out(self, points: Sequence[Point]) -> None:
        """Further seeds of a pruned trial are not begun."""
        for point in points:
            if not self._record(point).status.is_over and not self.study.finished(point) and self._is_free(point):
                self._record(point).but(status=Status.PRUNED).write(self.study.point_folder(point))

    def retry(self) -> None:
        """Has failed trials tried again, with the points that they failed with."""
        with self.study.locked():
            self.settle()
            latest = {trial.points: trial for trial in self.trials.all()}
            points = {point.name: point for point in self.study.points}
            for trial in latest.values():
                if trial.state != "FAIL" or not all(name in points for name in trial.points):
                    continue
                for name in trial.points:
                    if self._record(points[name]).status in OVER:
                        self._record(points[name]).but(status=Status.STOPPED).write(
                            self.study.point_folder(points[name])
                        )
                self.trials.again(trial.number)

    def should_stop(self, job: Job) -> Status | None:
        """Whether a run's evaluations so far are not worth going on with; asked of each running job."""
        with self.study.locked():
            trial = next((one for one in self.trials.all() if job.name in one.points), None)
            if trial is None:
                return None
            if trial.state == "PRUNED":
                return Status.PRUNED
            if trial.points.index(job.name) > 0:  # evaluations of one seed are compared with those of one seed
                return None
            point = next(point for point in self.study.points if point.name == job.name)
            return Status.PRUNED if self._report(trial, point) else None

    def _report(self, trial: Trial, point: Point) -> bool:
        return self.trials.report(trial.number, evaluations(self.study.run_paths(point).metrics, self.metric))

    def _mean(self, points: Sequence[Point]) -> float | None:
        """The mean of the best values over seeds; None where one of them has none."""
        values = [best_value(self.study.run_paths(point).report, self.metric) for point in points]
        found = [value for value in values if value is not None]
        return statistics.fmean(found) if found and len(found) == len(values) else None

    def _record(self, point: Point) -> JobRecord:
        return self.job_of(point).record()

    def _is_over(self, point: Point) -> bool:
        if self.study.finished(point):
            return True
        status = self._record(point).status
        return status in OVER or (status.is_over and point.name in self.given and self._is_free(point))

    def _is_free(self, point: Point) -> bool:
        job = self.job_of(point)
        with held(job) as free:
            return free or not job.folder.is_dir()


def evaluations(metrics_file: Path, metric: str) -> list[float]:
    """The metric's value at each evaluation of a run after its start, as far as metrics.jsonl goes."""
    try:
        lines = metrics_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: dict[int, float] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the last line, being written
            continue
        if record.get("step") and record.get(metric) is not None:
            found[int(record["step"])] = float(record[metric])
    return [found[step] for step in sorted(found)]


def best_value(report: Path, metric: str) -> float | None:
    """The metric of a finished run's best checkpoint."""
    from workflow.evaluation.report import read_report

    if not report.is_file():
        return None
    best = read_report(report).best
    record = best.metrics.get(metric) if best else None
    return record.value if record else None
