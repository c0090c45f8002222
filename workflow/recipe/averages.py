"""Averages of a run's weights around its loop: evaluated beside the model, saved as models of their own, continued.

Knows nothing of how an average is made (`strategies/`), nor of how pieces become whole weights (`training/masters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.report import measured
from workflow.models.save import Weights
from workflow.paths import RunPaths
from workflow.recipe.task import Evaluates, Task
from workflow.strategies.composed import Composed
from workflow.strategies.reinit import Reinit
from workflow.strategies.weight_averaging import WeightAverage
from workflow.training.checkpoint import TrainState
from workflow.training.checkpoint_reader import CheckpointReader
from workflow.training.masters import Masters
from workflow.training.merging import adapters_merged
from workflow.training.saving import MoreState, Saver

MEASURED = "averages"
"""What a run's state calls its averages' newest metrics."""


def restore(strategies: Composed, masters: Masters, checkpoint: Path, *, step: int, is_own: bool = True) -> list[str]:
    """Strategies go on as a checkpoint after `step` updates left them; notes of what that leaves out. Raises CheckpointError.

    `is_own`: whether it is this run's own checkpoint, whose start strategies have prepared.
    """
    reader = CheckpointReader(checkpoint)
    states = reader.strategies()
    for strategy in strategies.strategies:
        if (state := states.get(strategy.name)) is not None:
            pieces = {
                piece.name: masters.part_of(piece.name, reader.strategy_state(strategy.name, piece.name))
                for piece in masters.pieces()
            }
            strategy.load(state, pieces)
    return [
        *(f"{checkpoint.name} holds nothing of {name}" for name in states if name not in _names(strategies)),
        *(
            f"--{strategy.name} begins with update {strategy.next_after(step)}: {checkpoint.name} holds no average"
            for strategy in strategies.strategies
            if isinstance(strategy, WeightAverage) and strategy.name not in states and step >= strategy.first
        ),
        *(
            f"--reinit is not done: it is for models that a new run starts from, not for the checkpoint {checkpoint}"
            for strategy in strategies.strategies
            if isinstance(strategy, Reinit) and not is_own
        ),
    ]


def _names(strategies: Composed) -> set[str]:
    return {strategy.name for strategy in strategies.strategies}


def kept(strategies: Composed, masters: Masters) -> MoreState | None:
    """What `restore` gives back; None for a run without strategies that keep anything."""

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for strategy in strategies.averages():
            for name, piece in strategy.average().items():
                yield f"{strategy.name}/{name}", masters.whole(name, piece)

    numbers = strategies.state()
    return MoreState(tensors(), numbers) if numbers else None


class Averages:
    """The averages of one run, as far as there are any at each call. All calls but `record` are collective."""

    def __init__(self, task: Task[Any], paths: RunPaths, masters: Masters, saver: Saver) -> None:
        self.task = task
        self.paths = paths
        self.masters = masters
        self.saver = saver

    def evaluate(self, evaluator: Evaluates) -> dict[str, Evaluation]:
        """By strategy; what trains is, bit for bit, as before."""
        found = {}
        for strategy in self.task.strategies.averages():
            with (
                self.masters.replaced(strategy.average()),
                adapters_merged(self.masters.backend, self.task.loaded.adapters),
            ):
                found[strategy.name] = evaluator.evaluate()
        return found

    def record(self, state: TrainState, found: dict[str, Evaluation]) -> dict[str, float | None]:
        """Writes predictions, keeps metrics for the report, and gives them by prefixed names; by the first rank."""
        values: dict[str, float | None] = {}
        for name, evaluation in found.items():
            self.task.record(self.paths, state.step, evaluation, of=name)
            record = measured(state.step, evaluation.metrics, evaluation.slices).model_dump(mode="json")
            state.measured.setdefault(MEASURED, {})[name] = record
            values |= {f"{name}_{metric}": of.value for metric, of in evaluation.metrics.items()}
        return values

    def save(self, step: int) -> None:
        """`checkpoint-NAME`, in place of the one before. Raises CheckpointError."""
        for strategy in self.task.strategies.averages():
            name = strategy.name
            self.saver.model(
                self.paths.average(name),
                step=step,
                write_model=partial(self._write_model, step=step, of=name),
                weights=self.masters.weights(strategy.average()),
            )

    def _write_model(self, folder: Path, weights: Weights, *, step: int, of: str) -> None:
        self.task.write_model(folder, weights, step, of=of)

    def never_begun(self, step: int) -> list[str]:
        """Of a run that ended at `step`: why an average is missing."""
        return [
            f"--{strategy.name}: the run ended after update {step}, and the average begins with update {strategy.first}: there is none"
            for strategy in self.task.strategies.strategies
            if isinstance(strategy, WeightAverage) and step < strategy.first
        ]

    def state(self) -> MoreState | None:
        """For a checkpoint."""
        return kept(self.task.strategies, self.masters)
