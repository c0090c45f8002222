"""When a run saves, and what a save that fails means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workflow.errors import CheckpointError
from workflow.paths import RunPaths
from workflow.recipe.saves import Saves
from workflow.training.checkpoint import TrainState
from workflow.training.schedule import Steps

NO_BEST = (None, None, None)


class FullDisk:
    """A saver on a disk that is full for the first `fails` checkpoints."""

    def __init__(self, fails: int) -> None:
        self.fails, self.written = fails, []

    def checkpoint(self, folder, **_):
        self.fails -= 1
        if self.fails >= 0:
            raise CheckpointError(f"{folder}: no space left")
        self.written.append(folder.name)

    def finish(self):
        """Nothing is written in the background."""

    close = finish


def saves_on(disk: FullDisk, root) -> Saves:
    training = SimpleNamespace(save_in_background=False, save_total_limit=None)
    place = SimpleNamespace(console=SimpleNamespace(print=lambda *_, **__: None))
    task = SimpleNamespace(settings=SimpleNamespace(training=training), place=place)
    averages = SimpleNamespace(state=lambda: None, save=lambda step: None)
    return Saves(task, RunPaths(root), Steps(20, 5, 5, 0), disk, averages)


def test_the_last_save_of_a_run_that_lost_its_patience_is_tried_again(tmp_path):
    """Only the evaluation tells that this is the last one: what failed before it is not left out."""
    disk, state = FullDisk(fails=1), TrainState(step=10, best_step=5)
    saves = saves_on(disk, tmp_path)
    saves.before_evaluation(state, NO_BEST, is_last=False)
    saves.save(state, NO_BEST, is_due=True, is_best=False, is_last=True)
    assert disk.written == ["checkpoint-10"]


def test_the_last_save_that_fails_twice_ends_the_run(tmp_path):
    disk, state = FullDisk(fails=2), TrainState(step=10, best_step=5)
    saves = saves_on(disk, tmp_path)
    saves.before_evaluation(state, NO_BEST, is_last=False)
    with pytest.raises(CheckpointError, match="free some space there"):
        saves.save(state, NO_BEST, is_due=True, is_best=False, is_last=True)


def test_a_save_that_failed_before_its_evaluation_is_not_tried_again_after_it(tmp_path):
    disk, state = FullDisk(fails=1), TrainState(step=10, best_step=10)
    saves = saves_on(disk, tmp_path)
    saves.before_evaluation(state, (5, 0.5, None), is_last=False)
    saves.save(state, (5, 0.5, None), is_due=True, is_best=True, is_last=False)
    assert disk.written == []
    assert state.best_step == 5
