"""What happens around the loop of a training run: evaluations, checkpoints, the best model, the report.

Knows nothing of how the model and data were prepared, nor of how a step is made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflow.config.cascade import flatten
from workflow.errors import BackendError
from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.metrics import Metric, is_better
from workflow.evaluation.report import Measured, Report, Speed, measured, records, result_table, write_report
from workflow.paths import RunPaths
from workflow.recipe.task import Task
from workflow.runtime import environment_report, on_first
from workflow.training.backend import Backend
from workflow.training.checkpoint import ModelWriter, TrainState, link_model, prune, save_checkpoint, save_model
from workflow.training.flops import peak_flops
from workflow.training.log import TrainingLog
from workflow.training.merging import adapters_merged
from workflow.training.schedule import Steps, happens
from workflow.training.trainer import Trainer, Update


class Run:
    """One training run's evaluations, checkpoints and report around the loop."""

    def __init__(self, task: Task[Any], paths: RunPaths, backend: Backend, steps: Steps) -> None:
        self.task = task
        self.settings = task.settings
        self.place = task.place
        self.paths = paths
        self.backend = backend
        self.steps = steps
        self.evaluator = task.evaluator(backend.together())
        self.log: TrainingLog | None = None  # the first rank's

    def train(self, trainer: Trainer, state: TrainState) -> None:
        """Trains to the end, evaluating and saving on the way, and writes the report."""
        if self.place.ranks.is_first:
            every = self.settings.training.logging_steps
            self.log = TrainingLog(
                self.place.console, self.paths, max_steps=self.steps.max_steps, every=every, continue_from=state.step
            )
            self._finish_best(state)
        try:
            if state.step == 0 and not self.settings.evaluation.no_eval_at_start:
                self._evaluate(state)
            hooks: list[Callable[[TrainState, Update], None]] = [
                *([self.log.after_step] if self.log else []),
                self._after_step,
            ]
            trainer.run(state, hooks)
        finally:
            if self.log:
                self.log.close()
        on_first(lambda: self._report(state), self.place.ranks)

    def _finish_best(self, state: TrainState) -> None:
        """A kill may have come between writing a checkpoint and making it the best."""
        newest = self.paths.checkpoint(state.step)
        if state.best_step == state.step and newest.is_dir():
            link_model(newest, self.paths.best)

    def _after_step(self, state: TrainState, update: Update) -> None:
        """Evaluates and saves when due. The checkpoint is written after the evaluation, so that it knows the best."""
        last = self.steps.max_steps
        skipped = update.step == last and self.settings.evaluation.no_eval_at_end
        improved = happens(update.step, self.steps.eval_steps, last) and not skipped and self._evaluate(state)
        if update.step == last and state.best_step is None:  # never evaluated: the last is the best there is
            improved, state.best_step = True, last
        if happens(update.step, self.steps.save_steps, last):
            folder = self.paths.checkpoint(update.step)
            save_checkpoint(folder, backend=self.backend, state=state, write_model=self._writer(state.step))
            on_first(lambda: self._keep(folder, is_best=improved), self.place.ranks)
        elif improved:
            save_model(self.paths.best, backend=self.backend, write_model=self._writer(state.step))

    def _keep(self, folder: Path, *, is_best: bool) -> None:
        if is_best:
            link_model(folder, self.paths.best)
        prune(self.paths, limit=self.settings.training.save_total_limit)

    def _writer(self, step: int) -> ModelWriter:
        return lambda folder, weights: self.task.write_model(folder, weights, step)

    def _evaluate(self, state: TrainState) -> bool:
        """Evaluates, writes predictions, and says on every rank whether this is the best step so far (step 0 never is)."""
        if not len(self.task.data.eval):
            return False
        with adapters_merged(self.backend, self.task.loaded.adapters):
            found = self.evaluator.evaluate()
        improved = on_first(lambda: self._record(state, found), self.place.ranks)
        if improved:
            state.best_step = state.step
        return improved

    def _record(self, state: TrainState, found: Evaluation) -> bool:
        loss = found.metrics["eval_loss"].value
        if loss is None or not math.isfinite(loss):
            raise BackendError(
                f"step {state.step}: the loss on the eval rows is not finite; the checkpoints before this step are good"
            )
        self.task.record(self.paths, state.step, found)
        assert self.log is not None
        self.log.write(
            {"step": state.step, **{name: metric.value for name, metric in found.metrics.items()}}, group="eval"
        )
        self.place.console.print(
            f"step {state.step}/{self.steps.max_steps}  evaluation  {found.one_line()}", soft_wrap=True
        )
        record = measured(state.step, found.metrics, found.slices).model_dump(mode="json")
        state.measured["latest"] = record
        if state.step == 0:
            state.measured["initial"] = record
            return False
        if not _improves(self.task.best_metric, found.metrics, state):
            return False
        state.best_value, state.measured["best"] = found.metrics[self.task.best_metric].value, record
        return True

    def _report(self, state: TrainState) -> None:
        self.task.finish(self.paths, state)
        settings, ranks, data = self.settings, self.place.ranks, self.task.data
        environment = environment_report(self.place.device)
        peak = peak_flops(str(environment["hardware"].get("gpu", "")))
        seconds = max(state.seconds, 1e-9)
        latest = _measured(state, "latest")
        report = Report(
            run=self.paths.root.name,
            task=self.task.name,
            model=self.task.model_label,
            data=data.examples.label,
            data_hash=data.examples.fingerprint,
            best_metric=self.task.best_metric,
            initial=_measured(state, "initial"),
            final=latest if latest and latest.step == state.step else None,
            best=_measured(state, "best"),
            baseline=records(self.task.baseline()),
            notes=self.task.result_notes(self.paths, state),
            final_train_loss=state.loss,
            steps=state.step,
            examples=state.examples,
            epochs=state.examples / len(data.train),
            speed=Speed(
                tokens_per_s=(state.source_tokens + state.target_tokens) / seconds,
                examples_per_s=state.examples / seconds,
                train_seconds=state.seconds,
                mfu=state.flops / (seconds * ranks.world_size * peak) if peak else None,
            ),
            settings=flatten(settings),
            backend={
                "name": self.backend.plan.name,
                "stage": self.backend.plan.stage,
                "precision": self.backend.plan.precision,
                "ranks": ranks.world_size,
            },
            environment={**environment, "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        )
        write_report(self.paths.report, report)
        self.place.console.print(result_table(report))
        self.place.console.print(f"best checkpoint: {self.paths.best}", soft_wrap=True)


def _improves(metric: str, found: Mapping[str, Metric], state: TrainState) -> bool:
    """Whether these metrics beat the best so far; between equal ones (no exact match yet), the lower loss wins.

    So it does where the eval rows do not define the metric at all.
    """
    value, best = found[metric].value, _measured(state, "best")
    if best is not None and value == state.best_value:
        return is_better("eval_loss", found["eval_loss"].value, best.metrics["eval_loss"].value)
    return best is None or is_better(metric, value, state.best_value)


def _measured(state: TrainState, name: str) -> Measured | None:
    found = state.measured.get(name)
    return Measured.model_validate(found) if found is not None else None
