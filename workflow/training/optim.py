"""Optimizers and their parameter groups; every parameter stands in exactly one group.

Knows nothing of DeepSpeed or steps; a schedule multiplies each group's own `initial_lr`.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import itemgetter
from typing import Any

import torch


def parameter_groups(model: Any, *, lr: float, weight_decay: float, head: Collection[str] = ()) -> list[dict[str, Any]]:
    """Groups with weight decay and without (layer norms, relative-position biases), of the head and of the rest.

    `head` names the output head's parameters; their groups have `is_head` set.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "layer_norm" in name or "relative_attention_bias" in name
            groups.setdefault((plain or weight_decay == 0, name in head), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else weight_decay,
            "lr": lr,
            "initial_lr": lr,
            "is_head": is_head,
        }
        for (plain, is_head), parameters in sorted(groups.items(), key=itemgetter(0))
    ]


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's fused AdamW, or Adafactor with external learning rate (Shazeer and Stern 2018, without its own schedule)."""
    if name == "adafactor":
        from transformers.optimization import Adafactor

        adafactor: torch.optim.Optimizer = Adafactor(
            groups, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return adafactor
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_lr(optimizer: Any, multiplier: float, *, head_only: bool = False) -> float:
    """Sets each group's rate to its share of `initial_lr` (0 for all but the head if `head_only`); returns the highest.

    With a rate of 0 Adam's moments are warm, and its step count right, when the rest begins to learn.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier * (not head_only or group["is_head"])
    return float(max(group["lr"] for group in optimizer.param_groups))
