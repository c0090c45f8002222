"""Writes a checkpoint folder that any version of transformers, and other readers, load right.

Knows nothing of runs; writes into the folder it is given, which its caller renames when all is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write_model(
    folder: Path, model: Any, tokenizer: Any, weights: dict[str, torch.Tensor], *, max_new_tokens: int
) -> None:
    """Writes weights (safetensors), configuration, generation settings and tokenizer.

    `weights` are named as in `model.named_parameters()`, so tied weights stand in them once: a state dict gathered
    under ZeRO would hold T5's embedding three times.
    """
    from transformers import GenerationConfig

    config = model.config
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=max_new_tokens,  # without a length, generate() stops after 20 tokens
    )
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
