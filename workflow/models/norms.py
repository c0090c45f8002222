"""T5's layer norm in torch's fused kernel on GPUs; elsewhere as transformers computes it.

Knows nothing of models. transformers spends six passes over the residual stream on each norm, and as many backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5LayerNorm

NORMS = (T5LayerNorm, MT5LayerNorm, UMT5LayerNorm)
"""The same code thrice."""


class FusedNorm(T5LayerNorm):  # type: ignore[misc]
    """Made of a module of transformers by its class alone, so its weight, name and hooks stay."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, d_model] in fp32 -> the weight's type; rounded once at the end, where transformers rounds twice."""
        if x.device.type != "cuda":
            return super().forward(x)  # type: ignore[no-any-return]
        return fused_norm(x, self.weight, self.variance_epsilon)


def fused_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root-mean-square norm (Zhang and Sennrich, https://arxiv.org/abs/1910.07467) in fp32 -> the weight's type."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), epsilon).to(weight.dtype)


def use_fused_norms(model: torch.nn.Module) -> None:
    """Lets the T5 norms of a model be `FusedNorm`."""
    for module in model.modules():
        if type(module) in NORMS:
            module.__class__ = FusedNorm
