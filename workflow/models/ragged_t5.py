"""T5's encoder over packed prompts, and the decoder's first position: what scoring and the start of generation need.

Knows nothing of caches or requests. The first position is exact and short: self-attention over one key is the
identity on its value, and with one query a head, cross-attention can take the query through the key projection
(and the mix of states through the value projection) instead of projecting every encoder token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workflow.models.attention import Layout, bias_matrix, layout_of, packed_attention
from workflow.models.linear import linear
from workflow.models.t5_weights import DecoderLayer, T5Weights, bias_table

GPU_WASTE = 0.25
"""On a GPU, sequences down to three quarters of a group's longest share its call."""


@dataclass(frozen=True)
class Encoded:
    """The encoder's output [tokens, d_model], packed as `layout` says, in the weights' type."""

    states: torch.Tensor
    layout: Layout


def encode(weights: T5Weights, prompts: Sequence[Sequence[int]]) -> Encoded:
    """Encodes token ids without padding."""
    device = weights.device
    layout = layout_of(
        [len(prompt) for prompt in prompts], waste=0.0 if device.type == "cpu" else GPU_WASTE, device=device
    )
    flat = [token for number in layout.order for token in prompts[number]]
    with weights.gather([weights.embeddings.weight]):
        x = weights.embed(torch.tensor(flat, device=device))
    bias = None
    for layer in weights.encoder:
        with weights.whole(layer.module):
            if (table := bias_table(layer.attention)) is not None:
                bias = bias_matrix(
                    table,
                    layout.lengths[0],
                    num_buckets=weights.config.relative_attention_num_buckets,
                    max_distance=weights.config.relative_attention_max_distance,
                )
            assert bias is not None
            q, k, v = (weights.heads(part) for part in layer.qkv(layer.norm(x)))
            context = packed_attention(q, k, v, layout=layout, bias=bias)
            x = x + linear(context.flatten(-2), layer.attention.o.weight)
            x = layer.feed_forward(x)
    with weights.gather([weights.encoder_norm.module.weight]):
        return Encoded(weights.encoder_norm(x), layout)


def first_position(weights: T5Weights, encoded: Encoded) -> torch.Tensor:
    """The decoder's output [prompts, d_model] at the first position, ready for the head, in the packed order."""
    start = torch.full((len(encoded.layout.lengths),), weights.config.decoder_start_token_id, device=weights.device)
    with weights.gather([weights.embeddings.weight]):
        x = weights.embed(start)
    for layer in weights.decoder:
        with weights.whole(layer.module):
            value = linear(layer.norm(x), layer.attention.v.weight)
            x = x + linear(value, layer.attention.o.weight)
            x = x + _absorbed_cross_attention(weights, layer, layer.cross_norm(x), encoded)
            x = layer.feed_forward(x)
    with weights.gather([weights.decoder_norm.module.weight]):
        return weights.decoder_norm(x) * weights.output_scale


def _absorbed_cross_attention(
    weights: T5Weights, layer: DecoderLayer, x: torch.Tensor, encoded: Encoded
) -> torch.Tensor:
    """Cross-attention of one query a prompt, x [prompts, d_model], without keys or values of the encoder's tokens."""
    heads = (weights.num_heads, weights.d_kv)
    queries = weights.heads(linear(x, layer.cross.q.weight))
    queries = torch.einsum("phk,hkd->phd", queries, layer.cross.k.weight.unflatten(0, heads))
    mixed = torch.cat([_mix(part, encoded, number) for number, part in _group_parts(queries, encoded.layout)])
    values = torch.einsum("phd,hkd->phk", mixed, layer.cross.v.weight.unflatten(0, heads))
    return linear(values.flatten(1), layer.cross.o.weight)


def _group_parts(queries: torch.Tensor, layout: Layout) -> list[tuple[int, torch.Tensor]]:
    return list(enumerate(torch.split(queries, [group.rows for group in layout.groups])))


def _mix(queries: torch.Tensor, encoded: Encoded, number: int) -> torch.Tensor:
    """States [rows, heads, d_model] of a group, mixed by the attention of its queries [rows, heads, d_model]."""
    group = encoded.layout.groups[number]
    states = group.rows_of(encoded.states)
    scores = (queries @ states.transpose(1, 2)).float()
    if group.valid is not None:
        scores = scores.masked_fill(~group.valid[:, None, :], float("-inf"))
    return scores.softmax(dim=-1).to(states.dtype) @ states


def logits_of_rows(weights: T5Weights, hidden: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """fp32 logits [prompts, rows] of hidden [prompts, d_model]: of the whole vocabulary, or of some rows of the head."""
    with weights.gather([weights.head.weight]):
        head = weights.head.weight if rows is None else weights.head.weight[rows]
        return linear(hidden.to(head.dtype), head).float()
