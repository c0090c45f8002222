"""What benchmarks of training on CPUs share: our loop as a contender, turns, and how far gradients are apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from workflow.data.division import MicroBatchLimits
from workflow.data.plan import DataPlan
from workflow.models.load import head_names
from workflow.runtime import Ranks
from workflow.training.backend import Backend
from workflow.training.ds_config import plan_backend
from workflow.training.objectives import Objective
from workflow.training.optim import make_optimizer, parameter_groups
from workflow.training.trainer import LoopSettings, Trainer

CPU = torch.device("cpu")


class Contender(Protocol):
    """Who is measured."""

    def turn(self, steps: list[int]) -> float:
        """CPU seconds of all steps but the first."""


class Ours:
    """Our loop and backend, on one rank."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        form: Any,
        *,
        num_rows: int,
        batch: int,
        lr: float,
        limits: MicroBatchLimits,
        precision: str = "fp32",
    ) -> None:
        plan = plan_backend(
            deepspeed="auto",
            precision=precision,
            optimizer="adamw",
            world_size=1,
            max_grad_norm=1.0,
            micro_batch_size=batch,
        )
        groups = parameter_groups(model, lr=lr, weight_decay=0.0, head=head_names(model))
        backend = Backend(model, make_optimizer("adamw", groups), plan, max_grad_norm=1.0, device=CPU, form=form)
        loop = LoopSettings(10**9, 1, "constant", limits, seed=0)
        self.trainer = Trainer(backend, objective, DataPlan(num_rows, batch, 0), loop, ranks=Ranks(0, 1, 0))

    def turn(self, steps: list[int]) -> float:
        """CPU seconds of all steps but the first."""
        self.trainer.update(steps[0])
        started = time.process_time()
        for step in steps[1:]:
            self.trainer.update(step)
        return time.process_time() - started


def steps_of(rounds: int, updates: int) -> list[list[int]]:
    """Of each round: one step of warming up, the last of the round before, and those that are timed."""
    return [list(range(1 + number * updates, 2 + (number + 1) * updates)) for number in range(rounds)]


def in_turns(contenders: Mapping[str, Contender], rounds: Sequence[list[int]]) -> dict[str, list[float]]:
    """Seconds an update of each contender, a figure a round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for steps in rounds:
        for name, contender in contenders.items():
            seconds[name].append(contender.turn(steps) / (len(steps) - 1))
    return seconds


def least_and_median(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """For the report."""
    return {name: {"min": min(found), "median": statistics.median(found)} for name, found in seconds.items()}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """In fp32, by name."""
    loss.backward()
    return {name: one.grad.float() for name, one in model.named_parameters() if one.grad is not None}


def worst_difference(mine: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Of any gradient's element, as a share of the largest there is."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((mine[name] - expected[name]).abs().max()) for name in expected) / largest
