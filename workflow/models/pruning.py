"""Magnitude pruning of a model's linear maps (Han et al. 2015), and how sparse a model is.

Knows nothing of training: what keeps zeros zero there is `strategies/static_sparsity`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from workflow.models.adapters import LINEAR
from workflow.models.load import head_names


def linear_weights(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The weights of linear maps by name, heads apart."""
    is_bare = model.base_model is model and not hasattr(model, "lm_head")
    heads = set() if is_bare else {*head_names(model)}
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if any(kind.__name__ in LINEAR for kind in type(module).__mro__) and name not in heads:
            yield name, module.weight


def share_of_zeros(model: Any) -> float:
    """Exact zeros among the weights of linear maps."""
    weights = [weight for _, weight in linear_weights(model)]
    size = sum(weight.numel() for weight in weights)
    return 1.0 - sum(int(weight.count_nonzero()) for weight in weights) / size if size else 0.0


@torch.no_grad()
def prune(model: Any, sparsity: float) -> None:
    """Sets that share of each linear map's weights to zero, those nearest to it first."""
    for _, weight in linear_weights(model):
        count = round(sparsity * weight.numel())
        flat = weight.data.flatten()
        flat[flat.abs().float().argsort(stable=True)[:count]] = 0.0
        weight.data = flat.view_as(weight)
