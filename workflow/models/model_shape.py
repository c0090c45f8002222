"""What a configuration says of a model's size: every weight's shape, and so the number of parameters, without a weight.

Imports nothing heavy; knows nothing of training. Takes raw config.json objects, with transformers' defaults for what
they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from workflow.errors import ModelError

T5_FAMILIES = ("t5", "mt5", "umt5")
STACK_FAMILIES = ("bert", "roberta", "xlm-roberta", "gpt2")

Weights: TypeAlias = "Iterator[tuple[int, tuple[int, ...]]]"
"""How often a shape of a weight occurs, and the shape."""


@dataclass(frozen=True)
class T5Shape:
    """Sizes of a T5, mT5 or UMT5."""

    family: str
    d_model: int
    inner: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    vocab_size: int
    gated: bool
    is_tied: bool
    dropout: float
    num_buckets: int = 32

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> T5Shape:
        """From a config.json. A T5 1.0 (no gated activation) has a tied head unless the file says otherwise; others have their own."""
        family = config["model_type"]
        newer = family != "t5"
        heads, layers = config.get("num_heads", 6 if newer else 8), config.get("num_layers", 8 if newer else 6)
        gated = config.get("feed_forward_proj", "gated-gelu" if newer else "relu").startswith("gated")
        return cls(
            family,
            config.get("d_model", 512),
            heads * config.get("d_kv", 64),
            config.get("d_ff", 1024 if newer else 2048),
            heads,
            layers,
            config.get("num_decoder_layers") or layers,
            config.get("vocab_size", {"mt5": 250112, "umt5": 250112}.get(family, 32128)),
            gated,
            config.get("tie_word_embeddings", not newer),
            config.get("dropout_rate", 0.1),
            config.get("relative_attention_num_buckets", 32),
        )

    @property
    def mlp_matrices(self) -> int:
        """Matrices of a feed-forward layer."""
        return 3 if self.gated else 2

    def weights(self) -> Weights:
        """Every weight; linear maps as [out, in]."""
        d, both = self.d_model, self.num_layers + self.num_decoder_layers
        attentions = both + self.num_decoder_layers
        yield 1 if self.is_tied else 2, (self.vocab_size, d)
        yield 3 * attentions, (self.inner, d)
        yield attentions, (d, self.inner)
        yield both * (self.mlp_matrices - 1), (self.d_ff, d)
        yield both, (d, self.d_ff)
        yield attentions + both + 2, (d,)
        yield both if self.family == "umt5" else 2, (self.num_buckets, self.num_heads)


@dataclass(frozen=True)
class StackShape:
    """Sizes of a BERT, RoBERTa or GPT-2 with a classification head of `num_labels`."""

    family: str
    d_model: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int
    num_positions: int
    num_types: int
    num_labels: int
    dropout: float

    @classmethod
    def of(cls, config: Mapping[str, Any], *, num_labels: int) -> StackShape:
        """From a config.json."""
        family = config["model_type"]
        if family == "gpt2":
            d = config.get("n_embd", 768)
            return cls(
                family,
                d,
                config.get("n_inner") or 4 * d,
                config.get("n_head", 12),
                config.get("n_layer", 12),
                config.get("vocab_size", 50257),
                config.get("n_positions", 1024),
                0,
                num_labels,
                config.get("resid_pdrop", 0.1),
            )
        return cls(
            family,
            config.get("hidden_size", 768),
            config.get("intermediate_size", 3072),
            config.get("num_attention_heads", 12),
            config.get("num_hidden_layers", 12),
            config.get("vocab_size", 30522 if family == "bert" else 50265),
            config.get("max_position_embeddings", 512),
            config.get("type_vocab_size", 2),
            num_labels,
            config.get("hidden_dropout_prob", 0.1),
        )

    def weights(self) -> Weights:
        """Every weight and bias."""
        d, layers = self.d_model, self.num_layers
        yield 1, (self.vocab_size, d)
        yield 1, (self.num_positions, d)
        yield 4 * layers, (d, d)
        yield layers, (self.d_ff, d)
        yield layers, (d, self.d_ff)
        yield layers, (self.d_ff,)
        yield 9 * layers + 2, (d,)  # biases of five maps, two norms a layer; the last norm, or that of the embeddings
        yield 1, (self.num_labels, d)
        if self.family != "gpt2":
            yield 1, (self.num_types, d)
            yield 1, (d, d)  # the pooler, or the head's own first map
            yield 1, (d,)
            yield 1, (self.num_labels,)


ModelShape: TypeAlias = T5Shape | StackShape


def shape_of(config: Mapping[str, Any], *, name: str, num_labels: int = 2) -> ModelShape:
    """The shape that a configuration describes. Raises ModelError for families that are not known, and for broken files."""
    family = config.get("model_type")
    try:
        if family in T5_FAMILIES:
            return T5Shape.of(config)
        if family in STACK_FAMILIES:
            return StackShape.of(config, num_labels=num_labels)
    except (TypeError, AttributeError) as error:
        raise ModelError(f"{name}: config.json holds a value of the wrong kind: {error}") from None
    raise ModelError(
        f"{name}: a {family or 'nameless'} model; plans are made for {', '.join((*T5_FAMILIES, *STACK_FAMILIES))}"
    )


def num_parameters(shape: ModelShape) -> int:
    """All of them, tied ones once."""
    return sum(count * math.prod(size) for count, size in shape.weights())


def num_factored(shape: ModelShape) -> int:
    """Numbers that Adafactor keeps: a row and a column of every matrix, all of a vector (Shazeer and Stern 2018)."""
    return sum(count * sum(size) for count, size in shape.weights())
