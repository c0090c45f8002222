"""How many tokens one forward and backward pass has room for, found by trying before the first step.

Knows nothing of settings or files. Memory grows by about the same for every token, so two trials on the longest row
(the worst there is: attention takes most there) tell the rest. Trials leave zeros for gradients, so training after
them is what it would have been.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from workflow.data.division import MicroBatchLimits
from workflow.training.backend import Backend
from workflow.training.memory_plan import STEP, USABLE
from workflow.training.objectives import Objective

SMALL_TRIAL = 2048
"""Tokens of the second trial, or twice the longest row."""


class Meter(Protocol):
    """Measures memory in bytes."""

    def peak(self, run: Callable[[], None]) -> int:
        """The most that was held while `run` ran."""

    def room(self) -> int:
        """The most that may be held."""


class CudaMeter:
    """A GPU's memory, less `reserved` bytes for what the first step will add."""

    def __init__(self, device: torch.device, reserved: int) -> None:
        self.device, self.reserved = device, reserved

    def peak(self, run: Callable[[], None]) -> int:
        """Of what torch allocated."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def room(self) -> int:
        """What is allocated and what is free, but for the reserve."""
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return torch.cuda.memory_allocated(self.device) + free - self.reserved


def find_tokens(backend: Backend, objective: Objective, meter: Meter, limits: MicroBatchLimits) -> int:
    """The tokens a micro-batch may compute; the least of all ranks, the same on all (a collective call).

    At least the longest row's, which has to fit in any case. Raises torch.OutOfMemoryError where it does not.
    """
    sources, targets = objective.source_lengths, objective.target_lengths
    longest = int(np.argmax(sources.astype(np.int64) + targets))
    one = limits.computed([int(sources[longest])], [int(targets[longest])])
    copies = max(2, -(-SMALL_TRIAL // one))
    if limits.rows is not None:
        copies = max(2, min(copies, limits.rows))

    def trial(count: int) -> int:
        def run() -> None:
            loss = objective.loss_sum(backend.wrapped, [longest] * count)
            backend.backward(loss * 0.0, is_last=False)

        return meter.peak(run)

    trial(1)  # makes what later passes share: gradients, workspaces, compiled kernels
    single, several = trial(1), trial(copies)
    a_token = max(1.0, (several - single) / (one * (copies - 1)))
    fixed = single - a_token * one
    tokens = torch.tensor((meter.room() * USABLE - fixed) / a_token, dtype=torch.float64)
    tokens = tokens.to(backend.device)
    dist.all_reduce(tokens, op=dist.ReduceOp.MIN)
    return max(one, int(tokens) // STEP * STEP)
