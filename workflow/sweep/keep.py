"""Removes the checkpoints of all but the best of runs that are repetitions or rivals of each other.

Knows nothing of suites. Reports, predictions and metrics stay: a run without checkpoints still counts as finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from workflow.metric_names import higher_is_better, metric_of
from workflow.paths import RunPaths
from workflow.sweep.points import Point
from workflow.sweep.search import best_value
from workflow.sweep.study import Study


def keep_best(study: Study) -> list[str]:
    """Drops the checkpoints of each task's finished runs but the best one's; gives the names of runs that lost theirs."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in study.points:
        if study.finished(point):
            groups.setdefault((str(point.labels.get("task")), str(point.labels.get("model"))), []).append(point)
    return [
        point.run for points in groups.values() for point in _losers(study, points) if _drop(study.run_paths(point))
    ]


def _losers(study: Study, points: Sequence[Point]) -> Iterable[Point]:
    """All but the best; runs without a value come last, equal ones in their order."""
    metric = metric_of(points[0].metrics[0])
    sign = 1.0 if higher_is_better(metric) else -1.0
    values = {point.run: best_value(study.run_paths(point).report, metric) for point in points}
    ranked = sorted(points, key=lambda point: _rank(values[point.run], sign))
    return [point for point in ranked[1:] if point.run != ranked[0].run]


def _rank(value: float | None, sign: float) -> float:
    return float("inf") if value is None else -sign * value


def _drop(run: RunPaths) -> bool:
    folders = [path for _, path in run.checkpoints()] + ([run.best] if run.best.is_dir() else [])
    for folder in folders:
        shutil.rmtree(folder)
    return bool(folders)
