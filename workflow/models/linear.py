"""Matrix products: oneDNN's for fp32 on CPUs, torch's own elsewhere.

Knows nothing of models. torch computes fp32 products by MKL, which on AMD processors uses half of the vector width;
oneDNN, which torch carries for bf16 and for compiled code, is about twice as fast there: for many rows by the width,
for one row because it reads weights that no cache holds at twice the rate. Only for two to four rows, MKL with the
weights as its left side is faster still. oneDNN has no gradient of its own; `Linear` gives it one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def _onednn_works() -> bool:
    """Whether this build of torch has the product, and gets one right."""
    x, weight = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    bias = torch.tensor([1.0, 2.0, 3.0])
    try:
        return torch.equal(_onednn(x, weight), weight.T) and torch.equal(_onednn(x, weight, bias), weight.T + bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


ONEDNN = _onednn_works()
FEW = 4
LARGE = 1 << 17
"""Elements of a weight that is read from memory; of what a cache holds, the order of a product's sides matters little."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in] times the transpose of weight [out, in], plus bias [out]; without a gradient where oneDNN does it."""
    if not ONEDNN or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    if bias is None and 2 <= x.numel() // x.shape[-1] <= FEW and weight.numel() >= LARGE:
        return _few(x, weight)
    return _onednn(x, weight, bias)


def _few(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product for few rows, x [..., in] as columns: of two, or of four, for which MKL's loops are made."""
    rows = x.reshape(-1, x.shape[-1])
    columns = F.pad(rows, (0, 0, 0, 1)) if len(rows) % 2 else rows
    found = (weight @ columns.T).T[: len(rows)].contiguous()
    return found.view(*x.shape[:-1], weight.shape[0])


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [rows, inner] times b [inner, columns], either of which may be a transposed view; without a gradient."""
    if not ONEDNN or a.dtype != torch.float32 or a.device.type != "cpu":
        return a @ b
    return _onednn(a, b.t())


class Linear(torch.nn.Linear):
    """A linear map whose product, and both products of its gradient, are oneDNN's.

    Made of a module of transformers by its class alone, so parameters, names and hooks stay.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, in] -> [tokens, out]; other shapes, types and devices as torch does them."""
        if not torch.is_grad_enabled() or x.dim() != 2 or x.dtype != torch.float32 or x.device.type != "cpu":
            return linear(x, self.weight, self.bias)
        found: torch.Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_x = product(gradient, weight) if ctx.needs_input_grad[0] else None
        d_weight = product(gradient.t(), x) if ctx.needs_input_grad[1] else None
        d_bias = gradient.sum(dim=0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias


def use_onednn(model: torch.nn.Module) -> None:
    """Lets the plain linear maps of a model be `Linear`, where this build of torch can."""
    if not ONEDNN:
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear
