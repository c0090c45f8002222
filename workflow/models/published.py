"""The configurations of published models, by their names: what a plan needs before anything is downloaded.

Imports nothing heavy; knows nothing of weights. Sizes are those of the checkpoints' own config.json files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workflow.models.shapes import BERT_SHAPES, GPT2_SHAPES, SHAPES, Shape, StackShape

T5_VOCABULARY, MT5_VOCABULARY, UMT5_VOCABULARY, BYT5_VOCABULARY = 32128, 250112, 256384, 384
SIZES = ("small", "base", "large", "xl", "xxl")

FIRST_T5 = {
    "t5-small": SHAPES["t5-small"],
    "t5-base": Shape(768, 64, 3072, 12, 12, first_version=True),
    "t5-large": Shape(1024, 64, 4096, 16, 24, first_version=True),
    "t5-3b": Shape(1024, 128, 16384, 32, 24, first_version=True),
    "t5-11b": Shape(1024, 128, 65536, 128, 24, first_version=True),
}
BYT5 = {
    "byt5-small": (Shape(1472, 64, 3584, 6, 12), 4),
    "byt5-base": (Shape(1536, 64, 3968, 12, 18), 6),
    "byt5-large": (Shape(1536, 64, 3840, 16, 36), 12),
    "byt5-xl": (Shape(2560, 64, 6720, 32, 36), 12),
    "byt5-xxl": (Shape(4672, 64, 12352, 64, 36), 12),
}
"""Sizes, and the layers of the decoder."""

_BASE = BERT_SHAPES["bert-base"]
_LARGE = StackShape(1024, 24, 16, intermediate_size=4096, num_positions=512, vocab_size=30522)
BERT = {
    "bert-base-uncased": _BASE,
    "bert-base-cased": replace(_BASE, vocab_size=28996),
    "bert-base-multilingual-cased": replace(_BASE, vocab_size=119547),
    "bert-base-multilingual-uncased": replace(_BASE, vocab_size=105879),
    "bert-large-uncased": _LARGE,
    "bert-large-cased": replace(_LARGE, vocab_size=28996),
}
_GPT2 = GPT2_SHAPES["gpt2"]
GPT2 = {
    "gpt2": _GPT2,
    "gpt2-medium": replace(_GPT2, hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
    "gpt2-large": replace(_GPT2, hidden_size=1280, num_layers=36, num_heads=20, intermediate_size=5120),
    "gpt2-xl": replace(_GPT2, hidden_size=1600, num_layers=48, num_heads=25, intermediate_size=6400),
}
OWNERS = ("google", "google-t5", "google-bert", "openai-community")


def _t5(shape: Shape, family: str, vocab_size: int, decoder_layers: int | None = None) -> dict[str, Any]:
    return {
        "model_type": family,
        "d_model": shape.d_model,
        "d_kv": shape.d_kv,
        "d_ff": shape.d_ff,
        "num_heads": shape.num_heads,
        "num_layers": shape.num_layers,
        "num_decoder_layers": decoder_layers or shape.num_layers,
        "vocab_size": vocab_size,
        "feed_forward_proj": "relu" if shape.first_version else "gated-gelu",
        "tie_word_embeddings": shape.first_version,
    }


def _stack(shape: StackShape, family: str) -> dict[str, Any]:
    if family == "gpt2":
        sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
        return {"model_type": family, "vocab_size": shape.vocab_size, "n_positions": shape.num_positions, **sizes}
    return {
        "model_type": family,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.num_positions,
        "vocab_size": shape.vocab_size,
    }


def _published() -> dict[str, dict[str, Any]]:
    gated = {size: SHAPES[f"flan-t5-{size}"] for size in SIZES}
    return {
        **{name: _t5(shape, "t5", T5_VOCABULARY) for name, shape in FIRST_T5.items()},
        **{f"flan-t5-{size}": _t5(shape, "t5", T5_VOCABULARY) for size, shape in gated.items()},
        **{f"t5-v1_1-{size}": _t5(shape, "t5", T5_VOCABULARY) for size, shape in gated.items()},
        **{f"mt5-{size}": _t5(shape, "mt5", MT5_VOCABULARY) for size, shape in gated.items()},
        **{f"umt5-{size}": _t5(gated[size], "umt5", UMT5_VOCABULARY) for size in ("small", "base", "xl", "xxl")},
        **{name: _t5(shape, "t5", BYT5_VOCABULARY, layers) for name, (shape, layers) in BYT5.items()},
        **{name: _stack(shape, "bert") for name, shape in BERT.items()},
        **{name: _stack(shape, "gpt2") for name, shape in GPT2.items()},
    }


PUBLISHED = _published()


def published_config(name: str) -> dict[str, Any] | None:
    """The configuration of a model by its hub name, with its owner or without; None for names that are not known."""
    owner, _, short = name.rpartition("/")
    return PUBLISHED.get(short) if owner in ("", *OWNERS) else None
