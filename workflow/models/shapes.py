"""The published sizes of T5 1.0, v1.1 and Flan-T5, and a tiny one.

Imports nothing heavy, so that help pages can list the names.
"""

from __future__ import annotations

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


SHAPES = {
    "tiny": Shape(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, vocab_size=1000),
    "t5-small": Shape(d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=6, first_version=True),
    "flan-t5-small": Shape(d_model=512, d_kv=64, d_ff=1024, num_heads=6, num_layers=8),
    "flan-t5-base": Shape(d_model=768, d_kv=64, d_ff=2048, num_heads=12, num_layers=12),
    "flan-t5-large": Shape(d_model=1024, d_kv=64, d_ff=2816, num_heads=16, num_layers=24),
    "flan-t5-xl": Shape(d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=24),
    "flan-t5-xxl": Shape(d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24),
}
