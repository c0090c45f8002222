"""Cross-entropy of an output head, a part of the labels at a time, so that the logits of all never stand in memory.

Knows nothing of what comes before the head. Gradients are made while a part's logits are at hand: nothing is
computed twice, and the weight is read only while the module runs, when ZeRO-3 has gathered it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workflow.models.linear import product

LogitLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(fp32 logits [passes, n, vocabulary], labels [n]) -> the loss of each label, fp32 [n]."""
LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}
"""By kind of device: as many as caches and the allocator like, and as few as keep a GPU's products large."""


class HeadLoss(torch.nn.Module):
    """Shares the weight [vocabulary, d_model] of an output head."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.loss: LogitLoss | None = None
        self.passes = 1

    def train_by(self, loss: LogitLoss, *, passes: int) -> None:
        """Takes another loss than cross-entropy for training, of `passes` copies of the labels one after the other."""
        self.loss, self.passes = loss, passes

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """hidden [labels, d_model] -> the summed loss; without gradients, the cross-entropy of each label. fp32."""
        if torch.is_grad_enabled() and self.loss is not None:
            other: torch.Tensor = _OtherLoss.apply(hidden, self.weight, labels, self.loss, self.passes)  # type: ignore[no-untyped-call]
            return other
        if torch.is_grad_enabled():
            found: torch.Tensor = _SummedLoss.apply(hidden, self.weight, labels)  # type: ignore[no-untyped-call]
            return found
        size = _labels_at_once(self.weight)
        parts = zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
        return torch.cat([_losses(part, self.weight, numbers)[0] for part, numbers in parts])


COPIES_OF_LOGITS = 4
"""As many parts of their size a loss by autograd may hold at a time."""


def _labels_at_once(weight: torch.Tensor) -> int:
    logits = LOGITS_AT_ONCE.get(weight.device.type, LOGITS_AT_ONCE["cpu"])
    return max(1, logits // weight.shape[0])


def _losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(loss of each label, log-probabilities [labels, vocabulary]), both fp32."""
    logits = product(hidden, weight.t()).log_softmax(dim=1, dtype=torch.float32)
    return -logits.gather(1, labels[:, None])[:, 0], logits


class _SummedLoss(torch.autograd.Function):
    """The gradients wait for their factor, which is all that backward adds."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), None
        size = _labels_at_once(weight)
        for start in range(0, len(labels), size):
            part, numbers = hidden[start : start + size], labels[start : start + size]
            losses, logits = _losses(part, weight, numbers)
            total += losses.sum()
            gradient = logits.exp_()
            gradient[torch.arange(len(numbers), device=labels.device), numbers] -= 1
            gradient = gradient.to(weight.dtype)
            d_hidden[start : start + size] = product(gradient, weight)
            if not ctx.needs_input_grad[1]:
                continue
            more = product(gradient.t(), part)
            if size < len(labels):  # a sum of parts would lose in bf16 what each of them has
                more = more.float()
            d_weight = more if d_weight is None else d_weight.add_(more)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.type = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *_scaled(ctx, gradient), None


class _OtherLoss(torch.autograd.Function):
    """The same for a loss that only autograd knows the gradient of: it goes from the loss to a part's logits, no further."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, loss: LogitLoss, passes: int
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        copies = hidden.reshape(passes, -1, hidden.shape[1])  # [passes, labels, d_model]
        labels = labels[: len(labels) // passes]
        d_hidden, d_weight = torch.empty_like(copies), None
        size = max(1, _labels_at_once(weight) // (COPIES_OF_LOGITS * passes))
        for start in range(0, len(labels), size):
            part, numbers = copies[:, start : start + size], labels[start : start + size]
            logits = product(part.flatten(0, 1), weight.t()).float().view(passes, len(numbers), -1)
            with torch.enable_grad():
                summed = loss(logits.requires_grad_(), numbers).sum()
                (gradient,) = torch.autograd.grad(summed, logits)
            total += summed.detach()
            gradient = gradient.flatten(0, 1).to(weight.dtype)
            d_hidden[:, start : start + size] = product(gradient, weight).view(passes, len(numbers), -1)
            if not ctx.needs_input_grad[1]:
                continue
            more = product(gradient.t(), part.flatten(0, 1))
            if size < len(labels):
                more = more.float()
            d_weight = more if d_weight is None else d_weight.add_(more)
        ctx.save_for_backward(d_hidden.flatten(0, 1), d_weight)
        ctx.type = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *_scaled(ctx, gradient), None, None, None


def _scaled(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The waiting gradients, in fp32 times their factor: one rounded to bf16 would be wrong by the same 0.2 % everywhere."""
    return tuple(None if part is None else (part.float() * gradient).to(ctx.type) for part in ctx.saved_tensors)
