"""What happens around the loop of a training run: evaluations, checkpoints, the best model, the report.

Knows nothing of how the model and data were prepared, nor of how a step is made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.markup import escape

from workflow.config.cascade import flatten
from workflow.errors import BackendError, CheckpointError, GivenUp, Stopped
from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.report import Report, Speed, measured, records, result_table, write_report
from workflow.pages.report_page import try_own_page
from workflow.paths import RunPaths
from workflow.recipe.best import Best, best_of, improves, measured_in, put_back
from workflow.recipe.task import Task
from workflow.recipe.tracking import trackers_of
from workflow.runtime import environment_report, max_over_ranks, on_first
from workflow.training.backend import Backend
from workflow.training.checkpoint import (
    ModelWriter,
    TrainState,
    drop,
    link_model,
    prune,
    save_checkpoint,
    save_model,
)
from workflow.training.exporter import Exporter
from workflow.training.flops import peak_flops
from workflow.training.log import TrainingLog
from workflow.training.merging import adapters_merged
from workflow.training.schedule import Steps, happens
from workflow.training.trainer import Trainer, Update
from workflow.watch.signals import asked

SAVE_FAILED = "training goes on, and the next save is tried as usual: make room there meanwhile"
LAST_SAVE_FAILED = "free some space there (older checkpoint-N and damaged-* folders), then the same command goes on from the last good one"


class Run:
    """One training run's evaluations, checkpoints and report around the loop."""

    def __init__(
        self, task: Task[Any], paths: RunPaths, backend: Backend, steps: Steps, exporter: Exporter | None = None
    ) -> None:
        self.task = task
        self.settings = task.settings
        self.place = task.place
        self.paths = paths
        self.backend = backend
        self.steps = steps
        self.evaluator = task.evaluator(backend.together())
        self.exporter = exporter
        self.log: TrainingLog | None = None  # the first rank's

    def train(self, trainer: Trainer, state: TrainState) -> None:
        """Trains to the end, evaluating and saving on the way, and writes the report."""
        if self.place.ranks.is_first:
            every = self.settings.training.logging_steps
            told = trackers_of(self.task, self.paths, self.exporter, continue_from=state.step)
            console, last = self.place.console, self.steps.max_steps
            self.log = TrainingLog(console, self.paths, state, told, max_steps=last, every=every)
        finished = False
        try:
            self._loop(trainer, state)
            on_first(lambda: self._report(state), self.place.ranks)
            finished = True
        finally:
            if self.log:  # after the report: a tracker whose server hangs keeps no run from being finished
                self.log.trackers.close(finished=finished)

    def _loop(self, trainer: Trainer, state: TrainState) -> None:
        try:
            self._begin(state)
            hooks: list[Callable[[TrainState, Update], None]] = [
                *([self.log.after_step] if self.log else []),
                self._after_step,
            ]
            trainer.run(state, hooks)
        finally:
            if self.log:
                self.log.close()

    def _begin(self, state: TrainState) -> None:
        """The evaluation before the first step, or the one that a signal has kept the run from."""
        try:
            if state.step == 0 and not self.settings.evaluation.no_eval_at_start:
                self._evaluate(state)
            if state.owes_evaluation:
                best, improved = best_of(state), self._evaluate(state)
                self._save_or_tell(state, best, is_due=True, is_best=improved, is_last=state.ended)
        except GivenUp:
            raise Stopped(self._asked(), step=state.step) from None

    def _after_step(self, state: TrainState, update: Update) -> None:
        """Evaluates and saves when due. The checkpoint is written after the evaluation, so that it knows the best.

        Raises Stopped, on all ranks, with a checkpoint written, where any was asked to stop.
        """
        last, best = self.steps.max_steps, best_of(state)
        is_unwanted = update.step == last and self.settings.evaluation.no_eval_at_end
        evaluates = happens(update.step, self.steps.eval_steps, last) and not is_unwanted
        if update.stop:
            self._stop(state, update.stop, owes_evaluation=evaluates)
        try:
            improved = evaluates and self._evaluate(state)
        except GivenUp:
            self._stop(state, self._asked(), owes_evaluation=True)
        if update.step == last and state.best_step is None:  # never evaluated: the last is the best there is
            improved, state.best_step = True, last
        is_last = update.step == last or state.ended
        is_due = happens(update.step, self.steps.save_steps, last) or state.ended
        self._save_or_tell(state, best, is_due=is_due, is_best=improved, is_last=is_last)
        if is_due and not is_last and (number := self._asked()):
            raise Stopped(number, step=state.step)  # another update would only be saved once more

    def _save_or_tell(self, state: TrainState, best: Best, *, is_due: bool, is_best: bool, is_last: bool) -> None:
        """A save that fails costs that save alone, and the best model of this step; the last one's failure ends the run."""
        try:
            self._save(state, is_due=is_due, is_best=is_best)
        except CheckpointError as error:
            if is_last:
                told = CheckpointError(f"{error}; {LAST_SAVE_FAILED}")
                told.known_to_all = error.known_to_all
                raise told from error
            put_back(state, best)
            self.place.console.print(f"[bold red]notice[/]  {escape(f'{error}; {SAVE_FAILED}')}", soft_wrap=True)

    def _asked(self) -> int:
        """The signal by which any rank was asked to stop, or 0; a collective call."""
        return max_over_ranks(asked(), self.place.ranks)

    def _stop(self, state: TrainState, number: int, *, owes_evaluation: bool) -> NoReturn:
        state.owes_evaluation = owes_evaluation and len(self.task.data.eval) > 0
        self._save(state, is_due=True, is_best=False)
        raise Stopped(number, step=state.step)

    def _save(self, state: TrainState, *, is_due: bool, is_best: bool) -> None:
        write_model = self._writer(state.step)
        if is_due:
            folder = self.paths.checkpoint(state.step)
            save_checkpoint(folder, backend=self.backend, state=state, write_model=write_model)
            on_first(lambda: self._keep(folder, is_best=is_best), self.place.ranks)
            if self.log:
                self.log.saved(state.step)
        elif is_best:
            save_model(self.paths.best, backend=self.backend, step=state.step, write_model=write_model)

    def _keep(self, folder: Path, *, is_best: bool) -> None:
        """Links the best, and removes what need not stay: checkpoints of earlier stops that no setting asked for, too."""
        try:
            if is_best:
                link_model(folder, self.paths.best)
            for step, checkpoint in self.paths.checkpoints():
                if checkpoint != folder and not happens(step, self.steps.save_steps, self.steps.max_steps):
                    drop(checkpoint)
            prune(self.paths, limit=self.settings.training.save_total_limit)
        except OSError as error:
            raise CheckpointError(
                f"{folder} is saved, but the folders beside it could not be renewed: {error}"
            ) from None

    def _writer(self, step: int) -> ModelWriter:
        return lambda folder, weights: self.task.write_model(folder, weights, step)

    def _evaluate(self, state: TrainState) -> bool:
        """Evaluates, writes predictions, and says on every rank whether this is the best step so far (step 0 never is)."""
        if not len(self.task.data.eval):
            return False
        with adapters_merged(self.backend, self.task.loaded.adapters):
            found = self.evaluator.evaluate()
        improved = on_first(lambda: self._record(state, found), self.place.ranks)
        state.owes_evaluation = False
        if improved:
            state.best_step, state.stale_evaluations = state.step, 0
        elif state.step:
            state.stale_evaluations += 1
        patience = self.settings.evaluation.patience
        state.ended = patience is not None and state.stale_evaluations >= patience and state.step < self.steps.max_steps
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
        if not improves(self.task.best_metric, found.metrics, state):
            return False
        state.best_value, state.measured["best"] = found.metrics[self.task.best_metric].value, record
        return True

    def _why_ended(self, state: TrainState) -> list[str]:
        if not state.ended:
            return []
        return [
            f"stopped at step {state.step} of {self.steps.max_steps}: {state.stale_evaluations} evaluations without a better "
            f"{self.task.best_metric}, best at step {state.best_step}"
        ]

    def _report(self, state: TrainState) -> None:
        self.task.finish(self.paths, state)
        settings, ranks, data = self.settings, self.place.ranks, self.task.data
        environment = environment_report(self.place.device)
        peak = peak_flops(str(environment["hardware"].get("gpu", "")))
        seconds = max(state.seconds, 1e-9)
        latest = measured_in(state, "latest")
        report = Report(
            run=self.paths.root.name,
            task=self.task.name,
            model=self.task.model_label,
            data=data.examples.label,
            data_hash=data.examples.fingerprint,
            best_metric=self.task.best_metric,
            initial=measured_in(state, "initial"),
            final=latest if latest and latest.step == state.step else None,
            best=measured_in(state, "best"),
            baseline=records(self.task.baseline()),
            notes=[*self._why_ended(state), *self.task.result_notes(self.paths, state)],
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
        if reason := try_own_page(self.paths.root, report):
            self.place.console.print(f"[bold red]notice[/]  {escape(reason)}", soft_wrap=True)
        write_report(self.paths.report, report)  # the last file: by it a run counts as finished
        for line in self._why_ended(state):
            self.place.console.print(line, soft_wrap=True)
        self.place.console.print(result_table(report))
        self.place.console.print(f"best checkpoint: {self.paths.best}", soft_wrap=True)
