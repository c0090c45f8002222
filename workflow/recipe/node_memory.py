"""How much memory a machine needs for a run, for those who ask a scheduler for it. Nothing is loaded.

Knows nothing of schedulers.
"""

from __future__ import annotations

import math

from workflow.models.model_shape import num_parameters
from workflow.paths import find_mount
from workflow.recipe.plan_inputs import Settings, find_model
from workflow.training.ds_config import pick_precision, plan_backend
from workflow.training.model_states import OFFLOADS, STAGES, Zero, host_bytes, model_states

ROOM = 1.25
"""Files in memory-backed folders, the tokens of the data, and what was not counted."""


def node_memory_gb(settings: Settings, *, nodes: int, gpus: int) -> int:
    """GB of each of the nodes. Raises ModelError where the model is neither here nor of a published shape."""
    numbers = num_parameters(find_model(settings, find_mount(settings.run.mount)).shape)
    ranks = max(1, gpus)
    precision = pick_precision(settings.model.precision, "cuda" if gpus else "cpu")
    zero = _zero(settings, precision, nodes * ranks)
    states = model_states(numbers, zero, precision=precision, world_size=nodes * ranks)
    return math.ceil(ROOM * host_bytes(numbers, states, ranks_here=ranks) / 1e9)


def _zero(settings: Settings, precision: str, world_size: int) -> Zero:
    """What --deepspeed names. Of the stages that wait in no machine's memory, which `auto` picks among, any will do."""
    name = settings.training.deepspeed
    known = {zero.name: zero for zero in (*STAGES, *OFFLOADS)}
    if name == "auto" or name in known:
        return known.get(name, STAGES[-1])
    planned = plan_backend(
        deepspeed=name,
        precision=precision,
        optimizer=settings.optim.optimizer,
        world_size=world_size,
        max_grad_norm=settings.optim.max_grad_norm,
        micro_batch_size=1,
    )
    return Zero.of(name, planned.config)
