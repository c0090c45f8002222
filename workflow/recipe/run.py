"""What happens around the loop of a training run: evaluations, checkpoints, the best model, the report.

Knows nothing of how the model and data were prepared, nor of how a step is made.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

from workflow.config.cascade import flatten
from workflow.console import styled
from workflow.errors import BackendError, GivenUp, Stopped
from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.report import Measured, Report, Speed, measured, records, result_table, write_report
from workflow.pages.report_page import try_own_page
from workflow.paths import RunPaths
from workflow.recipe.averages import MEASURED, Averages
from workflow.recipe.best import best_of, improves, measured_in
from workflow.recipe.saves import Saves
from workflow.recipe.task import Task
from workflow.recipe.tracking import trackers_of
from workflow.runtime import environment_report, max_over_ranks, on_first
from workflow.training.backend import Backend
from workflow.training.checkpoint import TrainState
from workflow.training.exporter import Exporter
from workflow.training.flops import peak_flops
from workflow.training.log import TrainingLog
from workflow.training.masters import Masters
from workflow.training.merging import adapters_merged
from workflow.training.saving import Saver
from workflow.training.schedule import Steps, happens
from workflow.training.trainer import Trainer, Update
from workflow.watch.signals import asked


class SpoiltWeightsError(BackendError):
    """The loss on the eval rows is not finite: this step's weights are good for nothing."""


