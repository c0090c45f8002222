"""What is looked at before the first run of a suite, each problem with its fix; soft ones can be overruled.

Knows nothing of how runs run. Reads configurations of models and names of data files, no weights but a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.data.sources import HUB_PREFIX, find_source
from workflow.errors import ConfigError, DataError, ModelError
from workflow.metric_names import higher_is_better, metric_of
from workflow.models.model_shape import num_parameters
from workflow.recipe.plan_inputs import Model, find_model
from workflow.sweep.entries import ENTRIES, checked_metric
from workflow.sweep.points import Point
from workflow.sweep.sparse import looks_sparse
from workflow.sweep.suite_file import SuiteFile, Task
from workflow.training.room import ADAMW_TENSORS, FP32_BYTES, MARGIN_BYTES, CheckpointSize, free_bytes, kept_at_most

KEPT_STATES = 2
"""Checkpoints of a run that keep what it continues from."""
EVALUATIONS = 4
"""Checkpoints that a run is taken to write whose steps depend on the rows."""


@dataclass(frozen=True)
class Problem:
    """What is wrong and what to do. A soft one is a doubt: the runs would run."""

    text: str
    is_soft: bool = False


def check_suite(suite: SuiteFile, points: Sequence[Point], mount: Path, *, keep: str) -> list[Problem]:
    """Every problem of the tasks that have points, told once."""
    found: list[Problem] = []
    firsts = {point.labels["task"]: point for point in reversed(points)}
    sizes: dict[str, int] = {}
    for task in suite.tasks:
        if (point := firsts.get(task.name)) is None:
            continue
        found += check_point(suite, task, point, mount)
        model = _model(_settings(point), mount)
        if isinstance(model, Model):
            sizes[task.name] = _run_bytes(_settings(point), model)
    found += check_room(points, sizes, mount, keep=keep)
    return list(dict.fromkeys(found))


def check_point(suite: SuiteFile, task: Task, point: Point, mount: Path) -> list[Problem]:
    """Every problem of a task's run, or of one that its search could come to, but of the room for all of them."""
    settings, where = _settings(point), f"{suite.path}: tasks.{task.name}"
    model = _model(settings, mount)
    return [
        *check_metrics(task, point, where),
        *check_steps(settings, where),
        *check_data(settings, mount, where),
        *(
            check_sparse(settings, model, where)
            if isinstance(model, Model)
            else [Problem(f"{where}: {model}; so neither its size nor its zeros can be checked", is_soft=True)]
        ),
    ]


def _settings(point: Point) -> Any:
    assert point.resolved is not None
    return point.resolved.settings


def check_metrics(task: Task, point: Point, where: str) -> Iterator[Problem]:
    """The metrics exist for these targets, and are better the way the file says."""
    entry = ENTRIES[point.entry]
    settings = _settings(point)
    for metric in point.metrics:
        try:
            checked_metric(metric_of(metric), entry.metrics(settings), where=f"{where}: metrics")
        except ConfigError as error:
            yield Problem(str(error))
    chosen = str(getattr(settings.evaluation, entry.metric_setting))
    way = "high" if higher_is_better(chosen) else "low"
    if task.best_when is not None and task.best_when != way:
        yield Problem(
            f'{where}: {chosen} is best when {way}, not when {task.best_when}; set "best_when": "{way}", or leave it out'
        )
    shown = metric_of(point.metrics[0])
    if shown != chosen:
        yield Problem(
            f"{where}: the best checkpoint is chosen by {chosen}, but the table shows {shown} first; "
            f'set "{entry.metric_setting}": "{shown}"',
            is_soft=True,
        )


def check_steps(settings: Any, where: str) -> Iterator[Problem]:
    """There is an evaluation, and the last one is not right after another."""
    steps, every = settings.training.max_steps, settings.evaluation.eval_steps
    if steps is None or every is None:
        return
    if steps < every:
        yield Problem(
            f"{where}: max_steps {steps} is below eval_steps {every}: nothing but the end would be evaluated, and no best "
            f"checkpoint chosen; set eval_steps to {steps} or lower, or max_steps to {every} or higher"
        )
    elif steps % every:
        yield Problem(
            f"{where}: max_steps {steps} is no multiple of eval_steps {every}: the last evaluation comes {steps % every} "
            f"updates after the one before it; set max_steps {steps // every * every}",
            is_soft=True,
        )


def check_data(settings: Any, mount: Path, where: str) -> Iterator[Problem]:
    """The data set is there; of the hub's, nothing is asked."""
    name = settings.data.data_name
    if name.startswith(HUB_PREFIX):
        return
    try:
        find_source(name, mount, settings.data.quoting)
    except DataError as error:
        yield Problem(f"{where}: {error}")


def _model(settings: Any, mount: Path) -> Model | ModelError:
    try:
        return find_model(settings, mount)
    except ModelError as error:
        return error


def check_sparse(settings: Any, model: Model, where: str) -> Iterator[Problem]:
    """A pruned model keeps its zeros only with the strategy for it."""
    folder = Path(model.folder) if model.folder is not None else None
    strategies = getattr(settings, "strategies", None)
    if folder is None or getattr(strategies, "static_sparsity", None) is not None:
        return
    share = looks_sparse(folder)
    if share is not None:
        yield Problem(
            f"{where}: {model.name}: {share:.0%} of its weights are zero, and training would fill them; "
            'set "static_sparsity": true, which keeps them zero',
            is_soft=True,
        )


def _run_bytes(settings: Any, model: Model) -> int:
    """The most that one run's checkpoints take, by the sizes of weights and optimizer in fp32."""
    weights = FP32_BYTES * num_parameters(model.shape)
    trains_all = not settings.trained.lora_r and not settings.trained.train_only
    size = CheckpointSize(weights + MARGIN_BYTES, ADAMW_TENSORS * weights if trains_all else 0)
    steps, training = settings.training.max_steps, settings.training
    every = training.save_steps or settings.evaluation.eval_steps
    num_saves = math.ceil(steps / every) if steps and every else EVALUATIONS
    return kept_at_most(size, num_saves=num_saves, limit=training.save_total_limit, num_states=KEPT_STATES)


def check_room(points: Sequence[Point], sizes: dict[str, int], mount: Path, *, keep: str) -> Iterator[Problem]:
    """The checkpoints of all runs fit; with `keep` best, those of a task's best run, and of one more while it runs."""
    runs: dict[str, set[str]] = {}
    for point in points:
        if not (mount / "models" / point.run / "report.json").is_file():
            runs.setdefault(str(point.labels["task"]), set()).add(point.run)
    counts = {name: len(runs.get(name, ())) for name in sizes}
    needed = sum(sizes[name] * (min(count, 2) if keep == "best" else count) for name, count in counts.items())
    free = free_bytes(mount / "models")
    if needed <= free:
        return
    others = "" if keep == "best" else "pass --keep best, "
    yield Problem(
        f"disk space: the checkpoints of {sum(counts.values())} runs take about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are "
        f"free at {mount / 'models'}; {others}set save_total_limit lower or save_steps higher, or free some space",
        is_soft=True,
    )
