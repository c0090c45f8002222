"""The training loop: rows of an update -> micro-batches -> backward -> step -> hooks.

Knows nothing of evaluation or files. An update's loss and gradient are sums over its rows divided by a
number (of label tokens, of examples) that the rows tell without asking the other ranks; so neither the number of ranks nor the micro-batch
size nor the ZeRO stage changes the numbers. Hooks look; they do not change anything that the next step depends on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from workflow.data.division import MicroBatchLimits, divide
from workflow.data.plan import DataPlan
from workflow.errors import BackendError
from workflow.runtime import Ranks, derived_seed
from workflow.strategies.composed import Composed
from workflow.training.backend import Backend
from workflow.training.checkpoint import TrainState
from workflow.training.masters import Masters
from workflow.training.objectives import Objective
from workflow.training.optim import Multiplier, uneven_rates
from workflow.training.schedule import lr_multiplier
from workflow.watch.heartbeat import reached
from workflow.watch.signals import STOPPING, asked

NUM_ROWS_SHOWN = 32


@dataclass(frozen=True)
class Fault:
    """What of an update is not finite (`what`), and training rows that may be why."""

    what: str
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.rows)}"


@dataclass(frozen=True)
class Update:
    """What one update did. `loss` is the objective's mean over the update; tokens are real tokens, over all ranks."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    examples: int
    source_tokens: int
    target_tokens: int
    flops: float
    seconds: float
    skipped: Fault | None = None
    """Why the weights were left as they were, where they were."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Of the parameter groups by name, where they are not all one share of their initial ones."""
    stop: int = 0
    """The signal by which some rank was asked to stop before this update's loss was summed; the same on all ranks."""

    @property
    def tokens_per_s(self) -> float:
        """Real tokens of prompts and completions a second."""
        return (self.source_tokens + self.target_tokens) / self.seconds


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of the settings."""

    max_steps: int
    warmup_steps: int
    lr_scheduler: str
    micro_batches: MicroBatchLimits
    seed: int
    head_steps: int = 0
    """Updates in which the output head alone learns."""
    skip_nonfinite: int = 0
    """Updates in a run that may be left out because their loss or gradient is not finite."""


Hook = Callable[[TrainState, Update], None]


class MicroBatchMemoryError(BackendError):
    """Memory ran out in a micro-batch of `rows` examples, whose forward pass computes `tokens` tokens."""

    def __init__(self, step: int, *, rows: int, tokens: int) -> None:
        super().__init__(f"step {step}: out of memory in a micro-batch of {rows} example(s), {tokens} tokens")
        self.step, self.rows, self.tokens = step, rows, tokens


class Trainer:
    """Runs updates on the rows that the data plan names."""

    def __init__(
        self,
        backend: Backend,
        objective: Objective,
        plan: DataPlan,
        settings: LoopSettings,
        *,
        ranks: Ranks,
        strategies: Composed | None = None,
    ) -> None:
        self.strategies = strategies or Composed()
        self.masters = Masters(backend)
        self.strategies.begin(self.masters)
        self.highest = max(group["initial_lr"] for group in backend.optimizer.param_groups)
        self.backend = backend
        self.objective = objective
        self.plan = plan
        self.settings = settings
        self.ranks = ranks

    def run(self, state: TrainState, hooks: Sequence[Hook]) -> TrainState:
        """Updates from where `state` stands to its end or the last step, calling every hook after each."""
        while state.step < self.settings.max_steps and not state.ended:
            update = self.update(state.step + 1)
            if update.skipped is not None:
                self._refuse_too_many(state, update.step, update.skipped)
            _count(state, update)
            for hook in hooks:
                hook(state, update)
        return state

    def _refuse_too_many(self, state: TrainState, step: int, fault: Fault) -> None:
        """Raises BackendError unless one more update may be left out; never the first: a checkpoint needs one that was made."""
        allowed = self.settings.skip_nonfinite
        if state.skipped >= allowed or state.skipped == state.step:
            told = f"; {state.skipped} of --skip_nonfinite {allowed} updates were left out before" if allowed else ""
            raise BackendError(f"step {step}: {fault}{told}{ADVICE}")

    def update(self, step: int) -> Update:
        """One update of the weights, the same on every number of ranks, up to rounding; left out where it is not finite."""
        reached(2 * step)
        started = time.perf_counter()
        rows = self.plan.rows(step)
        sources, targets = self.objective.source_lengths[rows], self.objective.target_lengths[rows]
        divisor = self.objective.divisor(rows)
        flops = self._flops(sources, targets)
        micro_batches = divide(
            rows,
            sources,
            targets,
            world_size=self.ranks.world_size,
            limits=self.settings.micro_batches,
            costs=flops,
        )[self.ranks.rank]
        # Ragged batches drop out by row; the forwards of transformers draw from the generator, other masks on each rank.
        seed = derived_seed(self.settings.seed, "dropout", step)
        torch.manual_seed(derived_seed(seed, self.ranks.rank))
        losses = []
        for number, micro_rows in enumerate(micro_batches, start=1):
            try:
                loss = self.objective.loss_sum(self.backend.wrapped, micro_rows, seed=seed)
                self.backend.backward(loss / divisor, is_last=number == len(micro_batches))
            except torch.OutOfMemoryError as error:
                raise self._too_large(step, micro_rows) from error
            losses.append(loss.detach())
        reached(2 * step + 1)
        total, stop = self._over_ranks(torch.stack(losses).double())
        fault, grad_norm, lr = None, math.nan, 0.0
        if not math.isfinite(total):
            fault = Fault(NONFINITE_LOSS, self._rows_at_fault(micro_batches, losses))
            self.backend.discard()
        else:
            grad_norm, lr = self.backend.step(self._multiplier(step))
            if math.isfinite(grad_norm):
                self.strategies.after_step(step, self.masters)
            else:
                fault = Fault(
                    f"the gradient is not finite (norm {grad_norm}); rows of this update", tuple(rows.tolist())
                )
        return Update(
            step=step,
            loss=total / divisor,
            grad_norm=grad_norm,
            lr=lr,
            examples=len(rows),
            source_tokens=int(sources.sum()),
            target_tokens=int(targets.sum()),
            flops=0.0 if flops is None else float(flops.sum()),
            seconds=time.perf_counter() - started,
            skipped=fault,
            rates=uneven_rates(self.backend.optimizer),
            stop=stop,
        )

    def scheduled(self, step: int) -> float:
        """The share of the highest initial rate at `step`."""
        settings = self.settings
        return lr_multiplier(
            step, kind=settings.lr_scheduler, warmup_steps=settings.warmup_steps, max_steps=settings.max_steps
        )

    def _multiplier(self, step: int) -> Multiplier:
        rate = self.strategies.rates(self.scheduled(step), step=step, highest=self.highest)
        head_only = step <= self.settings.head_steps
        return lambda group: 0.0 if head_only and not group["is_head"] else rate(group["part"])

    @staticmethod
    def _over_ranks(losses: torch.Tensor) -> tuple[float, int]:
        """(the losses' sum over all ranks, the signal that any rank was asked to stop by or 0), in one collective call."""
        signal = asked()
        sums = torch.stack([losses.sum(), *(losses.new_tensor(float(signal == kind)) for kind in STOPPING)])
        dist.all_reduce(sums)
        total, *counts = sums.tolist()
        return total, next((int(kind) for kind, count in zip(STOPPING, counts, strict=True) if count), 0)

    def _rows_at_fault(self, micro_batches: Sequence[Sequence[int]], losses: Sequence[torch.Tensor]) -> tuple[int, ...]:
        """The rows of every rank's micro-batches whose loss is not finite; a collective call."""
        bad = [
            row
            for rows, loss in zip(micro_batches, losses, strict=True)
            if not math.isfinite(float(loss))
            for row in rows
        ]
        everyone: list[list[int]] = [[] for _ in range(self.ranks.world_size)]
        dist.all_gather_object(everyone, bad)
        return tuple(sorted(row for part in everyone for row in part))

    def _flops(self, sources: np.ndarray, targets: np.ndarray) -> npt.NDArray[np.float64] | None:
        """Of each example; None where the model's dimensions are not known."""
        dimensions = self.objective.dimensions
        if dimensions is None:
            return None
        once = dimensions.training_flops(sources.astype(np.float64), targets.astype(np.float64))
        return once * self.objective.passes

    def _too_large(self, step: int, rows: Sequence[int]) -> MicroBatchMemoryError:
        lengths = [of[list(rows)].tolist() for of in (self.objective.source_lengths, self.objective.target_lengths)]
        return MicroBatchMemoryError(step, rows=len(rows), tokens=self.settings.micro_batches.computed(*lengths))


NONFINITE_LOSS = "the loss is not finite; training rows of the micro-batches at fault"
ADVICE = "; the weights of the last checkpoint are good; look at these rows, or lower --lr"


def _shown(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:NUM_ROWS_SHOWN])) + (", ..." if len(rows) > NUM_ROWS_SHOWN else "")


def _count(state: TrainState, update: Update) -> None:
    state.step = update.step
    if update.skipped is None:
        state.loss = update.loss
    else:
        state.skipped += 1
    state.examples += update.examples
    state.source_tokens += update.source_tokens
    state.target_tokens += update.target_tokens
    state.seconds += update.seconds
    state.flops += update.flops
