"""Layer-wise learning-rate decay: each layer learns slower than the one above it, by a constant factor.

Howard and Ruder 2018 (discriminative fine-tuning), in the form of Zhang et al. 2021. Knows nothing of schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workflow.config.strategy_settings import LayerwiseLrd as Settings
from workflow.models.layer_stack import Part
from workflow.strategies.base import Group, Strategy

HEAD = 3.6 / 3.5
"""The head's rate over the top layer's, where it is not set."""


class LayerwiseLrd(Strategy):
    """top_lr x decay^(layers above); embeddings below the deepest stack's last layer; head and pooler at head_lr."""

    name = "layerwise_lrd"
    by_layer = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def param_groups(self, groups: Sequence[Group], *, lr: float) -> list[Group]:
        """Sets every group's rate by its part."""
        return [replace(group, initial_lr=self._rate(group.part, lr)) for group in groups]

    def _rate(self, part: Part | None, lr: float) -> float:
        assert part is not None, "the groups were not made by layer"
        top = self.settings.top_lr or lr
        if part.kind in ("head", "pooler"):
            return self.settings.head_lr or top * HEAD
        return float(top * self.settings.decay**part.depth)
