"""A T5's weights as an engine uses them: read from transformers' modules, joined where one input meets several.

Knows nothing of caches or requests. Fused, the modules' parameters become views of the joined tensors, so nothing is
held twice and the model still works as transformers' own; unfused, every weight is read where training left it, also
where ZeRO-3 gathers it first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from workflow.models.linear import linear

Gather = Callable[[Sequence[torch.Tensor]], AbstractContextManager[Any]]
"""Makes sharded parameters whole inside a context (ZeRO-3); a collective call."""


def whole_already(_: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
    """The Gather of models that are not sharded."""
    return nullcontext()


class Joined:
    """Linear maps of one input; one matrix product where they are fused."""

    def __init__(self, modules: Sequence[torch.nn.Linear], *, fuse: bool) -> None:
        self.modules = list(modules)
        self.sizes = [module.out_features for module in modules]
        self.weight: torch.Tensor | None = None
        if fuse:
            self.weight = torch.cat([module.weight.data for module in modules])
            for module, part in zip(modules, torch.split(self.weight, self.sizes), strict=True):
                module.weight.data = part

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One output per map, of x [..., d_in]."""
        if self.weight is not None:
            return torch.split(linear(x, self.weight), self.sizes, dim=-1)
        return tuple(linear(x, module.weight) for module in self.modules)

    def side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of all maps in one tensor, of x [..., d_in]."""
        return linear(x, self.weight) if self.weight is not None else torch.cat(self(x), dim=-1)


class Norm:
    """T5's layer norm (root mean square, no shift), computed in fp32 and given in the weights' type."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x fp32 [..., d_model]. One pass over x and no copies of its size: `F.rms_norm` on CPUs makes several."""
        weight = self.module.weight
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().mul(1 / x.shape[-1])
        found: torch.Tensor = (x * mean.add(self.module.variance_epsilon).rsqrt()).mul_(weight.float())
        return found.to(weight.dtype)


class FeedForward:
    """The feed-forward block with its residual, gated (v1.1) or not (1.0)."""

    def __init__(self, layer: Any, config: Any, *, fuse: bool) -> None:
        dense = layer.DenseReluDense
        self.norm = Norm(layer.layer_norm)
        self.gated = bool(config.is_gated_act)
        self.wi = Joined([dense.wi_0, dense.wi_1] if self.gated else [dense.wi], fuse=fuse and self.gated)
        self.wo = dense.wo
        self.act = activation(config.dense_act_fn)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x fp32 [..., d_model] -> the same, with the block added."""
        inner = self.wi(self.norm(x))
        hidden = self.act(inner[0]) * inner[1] if self.gated else self.act(inner[0])
        weight = self.wo.weight  # read once: a quantised map makes it anew each time
        return x + linear(hidden.to(weight.dtype), weight)


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An activation by its name in a configuration; gelu_new is one call here instead of seven."""
    if name == "gelu_new":
        return lambda x: F.gelu(x, approximate="tanh")
    found: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
    return found


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder; `bias` is the table [buckets, heads] that it owns, or None (T5 has the first's alone)."""

    module: Any
    norm: Norm
    qkv: Joined
    attention: Any
    feed_forward: FeedForward


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of the decoder."""

    module: Any
    norm: Norm
    qkv: Joined
    attention: Any
    cross_norm: Norm
    cross: Any
    feed_forward: FeedForward


class T5Weights:
    """The parts of a T5, mT5 or UMT5."""

    def __init__(self, model: Any, *, fuse: bool = False, gather: Gather = whole_already) -> None:
        config = model.config
        self.config = config
        self.gather = gather
        self.num_heads, self.d_kv = config.num_heads, config.d_kv
        self.embeddings = model.get_input_embeddings()
        self.head = model.lm_head
        self.encoder = [_encoder_layer(block, config, fuse) for block in model.encoder.block]
        self.decoder = [_decoder_layer(block, config, fuse) for block in model.decoder.block]
        self.encoder_norm = Norm(model.encoder.final_layer_norm)
        self.decoder_norm = Norm(model.decoder.final_layer_norm)
        cross = [part for layer in self.decoder for part in (layer.cross.k, layer.cross.v)]
        self.cross_kv = Joined(cross, fuse=fuse)
        self.output_scale = output_scale(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.embeddings.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self.embeddings.weight.dtype
        return dtype

    def whole(self, module: Any) -> AbstractContextManager[Any]:
        """`gather` of all of a module; to list its parameters takes as long as some of its products, so nobody does in vain."""
        return nullcontext() if self.gather is whole_already else self.gather(list(module.parameters()))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """fp32 [..., d_model]: the residual stream stays in fp32 whatever the weights are."""
        return F.embedding(tokens, self.embeddings.weight).float()

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[..., heads * d_kv] -> [..., heads, d_kv]."""
        return x.reshape(*x.shape[:-1], self.num_heads, self.d_kv)


def output_scale(config: Any) -> float:
    """What the decoder's output is multiplied by before the head, as transformers 5 decides it for each family.

    T5 says it by a key of its own, UMT5 by the tie that `load_seq2seq` makes true; mT5 never scales.
    """
    by_family = {"t5": "scale_decoder_outputs", "umt5": "tie_word_embeddings"}
    scaled = config.model_type in by_family and bool(getattr(config, by_family[config.model_type]))
    return float(config.d_model**-0.5) if scaled else 1.0


def bias_table(attention: Any) -> torch.Tensor | None:
    """The table [buckets, heads] of an attention module that owns one."""
    if not attention.has_relative_attention_bias:
        return None
    table: torch.Tensor = attention.relative_attention_bias.weight
    return table


def _encoder_layer(block: Any, config: Any, fuse: bool) -> EncoderLayer:
    own, last = block.layer[0], block.layer[-1]
    attention = own.SelfAttention
    qkv = Joined([attention.q, attention.k, attention.v], fuse=fuse)
    return EncoderLayer(block, Norm(own.layer_norm), qkv, attention, FeedForward(last, config, fuse=fuse))


def _decoder_layer(block: Any, config: Any, fuse: bool) -> DecoderLayer:
    own, cross, last = block.layer
    attention = own.SelfAttention
    return DecoderLayer(
        block,
        Norm(own.layer_norm),
        Joined([attention.q, attention.k, attention.v], fuse=fuse),
        attention,
        Norm(cross.layer_norm),
        cross.EncDecAttention,
        FeedForward(last, config, fuse=fuse),
    )
