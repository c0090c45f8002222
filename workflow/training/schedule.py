"""Numbers of a run that follow from its settings: steps, warmup, learning-rate multipliers.

Pure functions; knows nothing of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CYCLE_WARMUP = 0.3
"""The share of a one-cycle run in which the rate rises, where nothing is said of warmup."""
CYCLE_START, CYCLE_END = 1 / 25, 1 / 250_000


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
    """The share of each group's own `initial_lr` at update `step` (1-based): linear warmup, then `kind`.

    Linear and cosine (Loshchilov and Hutter 2017, without restarts) fall to 0, `inverse_sqrt` as in Vaswani et al. 2017, from the
    warmup's end on. `one_cycle` (Smith 2018, with Adam's moments left alone) begins at a 25th and ends at a 250,000th, on a cosine.
    """
    if step <= warmup_steps:
        share = step / warmup_steps
        return CYCLE_START + (1.0 - CYCLE_START) * share if kind == "one_cycle" else share
    if kind == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / step)
    progress = (step - warmup_steps - 1) / max(1, max_steps - warmup_steps)
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if kind == "one_cycle":
        return CYCLE_END + (1.0 - CYCLE_END) * 0.5 * (1.0 + math.cos(math.pi * progress))
    assert kind == "constant", kind
    return 1.0


def range_test_rate(step: int, *, low: float, high: float, steps: int) -> float:
    """The learning rate at update `step` (1-based) of a range test: from `low` to `high` by equal factors."""
    return low * math.exp(math.log(high / low) * (step - 1) / max(1, steps - 1))


def happens(step: int, every: int, last: int) -> bool:
    """Whether something done `every` so many steps, and after the last one, is due after `step`."""
    return step % every == 0 or step == last
