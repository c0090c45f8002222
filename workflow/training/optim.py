"""Optimizers and their parameter groups; every parameter stands in exactly one group.

Knows nothing of DeepSpeed or steps; a schedule multiplies each group's own `initial_lr`.
"""

from __future__ import annotations

from typing import Any

import torch


def parameter_groups(model: Any, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without (layer norms, relative-position biases)."""
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "layer_norm" in name or "relative_attention_bias" in name
            (kept if plain or weight_decay == 0 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group | {"lr": lr, "initial_lr": lr} for group in groups if group["params"]]


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's fused AdamW, or Adafactor with external learning rate (Shazeer and Stern 2018, without its own schedule)."""
    if name == "adafactor":
        from transformers.optimization import Adafactor

        adafactor: torch.optim.Optimizer = Adafactor(
            groups, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return adafactor
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_lr(optimizer: Any, multiplier: float) -> float:
    """Sets each group's rate to its share of `initial_lr`; returns the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
    return float(max(group["lr"] for group in optimizer.param_groups))