class Run:
    """One training run's evaluations, checkpoints and report around the loop."""

    def __init__(
        self,
        task: Task[Any],
        paths: RunPaths,
        backend: Backend,
        steps: Steps,
        masters: Masters,
        exporter: Exporter | None = None,
    ) -> None:
        self.task = task
        self.settings = task.settings
        self.place = task.place
        self.paths = paths
        self.backend = backend
        self.steps = steps
        self.masters = masters
        saver = Saver(backend, in_background=task.settings.training.save_in_background)
        self.averages = Averages(task, paths, masters, saver)
        self.saves = Saves(task, paths, steps, saver, self.averages)
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
            self.saves.on_saved = self.log.saved
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
            self.saves.close()
            if self.log:
                self.log.close()

    def _begin(self, state: TrainState) -> None:
        """The evaluation before the first step, or what has kept the run from it after an update."""
        self.saves.continued(state.step)
        try:
            if state.step == 0 and not self.settings.evaluation.no_eval_at_start:
                self._evaluate(state)
            best, is_owed = best_of(state), state.owes_evaluation
            improved = is_owed and self._evaluate(state)
            improved = self._is_best_unmeasured(state) or improved
            if is_owed or improved:
                is_last = state.ended or state.step == self.steps.max_steps
                self.saves.save(state, best, is_due=True, is_best=improved, is_last=is_last)
        except GivenUp:
            raise Stopped(self._asked(), step=state.step) from None

    def _after_step(self, state: TrainState, update: Update) -> None:
        """Evaluates and saves when due: the checkpoint before the evaluation, and what that found afterwards.

        Raises Stopped, on all ranks, with a checkpoint written, where any was asked to stop.
        """
        last, best = self.steps.max_steps, best_of(state)
        is_unwanted = update.step == last and self.settings.evaluation.no_eval_at_end
        evaluates = happens(update.step, self.steps.eval_steps, last) and not is_unwanted and self._has_eval_rows
        if update.stop:
            self._stop(state, update.stop, owes_evaluation=evaluates)
        is_due = happens(update.step, self.steps.save_steps, last)
        if is_due and evaluates:
            self.saves.before_evaluation(state, best, is_last=update.step == last)
        improved = evaluates and self._evaluate_or_save(state)
        improved = self._is_best_unmeasured(state) or improved
        is_last = update.step == last or state.ended
        is_due = is_due or state.ended
        self.saves.save(state, best, is_due=is_due, is_best=improved, is_last=is_last)
        if is_due and not is_last and (number := self._asked()):
            self.saves.finish(state)
            raise Stopped(number, step=state.step)  # another update would only be saved once more

    @property
    def _has_eval_rows(self) -> bool:
        return len(self.task.data.eval) > 0

    def _evaluate_or_save(self, state: TrainState) -> bool:
        """Evaluates; where that ends before its time, what was trained is saved."""
        try:
            return self._evaluate(state)
        except GivenUp:
            self._stop(state, self._asked(), owes_evaluation=True)
        except SpoiltWeightsError:
            raise
        except Exception as error:
            if self.place.ranks.world_size == 1 or getattr(error, "known_to_all", False):
                self._save_without_evaluation(state)
            raise

    def _save_without_evaluation(self, state: TrainState) -> None:
        """What fails here, too, must not take the place of the evaluation's error."""
        state.owes_evaluation = True
        with contextlib.suppress(Exception):
            self.saves.of_stop(state)
            told = (
                f"  the evaluation after step {state.step} failed; {self.paths.checkpoint(state.step).name} holds what "
                "was trained, and the same command begins with this evaluation"
            )
            self.place.console.print(styled("notice", "bold red", told), soft_wrap=True)

    def _is_best_unmeasured(self, state: TrainState) -> bool:
        """Whether this is the last step of a run without a best one: never evaluated, the last is the best there is."""
        if state.step < self.steps.max_steps or state.best_step is not None:
            return False
        state.best_step = state.step
        return True

    def _asked(self) -> int:
        """The signal by which any rank was asked to stop, or 0; a collective call."""
        return max_over_ranks(asked(), self.place.ranks)

    def _stop(self, state: TrainState, number: int, *, owes_evaluation: bool) -> NoReturn:
        state.owes_evaluation = owes_evaluation and self._has_eval_rows
        self.saves.of_stop(state)
        raise Stopped(number, step=state.step)

    def _evaluate(self, state: TrainState) -> bool:
        """Evaluates, writes predictions, and says on every rank whether this is the best step so far (step 0 never is)."""
        if not self._has_eval_rows:
            return False
        self.saves.finish(state)
        with adapters_merged(self.backend, self.task.loaded.adapters):
            found = self.evaluator.evaluate()
        averages = self.averages.evaluate(self.evaluator)
        figures = self.task.strategies.figures(self.masters)
        improved = on_first(lambda: self._record(state, found, averages, figures), self.place.ranks)
        state.owes_evaluation = False
        if improved:
            state.best_step, state.stale_evaluations = state.step, 0
        elif state.step:
            state.stale_evaluations += 1
        patience = self.settings.evaluation.patience
        state.ended = patience is not None and state.stale_evaluations >= patience and state.step < self.steps.max_steps
        return improved

    def _record(
        self, state: TrainState, found: Evaluation, averages: dict[str, Evaluation], figures: dict[str, float]
    ) -> bool:
        loss = found.metrics["eval_loss"].value
        if loss is None or not math.isfinite(loss):
            raise SpoiltWeightsError(
                f"step {state.step}: the loss on the eval rows is not finite; the checkpoints before this step are good"
                f"{self.saves.put_aside(state.step)}"
            )
        self.task.record(self.paths, state.step, found)
        assert self.log is not None
        values = {name: metric.value for name, metric in found.metrics.items()}
        more = {**self.averages.record(state, averages), **figures}
        self.log.write({"step": state.step, **values, **more}, group="eval")
        lines = [found.one_line(), *(f"of {name}: {of.one_line()}" for name, of in averages.items())]
        if figures:
            lines.append("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        for line in lines:
            self.place.console.print(f"step {state.step}/{self.steps.max_steps}  evaluation  {line}", soft_wrap=True)
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
            averages={name: Measured.model_validate(of) for name, of in state.measured.get(MEASURED, {}).items()},
            baseline=records(self.task.baseline()),
            notes=[
                *self._why_ended(state),
                *self.averages.never_begun(state.step),
                *self.task.result_notes(self.paths, state),
            ],
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
            self.place.console.print(styled("notice", "bold red", f"  {reason}"), soft_wrap=True)
        write_report(self.paths.report, report)  # the last file: by it a run counts as finished
        for line in self._why_ended(state):
            self.place.console.print(line, soft_wrap=True)
        self.place.console.print(result_table(report))
        self.place.console.print(f"best checkpoint: {self.paths.best}", soft_wrap=True)
        for name in report.averages:
            self.place.console.print(f"{name} checkpoint: {self.paths.average(name)}", soft_wrap=True)
