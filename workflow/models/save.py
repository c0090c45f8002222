"""Writes a checkpoint folder that any version of transformers, and other readers, load right.

Knows nothing of runs; writes into the folder it is given, which its caller renames when all is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.models.load import generation_settings

if TYPE_CHECKING:
    import torch


def write_model(
    folder: Path, model: Any, tokenizer: Any, weights: dict[str, torch.Tensor], *, max_new_tokens: int | None = None
) -> None:
    """Writes weights (safetensors), configuration, tokenizer and, for models that generate, generation settings.

    `weights` are named as in `model.named_parameters()`, so tied weights stand in them once: a state dict gathered
    under ZeRO would hold T5's embedding three times.
    """
    if model.can_generate():
        # Without a length of its own, generate() stops after 20 tokens.
        length = max_new_tokens or model.generation_config.max_new_tokens
        model.generation_config = generation_settings(model.config, max_new_tokens=length)
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
