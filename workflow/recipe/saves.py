"""When a run's checkpoints, best model and averages are written, which of them stay, and what a save that fails means.

Knows nothing of evaluations, nor of how a checkpoint is gathered and written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from workflow.console import styled
from workflow.errors import CheckpointError
from workflow.paths import RunPaths
from workflow.recipe.averages import Averages
from workflow.recipe.best import Best, put_back
from workflow.recipe.task import Task
from workflow.training.checkpoint import TrainState, drop, link_model, prune
from workflow.training.continuing import put_aside
from workflow.training.saving import ModelWriter, Saver
from workflow.training.schedule import Steps, happens

SAVE_FAILED = "training goes on, and the next save is tried as usual: make room there meanwhile"
LAST_SAVE_FAILED = "free some space there (older checkpoint-N and damaged-* folders), then the same command goes on from the last good one"


class Saves:
    """The saves of one run. All calls but `close` are collective."""

    def __init__(self, task: Task[Any], paths: RunPaths, steps: Steps, saver: Saver, averages: Averages) -> None:
        self.task = task
        self.paths = paths
        self.steps = steps
        self.saver = saver
        self.averages = averages
        self.close = saver.close
        self.on_saved: Callable[[int], None] = lambda _: None
        """Told the step of each checkpoint that stands, on the first rank."""
        self._newest: tuple[int, Best] = (0, (None, None, None))
        """The step of the newest save, and the best before it."""
        self._standing: int | None = None
        """The step whose checkpoint stands, and lacks what an evaluation adds."""
        self._failed: int | None = None
        """The step whose save before its evaluation failed."""

    def continued(self, step: int) -> None:
        """Told the step that a run continues from: a checkpoint of its own need not be written again."""
        self._standing = step if self.paths.checkpoint(step).is_dir() else None

    def before_evaluation(self, state: TrainState, best: Best, *, is_last: bool) -> None:
        """A whole checkpoint that owes the evaluation, so that one that fails, or is killed, costs nothing that was trained.

        `save` renews it. In the background it would only keep the evaluation waiting; there `save` alone writes.
        """
        if self.task.settings.training.save_in_background:
            return
        self._newest = (state.step, best)
        state.owes_evaluation = True
        try:
            folder, more = self.paths.checkpoint(state.step), self.averages.state()
            self.saver.checkpoint(folder, state=state, write_model=self._writer(state.step), more=more)
            self._standing = state.step
        except CheckpointError as error:
            self._failed = state.step
            self._refuse_or_tell(state, error, is_last=is_last)

    def put_aside(self, step: int) -> str:
        """Renames the checkpoint that was written before an evaluation which shows that its weights are spoilt; says so. By the first rank."""
        if self._standing != step:
            return ""
        aside = put_aside(self.paths.checkpoint(step))
        return f"; the one of this step is now {aside.name}"

    def save(self, state: TrainState, best: Best, *, is_due: bool, is_best: bool, is_last: bool) -> None:
        """A save that fails costs that save alone, and the best model of this step; the last one's failure ends the run."""
        if not (is_due or is_best):
            return
        self.finish(state)
        self._newest = (state.step, best)
        # Only the evaluation tells that a run ends of lost patience: this save, its last, is tried again.
        if self._failed == state.step and not is_last:
            self._forget_best(state)
            return
        try:
            self._save(state, is_due=is_due, is_best=is_best)
            if is_last:
                self.saver.finish()
        except CheckpointError as error:
            self._refuse_or_tell(state, error, is_last=is_last)

    def finish(self, state: TrainState) -> None:
        """Waits for what is written in the background: an evaluation makes what it reads anew."""
        try:
            self.saver.finish()
        except CheckpointError as error:
            self._tell_failed(state, error)

    def _refuse_or_tell(self, state: TrainState, error: CheckpointError, *, is_last: bool) -> None:
        if is_last:
            told = CheckpointError(f"{error}; {LAST_SAVE_FAILED}")
            told.known_to_all = error.known_to_all
            raise told from error
        self._tell_failed(state, error)

    def _forget_best(self, state: TrainState) -> None:
        step, best = self._newest
        if state.best_step == step:
            put_back(state, best)

    def _tell_failed(self, state: TrainState, error: CheckpointError) -> None:
        self._forget_best(state)
        self.task.place.console.print(styled("notice", "bold red", f"  {error}; {SAVE_FAILED}"), soft_wrap=True)

    def of_stop(self, state: TrainState) -> None:
        """A whole checkpoint, on the disk when this returns. Raises CheckpointError."""
        self.finish(state)
        if self._standing == state.step and state.owes_evaluation:
            return
        self._save(state, is_due=True, is_best=False)
        self.saver.finish()

    def _save(self, state: TrainState, *, is_due: bool, is_best: bool) -> None:
        write_model = self._writer(state.step)
        if is_due:
            self.averages.save(state.step)  # before the checkpoint, after which a killed run would not do it again
            folder, more = self.paths.checkpoint(state.step), self.averages.state()
            keep = partial(self._keep, folder, state.step, is_best=is_best)
            if self._standing == state.step:
                describe = partial(self.task.describe, step=state.step)
                self.saver.renew(folder, state=state, describe=describe, then=keep)
                return
            self.saver.checkpoint(folder, state=state, write_model=write_model, more=more, then=keep)
        elif is_best:
            self.saver.model(self.paths.best, step=state.step, write_model=write_model)

    def _keep(self, folder: Path, step: int, *, is_best: bool) -> None:
        """Links the best, and removes what need not stay: checkpoints of earlier stops that no setting asked for, too."""
        try:
            if is_best:
                link_model(folder, self.paths.best)
            for other, checkpoint in self.paths.checkpoints():
                if checkpoint != folder and not happens(other, self.steps.save_steps, self.steps.max_steps):
                    drop(checkpoint)
            prune(self.paths, limit=self.task.settings.training.save_total_limit)
        except OSError as error:
            raise CheckpointError(
                f"{folder} is saved, but the folders beside it could not be renewed: {error}"
            ) from None
        self.on_saved(step)

    def _writer(self, step: int) -> ModelWriter:
        return lambda folder, weights: self.task.write_model(folder, weights, step)
