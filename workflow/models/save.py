"""Writes a checkpoint folder that any version of transformers, and other readers, load right.

Knows nothing of runs; writes into the folder it is given, which its caller renames when all is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.models.adapters import ADAPTER_FOLDER
from workflow.models.load import generation_settings

if TYPE_CHECKING:
    import torch

    from workflow.models.adapters import Adapters


def write_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: dict[str, torch.Tensor],
    *,
    max_new_tokens: int | None = None,
    adapters: Adapters | None = None,
) -> None:
    """Writes weights (safetensors), configuration, tokenizer and, for models that generate, generation settings.

    `weights` are named as in `model.named_parameters()`, so tied weights stand in them once: a state dict gathered
    under ZeRO would hold T5's embedding three times. Those of a model with adapters are merged, so that the folder is a
    plain model's; the adapters stand in `adapter/` besides.
    """
    if adapters is not None:
        adapters.write(folder / ADAPTER_FOLDER, weights)
        weights = adapters.merged(weights)
    if model.can_generate():
        # Without a length of its own, generate() stops after 20 tokens.
        length = max_new_tokens or model.generation_config.max_new_tokens
        model.generation_config = generation_settings(model.config, max_new_tokens=length)
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
