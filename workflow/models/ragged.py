"""Which models are trained over packed tokens, and by which forward; all others are trained on padded batches.

Knows nothing of how these forwards compute.
"""

from __future__ import annotations

from typing import Any

import torch

from workflow.models import ragged_bert, ragged_training
from workflow.models.dropout import why_not_by_row
from workflow.models.pairing import SDPA
from workflow.models.ragged_bert import RaggedBert
from workflow.models.ragged_training import RaggedScorer, RaggedT5


def why_padded(model: Any) -> str | None:
    """Why a model is trained on padded batches; None where `ragged_form_of` has a form for it."""
    family = model.config.model_type
    if family in ragged_training.FAMILIES:
        return ragged_training.why_not_ragged(model)
    if family in ragged_bert.FAMILIES:
        return ragged_bert.why_not_ragged(model)
    return f"{family} models are trained on padded batches"


def ragged_form_of(model: Any, *, scores: bool) -> torch.nn.Module:
    """What training calls in the place of a model that `why_padded` says nothing against; `scores` or writes texts."""
    if model.config.model_type in ragged_bert.FAMILIES:
        return RaggedBert(model)
    return RaggedScorer(model) if scores else RaggedT5(model)


def why_masks_vary(model: torch.nn.Module, *, attention: str | None) -> str | None:
    """Say why another division into ranks or micro-batches draws other masks of dropout; None where it does not.

    `attention` names the back end of ragged batches; None stands for padded ones.
    """
    dropping = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    if not dropping:
        return None
    if attention is None:
        return "the forward of transformers draws them for a whole padded batch"
    if any(
        name.rpartition(".")[0].endswith("lora_dropout") for name, module in model.named_modules() if module in dropping
    ):
        return "peft draws those of --lora_dropout for a whole batch"
    if attention == SDPA:
        return "torch's fused attention draws its own"
    return why_not_by_row() if next(model.parameters()).device.type != "cpu" else None
