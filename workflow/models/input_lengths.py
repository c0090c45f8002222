"""The most tokens of an input that a model with a classification head takes: by its positions, and by its tokenizer.

Knows nothing of heads.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from workflow.models.load import Explained


def most_tokens(model: Any, tokenizer: Any) -> int | None:
    """The fewer of what model and tokenizer say; None where neither says a number that is meant."""
    limits = (_positions(model), tokenizer.model_max_length)
    return min((limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000), default=None)


def most_tokens_of(name: str, tokenizer: Any) -> int | None:
    """`most_tokens` of a checkpoint, without its weights. Raises ModelError for a configuration that cannot be read."""
    with Explained(name, "configuration"), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return most_tokens(model, tokenizer)


def _positions(model: Any) -> int | None:
    """Positions that tokens can take. RoBERTa-like models count theirs from the one after padding's."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    padding = [
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return limit - padding[0] - 1 if limit is not None and padding else limit
