"""Rows and models for benchmarks of training on a GPU: lengths like those of real tasks, random tokens, random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from workflow.models.shapes import Shape

VOCABULARY = 32128
YES, NO, END = 4273, 150, 1
DIFFERENT_UPDATES = 4

Row = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """Sequences one after another."""

    ids: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device) -> Packed:
        """On the device, without waiting for the copy."""
        ids = torch.from_numpy(np.concatenate(rows))
        ids = ids.pin_memory() if device.type == "cuda" else ids
        return cls(ids.to(device, non_blocking=True), tuple(map(len, rows)))


def lengths_of(mix: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts' lengths, completions') of a mix, alike in every run."""
    rng = np.random.default_rng(0)
    if mix == "instruction":  # medians 60 and 30
        found = rng.lognormal(4.1, 0.9, count).clip(4, 512), rng.lognormal(3.4, 0.9, count).clip(2, 114)
    elif mix == "scan":  # short commands, actions of many lengths
        found = rng.normal(17, 4, count).clip(6, 30), rng.lognormal(3.9, 0.7, count).clip(4, 250)
    elif mix == "cola":  # a template and a sentence
        found = rng.lognormal(2.5, 0.4, count).clip(4, 45) + 12, np.full(count, 2)
    else:
        found = np.full(count, 512), np.full(count, 114)
    return found[0].astype(int), found[1].astype(int)


def updates_of(mix: str, num_tokens: int) -> list[list[Row]]:
    """Rows of some updates, each of at least so many tokens; as many rows in each, a multiple of 16."""
    mean = sum(float(part.mean()) for part in lengths_of(mix, 4096))
    size = 16 * math.ceil(num_tokens / mean / 16)
    while True:
        sources, targets = lengths_of(mix, size * DIFFERENT_UPDATES)
        if (sources + targets).reshape(DIFFERENT_UPDATES, size).sum(axis=1).min() >= num_tokens:
            break
        size += 16
    rng = np.random.default_rng(1)
    rows = [
        (rng.integers(3, VOCABULARY, a), label(rng) if mix == "cola" else rng.integers(3, VOCABULARY, b))
        for a, b in zip(sources, targets, strict=True)
    ]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def label(rng: np.random.Generator) -> np.ndarray:
    """The completion of a yes/no row."""
    return np.array([YES if rng.random() < 0.7 else NO, END])


def make(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, dropout: float = 0.1, attention: str | None = None
) -> Any:
    """A v1.1 model with its own head and random weights, made on the device."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=dropout,
        **({"attn_implementation": attention} if attention else {}),
    )
    torch.manual_seed(0)
    with device:
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, shape.d_model).mul_(shape.d_model**-0.5))
    return model.to(dtype).train()


def padded(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """What DataCollatorForSeq2Seq gives."""

    def filled(name: str, value: int) -> torch.Tensor:
        parts = [torch.from_numpy(row[name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    ids = filled("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": filled("labels", -100)}
