"""`workflow lr-find`: a range test of the learning rate (Smith 2015, 2018), from the start model, over the run's own updates.

The rate rises exponentially from update to update while the loss is watched. No run is claimed or touched: everything goes to
a folder of its own. Knows nothing of how an update is made; suggestions are `evaluation.range_test`'s.
"""

from __future__ import annotations

import csv
import math
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from workflow import paths as names
from workflow.data.plan import DataPlan
from workflow.data.sources import Source, find_source
from workflow.errors import ConfigError, DataError, Stopped
from workflow.evaluation.range_plot import write_range_plot
from workflow.evaluation.range_test import RangeTest, Suggestion
from workflow.files import whole_file, why_not_writable, write_json
from workflow.models.load import quiet_transformers
from workflow.recipe.backend_choice import fitted_backend, planned_backend
from workflow.recipe.micro_batches import MicroBatchSizes, circumstances_of
from workflow.recipe.task import Task
from workflow.recipe.train import groups_of, micro_batch_trial, start_backend
from workflow.recipe.trained import load_to_train
from workflow.runtime import keep_freed_memory, on_first
from workflow.strategies.composed import Composed
from workflow.training.ds_config import BackendPlan
from workflow.training.optim import Multiplier
from workflow.training.schedule import range_test_rate
from workflow.training.trainer import LoopSettings, MicroBatchMemoryError, Trainer, Update

SCHEMA_VERSION = 1
OF_WHOLE_RUNS = ("freeze", "swa", "ema")
"""Strategies that mean something only over the updates of a whole run."""


class RangeTrainer(Trainer):
    """A trainer whose rate rises from `low` to `high`; each group keeps its share of the highest initial rate."""

    def __init__(self, *parts: Any, low: float, high: float, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._rate = partial(range_test_rate, low=low, high=high, steps=self.settings.max_steps)

    def scheduled(self, step: int) -> float:
        """The rising rate, as a share of the highest initial one."""
        return float(self._rate(step) / self.highest)

    def _multiplier(self, step: int) -> Multiplier:
        """What is tested is the rising rate: no strategy has a say in it."""
        share = self.scheduled(step)
        return lambda _group: share


def lr_find(task: Task[Any], given: Namespace) -> None:
    """Collective. Writes lr_find.json, .csv, .png and .svg into the folder, and prints what they come to."""
    place = task.place
    quiet_transformers()
    task.check_settings()
    data = task.settings.data
    source = on_first(lambda: find_source(data.data_name, place.mount, data.quoting), place.ranks)
    plan = planned_backend(task)
    out = given.out or Path("lr_find") / task.run_name
    on_first(lambda: _check_place(out), place.ranks)
    _leave_out(task)
    task.strategies.plan(given.lr_find_steps)
    task.look_at(source)
    load_to_train(task, None)
    task.load_data(source)
    on_first(task.say_data, place.ranks)
    if not len(task.data.train):
        raise DataError(f'{source.label}: no training rows ("train" is empty or missing)')
    if place.device == "cpu":
        keep_freed_memory()
    found = _tested(task, plan, given, out)
    on_first(lambda: _tell(task, source, found, given, out), place.ranks)


def _check_place(out: Path) -> None:
    """Makes the folder before anything is loaded: of some places only that tells. Raises ConfigError."""
    reason = why_not_writable(out / "lr_find.json")
    try:
        if reason is None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror}"
    if reason is not None:
        raise ConfigError(f"--out {out}: {reason}; name a folder that can be written to")


def _leave_out(task: Task[Any]) -> None:
    """Takes what is about whole runs off the task's strategies, and says so."""
    strategies = task.strategies.strategies
    if names := [f"--{strategy.name}" for strategy in strategies if strategy.name in OF_WHOLE_RUNS]:
        task.strategies = Composed([strategy for strategy in strategies if strategy.name not in OF_WHOLE_RUNS])
        task.write_note(f"left out of the range test, being about whole runs: {', '.join(names)}")


