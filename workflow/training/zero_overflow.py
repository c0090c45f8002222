"""Makes ZeRO leave out a step, by its own handling of overflows.

ZeRO keeps gradients in partitions, buffers and hooks of its own, and clears them all when it leaves out a step; nothing
else does so. Read in DeepSpeed 0.19.8 (`zero/stage_1_and_2.py` and `zero/stage3.py`, `step`); a test holds it for every
stage, so that another version cannot change it unseen. Knows nothing of why a step is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any


@contextlib.contextmanager
def leaving_out(zero: Any, *, stage: int) -> Iterator[None]:
    """Inside the block a step of this ZeRO optimizer drops the gradients, and changes neither weights nor its own state."""
    if stage == 3:
        replaced: dict[str, Any] = {"_overflow_check_and_loss_scale_update": partial(_overflows, zero)}
    else:
        replaced = {"check_overflow": partial(_overflows, zero), "check_grad_overflow": True}
    before = {name: zero.__dict__[name] for name in replaced if name in zero.__dict__}
    zero.__dict__.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del zero.__dict__[name]
        zero.__dict__.update(before)


def _overflows(zero: Any, **_: Any) -> bool:
    """Stands in for ZeRO's look at its gradients."""
    zero.overflow = True
    return True
