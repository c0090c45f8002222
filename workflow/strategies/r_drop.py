"""R-Drop (Wu et al. 2021): each row passes twice through the model in one batch, and the two answers are made to agree.

Knows nothing of models: the two passes differ by their dropout alone.
"""

from __future__ import annotations

from typing import Any

import torch

from workflow.config.strategy_settings import RDrop as Settings
from workflow.strategies.base import LogitLoss, Strategy


class RDrop(Strategy):
    """The mean of both passes' losses + alpha / 2 x (KL(p || q) + KL(q || p)), per label token or example."""

    name = "r_drop"
    passes = 2

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def prepare_model(self, model: Any, *, seed: int) -> list[str]:  # noqa: ARG002
        """Says where there is no dropout, which is all that the passes differ by."""
        if any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout)):
            return []
        return [
            "r_drop: this model has a dropout of 0, so both passes are the same (but for --lora_dropout); pass --dropout 0.1"
        ]

    def loss(self, inner: LogitLoss, problem: str) -> LogitLoss:
        """As the paper's code has it: a mean of the losses (its formula, a sum, is this one doubled, with twice the alpha)."""
        half = self.settings.alpha / 2

        def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            first, second = logits.chunk(2)
            both = (inner(first, targets) + inner(second, targets)) / 2
            return both + half * divergence(problem, first[0], second[0])

        return loss


def divergence(problem: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(p || q) + KL(q || p) of each row; fp32 logits [n, width] twice -> [n].

    Of Bernoullis, averaged over the labels, for multi-label targets; for numbers, of Gaussians whose negative log-likelihood
    is the squared error (variance 1/2), which is twice their squared distance.
    """
    if problem == "regression":
        return 2 * (first - second).square().mean(dim=1)
    if problem == "multilabel":
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(dim=1)
    p, q = first.log_softmax(dim=1), second.log_softmax(dim=1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1)
