"""Three learning rates for the lower, middle and upper third of each stack's layers, and one for the head.

A coarser layer-wise decay (x1 / x1.75 / x3.5, head x3.6). Knows nothing of schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workflow.config.strategy_settings import GroupedLayerwiseLrd as Settings
from workflow.models.layer_stack import Part
from workflow.strategies.base import Group, Strategy


class GroupedLayerwiseLrd(Strategy):
    """base_lr x a factor: of the layer's third, of the head; embeddings learn as the lowest third, final norms as the upper."""

    name = "grouped_layerwise_lrd"
    by_layer = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def param_groups(self, groups: Sequence[Group], *, lr: float) -> list[Group]:
        """Sets every group's rate by its part."""
        base = self.settings.base_lr or lr
        return [replace(group, initial_lr=base * self._factor(group.part)) for group in groups]

    def _factor(self, part: Part | None) -> float:
        assert part is not None, "the groups were not made by layer"
        low, _, high = factors = self.settings.factors
        if part.kind == "layer":
            return factors[3 * part.layer // part.layers]
        return {"embeddings": low, "final": high}.get(part.kind, self.settings.head)
