"""Numbers of a run that follow from its settings: steps, warmup, learning-rate multipliers.

Pure functions; knows nothing of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """When a run ends, evaluates and saves, in updates."""

    max_steps: int
    eval_steps: int
    save_steps: int
    warmup_steps: int
    notes: tuple[str, ...] = ()


def plan_steps(
    *,
    max_steps: int,
    num_epochs: float,
    eval_steps: int | None,
    save_steps: int | None,
    warmup_steps: int,
    warmup_ratio: float | None,
) -> Steps:
    """Fills in what was not given: evaluation and saving once an epoch (max_steps / num_epochs); a sane warmup."""
    every = eval_steps or max(1, math.ceil(max_steps / max(1.0, num_epochs)))
    warmup, notes = warmup_steps, []
    if warmup_ratio is not None:
        warmup = round(warmup_ratio * max_steps)
    elif warmup_steps > max_steps / 2:
        warmup = max_steps // 10
        notes.append(f"warmup cut from {warmup_steps} to {warmup} steps, a tenth of this run of {max_steps}")
    return Steps(max_steps, every, save_steps or every, warmup, tuple(notes))


def lr_multiplier(step: int, *, kind: str, warmup_steps: int, max_steps: int) -> float:
    """The share of each group's own `initial_lr` at update `step` (1-based): linear warmup, then `kind`."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps - 1) / max(1, max_steps - warmup_steps)
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    assert kind == "constant", kind
    return 1.0


def range_test_rate(step: int, *, low: float, high: float, steps: int) -> float:
    """The learning rate at update `step` (1-based) of a range test: from `low` to `high` by equal factors."""
    return low * math.exp(math.log(high / low) * (step - 1) / max(1, steps - 1))


def happens(step: int, every: int, last: int) -> bool:
    """Whether something done `every` so many steps, and after the last one, is due after `step`."""
    return step % every == 0 or step == last
