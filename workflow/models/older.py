"""A checkpoint folder as transformers 4, and what reads by its rules (CTranslate2), takes it right.

Knows nothing of runs. transformers 4 has one key for two things: a tied output head, and logits scaled by
d_model**-0.5. What is neither both nor none is written as none: a head of its own that holds the factor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workflow.files import write_json
from workflow.models.load import FAMILIES
from workflow.models.t5_weights import output_scale

EMBEDDING = "shared.weight"
HEAD = "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Some releases leave these random where a file lacks them and the head is not tied."""


def write_for_older(folder: Path, model: Any, tokenizer: Any) -> None:
    """Writes weights in fp32 into one file, configuration and tokenizer; the folder exists."""
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in model.named_parameters()}
    head = _split_head(model, weights) if model.config.model_type in FAMILIES else {}
    write_settings_for_older(folder, model, tokenizer, **head)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_settings_for_older(folder: Path, model: Any, tokenizer: Any, **changes: Any) -> None:
    """Writes all but the weights; `changes` are of the configuration."""
    tokenizer.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    model.config.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", _older_tokenizer)
    changes = {"architectures": [type(model).__name__], **changes}
    _edit(folder / "config.json", lambda config: _older_config(config) | changes)


def _split_head(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Completes the weights of a T5; what its configuration must say."""
    tied, scale = HEAD not in weights, output_scale(model.config)
    if not tied or scale == 1.0:
        weights[HEAD] = weights[EMBEDDING if tied else HEAD] * scale
        tied = False
    weights |= {name: weights[EMBEDDING].clone() for name in COPIES}
    return {"tie_word_embeddings": tied, "scale_decoder_outputs": tied}


def _older_config(config: dict[str, Any]) -> dict[str, Any]:
    """The weights' type goes by its older name."""
    return {key: value for key, value in config.items() if key != "dtype"} | {"torch_dtype": "float32"}


def _older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """A list of further special tokens goes by its older name, a class that is new by the one it descends from."""
    found = {key: value for key, value in config.items() if key not in ("backend", "is_local", "local_files_only")}
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if found.get("tokenizer_class") in (None, "TokenizersBackend"):
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    return found


def _edit(file: Path, change: Any) -> None:
    write_json(file, change(json.loads(file.read_text(encoding="utf-8"))))
