"""How much memory the loaded runs' weights may take, those on their way included, and who goes first where it is short.

Knows nothing of HTTP or of how a run is loaded. Lives on the event loop, but for `need`, which reads files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from workflow.errors import ModelUnavailable, RequestError
from workflow.runtime import pick_device
from workflow.server.checkpoints import weight_sizes
from workflow.server.lanes import Lane
from workflow.server.settings import ModelsSection
from workflow.training.ds_config import torch_dtype

logger = logging.getLogger("workflow.server")


def serving_place(models: ModelsSection) -> tuple[str, torch.dtype]:
    """The device that runs are served on, and their weights' type there."""
    device = pick_device() if models.device == "auto" else models.device
    return device, torch_dtype(models.precision, device)


class Memory:
    """The budget of `--memory_bytes`, over the lanes of a registry."""

    def __init__(self, models: ModelsSection, lanes: Mapping[str, Lane]) -> None:
        self.budget = models.memory_bytes
        self._models = models
        self._lanes = lanes

    def need(self, path: Path) -> int:
        """Bytes that a checkpoint's weights take once they have the type that they are served in. Raises ModelUnavailable."""
        _, dtype = serving_place(self._models)
        try:
            sizes = weight_sizes(path)
        except (OSError, ValueError, LookupError):
            raise ModelUnavailable("the run is being written; try again in a moment") from None
        return sum(
            size if element_bytes is None else size // element_bytes * dtype.itemsize for size, element_bytes in sizes
        )

    def make_room(self, lane: Lane, need: int) -> None:
        """Evicts idle runs, the one used least recently first, until `need` bytes fit, and notes them as on their way.
        Raises ModelUnavailable."""
        if need > self.budget:
            raise RequestError(
                f"the run {lane.name!r} needs {need:,} bytes, the server has {self.budget:,} (--memory_bytes)",
                param="model",
                code="model_too_large",
            )
        others = sorted((other for other in self._lanes.values() if other is not lane), key=lambda other: other.used_s)
        for other in others:
            if self.taken(but=lane) + need > self.budget and other.idle:
                evict(other)
        if self.taken(but=lane) + need > self.budget:
            raise ModelUnavailable(
                "all loaded runs are in use and memory is full; try again in a moment", retry_after_s=5
            )
        lane.coming_bytes = need

    def taken(self, *, but: Lane | None = None) -> int:
        """Bytes of the weights that are loaded or being loaded. A run's older checkpoint does not stand in the way of
        its newer one."""
        return sum(
            lane.coming_bytes + (lane.live.service.memory_bytes if lane.live is not None else 0)
            for lane in self._lanes.values()
            if lane is not but
        )


def evict(lane: Lane) -> None:
    """Unloads a run."""
    if lane.live is not None:
        logger.info("run %s evicted", lane.name)
        lane.live.retire()
        lane.live = None
