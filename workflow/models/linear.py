"""Matrix products of inference: oneDNN's for fp32 on CPUs, torch's own elsewhere.

Knows nothing of models. torch computes fp32 products by MKL, which on AMD processors uses half of the vector width;
oneDNN, which torch carries for bf16 and for compiled code, is about twice as fast there: for many rows by the width,
for one row because it reads weights that no cache holds at twice the rate. Only for two to four rows, MKL with the
weights as its left side is faster still. oneDNN has no gradient, so training does not come here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _onednn_works() -> bool:
    """Whether this build of torch has the product, and gets one right."""
    x, weight = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    try:
        return bool(torch.equal(_onednn(x, weight), weight.T))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


ONEDNN = _onednn_works()
FEW = 4
LARGE = 1 << 17
"""Elements of a weight that is read from memory; of what a cache holds, the order of a product's sides matters little."""


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [..., in] times the transpose of weight [out, in]; without a gradient where oneDNN does it."""
    if not ONEDNN or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    if 2 <= x.numel() // x.shape[-1] <= FEW and weight.numel() >= LARGE:
        return _few(x, weight)
    return _onednn(x, weight)


def _few(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product for few rows, x [..., in] as columns: of two, or of four, for which MKL's loops are made."""
    rows = x.reshape(-1, x.shape[-1])
    columns = F.pad(rows, (0, 0, 0, 1)) if len(rows) % 2 else rows
    found = (weight @ columns.T).T[: len(rows)].contiguous()
    return found.view(*x.shape[:-1], weight.shape[0])
