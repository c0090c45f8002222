"""Attention of a group of sequences by torch's own fused kernels.

Knows nothing of how sequences were grouped. Of torch's kernels on GPUs, only the memory-efficient one takes a mask with
a gradient and drops weights out; where it does not take the operands, torch falls back to explicit products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ALIGNMENT = 8
"""Elements that every stride of a mask but the last must be a multiple of; torch would copy it in every call otherwise."""


def aligned(mask: torch.Tensor) -> torch.Tensor:
    """The same mask [..., keys] in memory that the fused kernel reads as it is."""
    keys = mask.shape[-1]
    return F.pad(mask, (0, -keys % ALIGNMENT))[..., :keys]


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, dropout: float
) -> torch.Tensor:
    """[rows, heads, queries or keys, width] -> [rows, heads, queries, width]; `mask`, in q's type, is added to scores.

    The mask may stand for several rows, heads or queries at once: it is expanded, not copied.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=1.0)
