"""Freezing schedules: the head learns first, then all at once, or layer after layer from the top (Howard and Ruder 2018).

Frozen means a learning rate of 0, which is no weight decay either; gradients and Adam's moments go on, so that these
are warm when a layer begins to learn, and no group ever changes. Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.config.strategy_settings import Freeze as Settings
from workflow.config.strategy_settings import steps_of
from workflow.errors import ConfigError
from workflow.models.layer_stack import Part
from workflow.strategies.base import Group, Strategy


class Freeze(Strategy):
    """Head and pooler from the start; the layer at depth d (0: the top) after head + d x every updates, embeddings last."""

    name = "freeze"
    by_layer = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.head = self.every = self.max_steps = 0

    def plan(self, max_steps: int) -> None:
        """Numbers of updates."""
        self.max_steps = max_steps
        self.head = steps_of(self.settings.head, max_steps)
        self.every = max(1, steps_of(self.settings.every, max_steps)) if self.settings.every is not None else 0

    def param_groups(self, groups: Sequence[Group], *, lr: float) -> list[Group]:  # noqa: ARG002
        """Looks whether all of it can happen."""
        parts = [group.part for group in groups if group.part is not None]
        if self.head and not any(part.kind in ("head", "pooler") for part in parts):
            raise ConfigError(
                "--freeze.head: this model has no head that trains by itself (a tied one is the embeddings); "
                "pass --freeze.head 0 with --freeze.every N to unfreeze its layers one by one"
            )
        last = max((self.begins(part) for part in parts), default=0)
        if last >= self.max_steps:
            raise ConfigError(
                f"--freeze: the lowest part would begin to learn after {last} updates, and this run has {self.max_steps}; "
                "lower --freeze.head or --freeze.every"
            )
        return list(groups)

    def begins(self, part: Part) -> int:
        """Updates before this part learns."""
        return 0 if part.kind in ("head", "pooler") else self.head + part.depth * self.every

    def rate(self, multiplier: float, *, step: int, part: Part | None, highest: float) -> float:  # noqa: ARG002
        """0 for what does not learn yet."""
        assert part is not None, "the groups were not made by layer"
        return multiplier if step > self.begins(part) else 0.0
