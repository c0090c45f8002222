"""The best evaluation so far, as a run's state keeps it.

Knows nothing of evaluating or saving.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow.evaluation.metrics import Metric, is_better
from workflow.evaluation.report import Measured
from workflow.training.checkpoint import TrainState

Best = tuple[int | None, float | None, Any]
"""Step, value and figures of the best evaluation."""


def improves(metric: str, found: Mapping[str, Metric], state: TrainState) -> bool:
    """Whether these metrics beat the best so far; between equal ones (no exact match yet), the lower loss wins.

    So it does where the eval rows do not define the metric at all.
    """
    value, best = found[metric].value, measured_in(state, "best")
    if best is not None and value == state.best_value:
        return is_better("eval_loss", found["eval_loss"].value, best.metrics["eval_loss"].value)
    return best is None or is_better(metric, value, state.best_value)


def best_of(state: TrainState) -> Best:
    """The best so far, to be put back where its model cannot be saved."""
    return state.best_step, state.best_value, state.measured.get("best")


def put_back(state: TrainState, best: Best) -> None:
    """The best so far is again the one whose model was saved."""
    state.best_step, state.best_value, record = best
    if record is None:
        state.measured.pop("best", None)
    else:
        state.measured["best"] = record


def measured_in(state: TrainState, name: str) -> Measured | None:
    """An evaluation that the state remembers: "initial", "best" or "latest"."""
    found = state.measured.get(name)
    return Measured.model_validate(found) if found is not None else None
