"""The published sizes of T5 1.0, v1.1 and Flan-T5, of BERT and of GPT-2, and a tiny one of each.

Imports nothing heavy, so that help pages can list the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5; v1.1 (gated GELU, own head) unless `first_version` (ReLU, tied head)."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int = 32000
    first_version: bool = False


@dataclass(frozen=True)
class StackShape:
    """Sizes of a model of one stack of layers: a BERT or a GPT-2."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_positions: int
    vocab_size: int


SHAPES = {
    "tiny": Shape(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, vocab_size=1000),
    "t5-small": Shape(d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=6, first_version=True),
    "flan-t5-small": Shape(d_model=512, d_kv=64, d_ff=1024, num_heads=6, num_layers=8),
    "flan-t5-base": Shape(d_model=768, d_kv=64, d_ff=2048, num_heads=12, num_layers=12),
    "flan-t5-large": Shape(d_model=1024, d_kv=64, d_ff=2816, num_heads=16, num_layers=24),
    "flan-t5-xl": Shape(d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=24),
    "flan-t5-xxl": Shape(d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24),
}
BERT_SHAPES = {
    "tiny": StackShape(128, 2, 4, intermediate_size=256, num_positions=512, vocab_size=2000),
    "bert-base": StackShape(768, 12, 12, intermediate_size=3072, num_positions=512, vocab_size=30522),
}
GPT2_SHAPES = {
    "tiny": StackShape(128, 2, 4, intermediate_size=512, num_positions=1024, vocab_size=2000),
    "gpt2": StackShape(768, 12, 12, intermediate_size=3072, num_positions=1024, vocab_size=50257),
}
SHAPES_BY_ARCH: dict[str, Mapping[str, Shape | StackShape]] = {"t5": SHAPES, "bert": BERT_SHAPES, "gpt2": GPT2_SHAPES}
