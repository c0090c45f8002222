"""How much memory the loaded runs' weights may take, those on their way included, and who goes first where it is short.

Knows nothing of HTTP or of how a run is loaded. Lives on the event loop, but for `need`, which reads files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
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

    def make_room(self, lane: Lane, need: int, *, unused_s: float = 0.0) -> bool:
        """Notes `need` bytes as on their way, once idle runs are evicted for them: those that are not preloaded first, and
        the one used least recently before others.

        False, and nobody is evicted, where runs in use leave too little; with `unused_s`, neither preloaded runs nor those that
        were used within so many seconds make room. Raises RequestError for a run that is larger than memory.
        """
        if need > self.budget:
            raise RequestError(
                f"the run {lane.name!r} needs {need:,} bytes, the server has {self.budget:,} (--memory_bytes)",
                param="model",
                code="model_too_large",
            )
        idle = [other for other in self._lanes.values() if other is not lane and other.idle]
        if unused_s:
            since = time.monotonic() - unused_s
            idle = [other for other in idle if not self._preloaded(other) and other.used_s < since]
        idle.sort(key=lambda other: (self._preloaded(other), other.used_s))
        missing = self.taken(but=lane) + need - self.budget
        chosen = _enough(idle, missing)
        if chosen is None:
            return False
        for other in chosen:
            evict(other)
        lane.coming_bytes = need
        return True

    def ask_for_room(self, lane: Lane, need: int) -> None:
        """Has runs in use give way, the one that was loaded first before others, each after its turn."""
        others = [other for other in self._lanes.values() if other is not lane and other.live is not None]
        others.sort(key=lambda other: (not other.idle, other.live.loaded_s if other.live is not None else 0.0))
        missing = self.taken(but=lane) + need - self.budget
        until = time.monotonic() - self._models.turn_s
        for other in _enough(others, missing) or others:
            other.giving_way = other.giving_way or (other.live is not None and other.live.loaded_s <= until)

    def nobody_gives_way(self) -> None:
        """Who asked has got room, or asks no more."""
        for lane in self._lanes.values():
            lane.giving_way = False

    def _preloaded(self, lane: Lane) -> bool:
        return lane.name in self._models.preload

    def taken(self, *, but: Lane | None = None) -> int:
        """Bytes of the weights that are loaded or being loaded. A run's older checkpoint does not stand in the way of
        its newer one."""
        return sum(
            lane.coming_bytes + (lane.live.service.memory_bytes if lane.live is not None else 0)
            for lane in self._lanes.values()
            if lane is not but
        )


def _enough(lanes: Sequence[Lane], missing: int) -> list[Lane] | None:
    """The first lanes whose weights make up the missing bytes; None where all together do not."""
    chosen: list[Lane] = []
    for lane in lanes:
        if missing <= 0:
            break
        chosen.append(lane)
        missing -= lane.live.service.memory_bytes if lane.live is not None else 0
    return chosen if missing <= 0 else None


def evict(lane: Lane) -> None:
    """Unloads a run."""
    if lane.live is not None:
        logger.info("run %s evicted", lane.name)
        lane.live.retire()
        lane.live, lane.giving_way = None, False