def _tested(task: Task[Any], plan: BackendPlan, given: Namespace, out: Path) -> RangeTest:
    settings, place = task.settings, task.place
    objective = task.objective()
    plan = fitted_backend(task, plan, objective)
    backend = start_backend(task, plan, groups_of(task))
    checkpointing = settings.model.gradient_checkpointing
    circumstances = circumstances_of(task.device, place.ranks, plan, checkpointing=checkpointing)
    sizes = MicroBatchSizes(names.RunPaths(out), circumstances, place.ranks)
    try:
        trial = partial(micro_batch_trial, task, backend, objective) if task.device.type == "cuda" else None
        micro_batches = sizes.plan(
            settings.training,
            padded=task.why_padded is not None,
            passes=objective.passes,
            of_one_length=task.of_one_length,
            trial=trial,
        )
        loop = LoopSettings(given.lr_find_steps, 0, "constant", micro_batches.limits, settings.run.seed)
        update_size = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
        order = DataPlan(len(task.data.train), update_size, settings.run.seed)
        trainer = RangeTrainer(
            *(backend, objective, order, loop),
            ranks=place.ranks,
            low=given.lr_min,
            high=given.lr_max,
            strategies=task.strategies,
        )
        place.console.print(
            f"lr-find   {given.lr_find_steps} updates of {update_size} examples, the learning rate rising from {given.lr_min:g} to {given.lr_max:g}"
        )
        return watch(trainer.update, given.lr_find_steps, say=task.write_note)
    except MicroBatchMemoryError as error:
        raise sizes.after_out_of_memory(error) from error
    finally:
        backend.destroy()


def watch(update: Callable[[int], Update], steps: int, *, say: Callable[[str], None]) -> RangeTest:
    """Makes updates until the loss has diverged; the same on all ranks, whose losses are the same. Raises Stopped."""
    found = RangeTest()
    for step in range(1, steps + 1):
        made = update(step)
        if made.stop:
            raise Stopped(made.stop, step=step)
        is_over = made.skipped is not None or not math.isfinite(made.loss)
        if not is_over:
            found.add(made.lr, made.loss)
            is_over = found.has_diverged
        if is_over:
            say(f"stopped at update {step} of {steps}: the loss has diverged")
            break
        if step % max(1, steps // 10) == 0:
            say(f"update {step}/{steps}  lr {made.lr:.2e}  loss {made.loss:.4f}")
    return found


def _tell(task: Task[Any], source: Source, found: RangeTest, given: Namespace, out: Path) -> None:
    suggestions = found.suggestions()
    chosen = suggestions[0] if suggestions else None
    write_json(
        out / "lr_find.json",
        {
            "schema_version": SCHEMA_VERSION,
            "task": task.name,
            "model": task.model_label,
            "data": source.label,
            "data_hash": source.data_hash,
            "settings": task.resolved.flat(),
            "lr_min": given.lr_min,
            "lr_max": given.lr_max,
            "steps": given.lr_find_steps,
            "diverged": found.has_diverged,
            "suggestions": [suggestion.as_json() for suggestion in suggestions],
            "points": found.as_json(),
        },
    )
    with whole_file(out / "lr_find.csv") as file:
        table = csv.DictWriter(file, ["step", "lr", "loss", "smoothed"], lineterminator="\n")
        table.writeheader()
        table.writerows(found.as_json())
    title = f"{task.model_label} on {Path(source.label).name}"
    write_range_plot(out, found.rates, found.losses, found.smoothed, suggestions, title=title)
    task.place.console.print(_table(suggestions))
    if chosen is None:
        task.write_note(
            "no suggestion: the loss never fell; test a range of lower rates (--lr_min, --lr_max) or more updates"
        )
    else:
        task.write_note(f"suggestion: --lr {chosen.rate:.2g}")
    task.write_note(f"written to {out}: lr_find.json, .csv, .png, .svg")


def _table(suggestions: list[Suggestion]) -> Table:
    table = Table(title="learning rates that the range test suggests")
    for head in ("by", "lr", "convention"):
        table.add_column(head, justify="right" if head == "lr" else "left")
    for suggestion in suggestions:
        table.add_row(suggestion.name, f"{suggestion.rate:.2e}", suggestion.convention)
    return table
