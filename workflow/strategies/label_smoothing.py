"""Label smoothing (Szegedy et al. 2016): a little of every target's weight is shared by all labels.

Knows nothing of models.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from workflow.config.strategy_settings import LabelSmoothing as Settings
from workflow.errors import ConfigError
from workflow.strategies.base import TOKENS, LogitLoss, Strategy


class LabelSmoothing(Strategy):
    """(1 - epsilon) x loss + epsilon x the loss against the uniform target."""

    name = "label_smoothing"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def loss(self, inner: LogitLoss, problem: str) -> LogitLoss | None:
        """Raises ConfigError for regression."""
        if problem == "regression":
            raise ConfigError(
                "--label_smoothing: numbers have no labels to smooth; leave it out with --problem regression"
            )
        epsilon = self.settings.epsilon
        if epsilon == 0:
            return None
        return lambda logits, targets: (1 - epsilon) * inner(logits, targets) + epsilon * uniform(problem, logits[0])


def uniform(problem: str, logits: torch.Tensor) -> torch.Tensor:
    """The loss of each row against the uniform target, in the form that its problem's loss has; logits [n, width] -> [n].

    Tokens: cross-entropy. Binary and multi-class: KL(uniform || score). Multi-label: binary cross-entropy against 1/2.
    """
    if problem == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5), reduction="none").mean(dim=1)
    cross_entropy = -logits.log_softmax(dim=1).mean(dim=1)
    return cross_entropy if problem == TOKENS else cross_entropy - math.log(logits.shape[1])
