"""Gradient checkpointing of a forward of our own, switched on as transformers switches its own on.

Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def checkpointed(layer: Any, run: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Runs what stands for a layer's forward, to be run again in the backward pass where transformers was asked for that."""
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        found: torch.Tensor = layer._gradient_checkpointing_func(run, *arguments)
        return found
    return run(*arguments)
