"""A run's strategies as one: each seam is a fold over them, in the order of the list.

Knows no single strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow.models.layer_stack import Part
from workflow.strategies.base import Group, LogitLoss, Masters, Strategy


@dataclass(frozen=True)
class LossForm:
    """A loss that strategies made: what it is of the logits, and how many passes it takes of each row."""

    loss: LogitLoss
    passes: int


class Composed:
    """The strategies of a run, in order."""

    def __init__(self, strategies: Sequence[Strategy] = ()) -> None:
        self.strategies = tuple(strategies)

    @property
    def by_layer(self) -> bool:
        """Whether any looks at layers."""
        return any(strategy.by_layer for strategy in self.strategies)

    def plan(self, max_steps: int) -> None:
        """Raises ConfigError."""
        for strategy in self.strategies:
            strategy.plan(max_steps)

    def prepare_model(self, model: Any, *, seed: int) -> list[str]:
        """One after the other on the same model; all notes."""
        return [note for strategy in self.strategies for note in strategy.prepare_model(model, seed=seed)]

    def param_groups(self, groups: Sequence[Group], *, lr: float) -> list[Group]:
        """Each takes the groups that the one before it gave."""
        for strategy in self.strategies:
            groups = strategy.param_groups(groups, lr=lr)
        return list(groups)

    def rates(self, multiplier: float, *, step: int, highest: float) -> Callable[[Part | None], float]:
        """What to multiply a group's initial rate by, for each place in the model."""

        def rate(part: Part | None) -> float:
            found = multiplier
            for strategy in self.strategies:
                found = strategy.rate(found, step=step, part=part, highest=highest)
            return found

        return rate

    def loss_form(self, base: LogitLoss, problem: str) -> LossForm | None:
        """Each wraps the loss that the one before it gave; None where none changes it."""
        loss, passes = base, 1
        for strategy in self.strategies:
            wrapped = strategy.loss(loss, problem)
            loss, passes = wrapped or loss, passes * strategy.passes
        return None if loss is base else LossForm(loss, passes)

    def begin(self, masters: Masters) -> None:
        """In order."""
        for strategy in self.strategies:
            strategy.begin(masters)

    def after_step(self, step: int, masters: Masters) -> None:
        """In order: what puts weights right comes before what averages them."""
        for strategy in self.strategies:
            strategy.after_step(step, masters)

    def figures(self, masters: Masters) -> dict[str, float]:
        """Collective."""
        return {name: value for strategy in self.strategies for name, value in strategy.figures(masters).items()}

    def averages(self) -> list[Strategy]:
        """Those that have an average now."""
        return [strategy for strategy in self.strategies if strategy.average()]

    def about_average(self, name: str, step: int) -> str:
        """What an average is, for people."""
        return next(strategy.about(step) for strategy in self.strategies if strategy.name == name)

    def state(self) -> dict[str, Mapping[str, int]]:
        """By name of strategy."""
        return {strategy.name: state for strategy in self.strategies if (state := strategy.state())}
