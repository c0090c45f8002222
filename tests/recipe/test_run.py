"""What a run does around its loop when a signal has come with the last update."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workflow.errors import Stopped
from workflow.recipe.run import Run
from workflow.training.checkpoint import TrainState
from workflow.training.schedule import Steps

LAST = 20


class Saves:
    """Notes what is to be saved."""

    def __init__(self) -> None:
        self.saved: list[dict[str, bool]] = []

    def continued(self, step: int) -> None:
        """A checkpoint that stands, of which nothing is asked here."""

    def before_evaluation(self, state: TrainState, best: object, *, is_last: bool) -> None:
        """The same."""

    def save(self, state: TrainState, best: object, **how: bool) -> None:
        self.saved.append(how)

    def of_stop(self, state: TrainState) -> None:
        """A checkpoint, of which nothing is asked here."""


def run_of(monkeypatch, *, eval_rows: int, improves: bool) -> Run:
    """The real run, without what it only calls."""
    run = Run.__new__(Run)
    evaluation = SimpleNamespace(no_eval_at_start=False, no_eval_at_end=False, patience=None)
    run.settings = SimpleNamespace(evaluation=evaluation)
    run.steps = Steps(LAST, 5, 5, 0)
    run.saves = Saves()
    run.task = SimpleNamespace(data=SimpleNamespace(eval=[None] * eval_rows))

    def evaluate(state: TrainState) -> bool:
        state.best_step = state.step if improves else state.best_step
        return improves

    monkeypatch.setattr(run, "_evaluate", evaluate)
    return run


@pytest.mark.parametrize(
    ("eval_rows", "improves", "best_before", "is_best"),
    [(0, False, None, True), (3, True, 10, True), (3, False, 10, False)],
)
def test_stopped_in_the_last_update_it_saves_as_the_last_step_does(
    monkeypatch, eval_rows, improves, best_before, is_best
):
    """Continued, it has a best checkpoint, and a save that fails ends it: nothing is left to try again."""
    state = TrainState(step=LAST, best_step=best_before)
    stopped = run_of(monkeypatch, eval_rows=eval_rows, improves=improves)
    with pytest.raises(Stopped):
        stopped._after_step(state, SimpleNamespace(step=LAST, stop=15))
    run = run_of(monkeypatch, eval_rows=eval_rows, improves=improves)
    run._begin(state)
    assert run.saves.saved == [{"is_due": True, "is_best": is_best, "is_last": True}]
    assert state.best_step == (LAST if is_best else best_before)


def test_a_finished_run_that_only_reports_saves_nothing(monkeypatch):
    run = run_of(monkeypatch, eval_rows=3, improves=False)
    run._begin(TrainState(step=LAST, best_step=10))
    assert not run.saves.saved
