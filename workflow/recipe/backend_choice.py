"""Which DeepSpeed configuration a run gets: as asked, else on GPUs by the estimate of what fits, and why.

Knows nothing of how bytes are estimated. Every rank decides alike: from the model, the data and the smallest GPU's memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from workflow.errors import ModelError
from workflow.models.model_shape import ModelShape, shape_of
from workflow.models.quantised import quantised_maps
from workflow.recipe.task import Task
from workflow.runtime import on_first
from workflow.training.ds_config import BackendPlan, pick_precision, plan_backend
from workflow.training.memory_plan import Job, auto_stage
from workflow.training.objectives import Objective
from workflow.training.zero_start import check_values


def planned_backend(task: Task[Any], *, deepspeed: str | None = None) -> BackendPlan:
    """By the settings, with another `deepspeed` in the place of theirs if given; a collective call. Raises ConfigError."""
    training, place = task.settings.training, task.place
    plan = plan_backend(
        deepspeed=deepspeed or training.deepspeed,
        precision=pick_precision(task.settings.model.precision, place.device),
        optimizer=task.settings.optim.optimizer,
        world_size=place.ranks.world_size,
        max_grad_norm=task.settings.optim.max_grad_norm,
        micro_batch_size=training.micro_batch_size or -(-training.train_batch_size // place.ranks.world_size),
        lora_base=task.settings.trained.lora_base,
    )
    on_first(lambda: check_values(plan), place.ranks)
    return plan


def fitted_backend(task: Task[Any], plan: BackendPlan, objective: Objective) -> BackendPlan:
    """The plan with the stage that fits the GPUs, where that is left to us; a collective call on GPUs."""
    if task.settings.training.deepspeed != "auto" or task.device.type != "cuda":
        return plan
    memory = torch.tensor(torch.cuda.get_device_properties(task.device).total_memory, device=task.device)
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    return choose_backend(task, plan, objective, memory=int(memory))


def choose_backend(task: Task[Any], plan: BackendPlan, objective: Objective, *, memory: int) -> BackendPlan:
    """The same on GPUs of `memory` bytes. A model whose size cannot be estimated keeps the plan."""
    model = task.settings.model
    try:
        shape = _shape(task)
    except ModelError:
        return replace(plan, why="this model's memory is not estimated")
    sources, targets = objective.source_lengths, objective.target_lengths
    longest = int(np.argmax(sources.astype(np.int64) + targets))
    job = Job(
        shape,
        (int(sources[longest]), int(targets[longest])),
        plan.precision,
        "cuda",
        shape.dropout,
        task.settings.optim.optimizer,
        scores_only=task.name == "clf",
        num_adapters=_num_adapters(task),
        num_quantised=sum(module.numel for _, module in quantised_maps(task.loaded.model)),
        passes=objective.passes,
        num_averages=len(task.settings.strategies.averages),
    )
    zero, why = auto_stage(
        job, world_size=task.place.ranks.world_size, memory=memory, checkpointing=model.gradient_checkpointing
    )
    return replace(planned_backend(task, deepspeed=zero.name), why=why)


def _num_adapters(task: Task[Any]) -> int:
    if task.loaded.adapters is None:
        return 0
    return sum(weight.numel() for weight in task.loaded.model.parameters() if weight.requires_grad)


def _shape(task: Task[Any]) -> ModelShape:
    config = task.loaded.model.config
    return shape_of(config.to_dict(), name=task.model_label, num_labels=config.num_labels)
