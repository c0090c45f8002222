"""Attention of packed queries over packed keys, sequence by sequence, with gradients and dropout.

Knows nothing of layers, weights or which back end suits a device: a pairing names its back end, and `attend` is the one
function in front of them all. The explicit products stand here; they are what CPUs use and what the others are held
against. Padding inside a group is masked, so it changes nothing but the time. Scores are not scaled, as in T5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workflow.models.attention import relative_buckets
from workflow.models.dropout import Keys, Thinning, keep_mask
from workflow.models.fused_attention import aligned, fused_attention
from workflow.models.pairing import SDPA, TRITON, Group, Pairing, collect, spread
from workflow.models.varlen_attention import varlen_attention


@dataclass(frozen=True)
class Biases:
    """T5's biases by relative position, in the forms that a pairing's back end takes.

    `by_distance` fp32 [heads, 2 * reach - 1]: the bias of a key `d` places behind its query stands at reach - 1 + d.
    `of_groups`, where there are groups: for explicit products fp32 [heads, queries, keys], for torch's fused attention masks of
    the weights' type, [1 or rows, heads, queries, keys]; keys that a query must not see get minus infinity.
    """

    by_distance: torch.Tensor
    is_causal: bool
    of_groups: tuple[torch.Tensor, ...]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pairing: Pairing,
    biases: Biases | None,
    *,
    num_heads: int,
    thinning: Thinning | None = None,
) -> torch.Tensor:
    """q [queries, heads * width], k and v [keys, heads * width] -> [queries, heads * width]; without biases all keys are seen.

    torch's fused attention draws its masks itself: `thinning` gives it the rate alone.
    """
    if pairing.backend == TRITON:
        spans = pairing.spans(is_causal=biases is not None and biases.is_causal)
        table = biases.by_distance if biases is not None else None
        return varlen_attention(q, k, v, spans, table, num_heads=num_heads, thinning=thinning)
    groups = pairing.groups
    queries = spread(q, pairing.queries, groups, num_heads)
    keys, values = (spread(part, pairing.keys, groups, num_heads) for part in (k, v))
    of_groups = biases.of_groups if biases is not None else [None] * len(groups)
    if pairing.backend == SDPA:
        masks = of_groups if biases is not None else pairing.masks(q.dtype)
        rate = thinning.rate if thinning is not None else 0.0
        found = [fused_attention(*parts, dropout=rate) for parts in zip(queries, keys, values, masks, strict=True)]
    else:
        masks = _keep_masks(thinning, pairing, num_heads)
        parts = zip(queries, keys, values, of_groups, groups, masks, strict=True)
        found = [_attended(*part) for part in parts]
    return collect(found, pairing.queries, num_heads)


def _keep_masks(thinning: Thinning | None, pairing: Pairing, num_heads: int) -> list[torch.Tensor | None]:
    """Each group's `keep_mask`, [rows, heads, queries, keys]."""
    if thinning is None:
        return [None] * len(pairing.groups)
    spread_keys = thinning.keys.at(thinning.place).of_heads(num_heads).select(pairing.queries.spread)
    sizes = list(pairing.queries.sizes)
    found: list[torch.Tensor | None] = []
    for group, first, second in zip(
        pairing.groups, spread_keys.first.split(sizes), spread_keys.second.split(sizes), strict=True
    ):
        shape = (group.rows, num_heads, -1)
        found.append(keep_mask(Keys(first.view(shape), second.view(shape)), group.keys, thinning.rate))
    return found


def _attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    group: Group,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    found: torch.Tensor = _Attended.apply(q, k, v, bias, group.valid, keep)  # type: ignore[no-untyped-call]
    return found


class _Attended(torch.autograd.Function):
    """softmax(q k' + bias) v, the weights thinned out by `keep` (zeros, or 1 / (1 - rate)); the softmax is in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        valid: torch.Tensor | None,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        scores = (q @ k.transpose(-1, -2)).float()
        if bias is not None:
            scores += bias
        if valid is not None:
            scores.masked_fill_(~valid, float("-inf"))
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.has_bias = bias is not None
        return _thinned(weights, keep).to(v.dtype) @ v

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights, keep = ctx.saved_tensors
        d_v = _thinned(weights, keep).to(v.dtype).transpose(-1, -2) @ gradient
        d_weights = _thinned((gradient @ v.transpose(-1, -2)).float(), keep)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, torch.float32)
        d_bias = d_scores.sum(dim=0) if ctx.has_bias and ctx.needs_input_grad[3] else None
        d_scores = d_scores.to(q.dtype)
        return d_scores @ k, d_scores.transpose(-1, -2) @ q, d_v, d_bias, None, None


def _thinned(weights: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return weights if keep is None else weights * keep


def group_biases(table: Any, pairing: Pairing, *, bidirectional: bool, num_buckets: int, max_distance: int) -> Biases:
    """A pairing's biases, for all layers that share them; `table`, the embedding of buckets, is called once.

    One query of a decoder looks back only: keys behind it get minus infinity.
    """
    reach = pairing.reach
    distances = torch.arange(1 - reach, reach, device=table.weight.device)
    buckets = relative_buckets(
        distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    by_distance = table(buckets).float().t()
    return biases_of(by_distance, pairing, is_causal=not bidirectional, dtype=table.weight.dtype)


def biases_of(by_distance: torch.Tensor, pairing: Pairing, *, is_causal: bool, dtype: torch.dtype) -> Biases:
    """The forms that the pairing's back end takes; `by_distance` reaches as far as the pairing, `dtype` is that of queries."""
    if pairing.backend == TRITON:
        return Biases(by_distance.contiguous(), is_causal, ())
    parts = [_bias(by_distance, pairing.reach, group.keys, is_causal) for group in pairing.groups]
    if pairing.backend == SDPA:
        parts = [_masked(part, valid, dtype) for part, valid in zip(parts, pairing.masks(dtype), strict=True)]
    return Biases(by_distance, is_causal, tuple(parts))


def _bias(by_distance: torch.Tensor, reach: int, length: int, is_causal: bool) -> torch.Tensor:
    """[heads, length, length] from the biases [heads, 2 * reach - 1] of distances from 1 - reach on."""
    near = by_distance[:, reach - length : reach + length - 1]
    bias = near.unfold(1, length, 1).flip(1)
    if not is_causal:
        return bias
    later = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
    return bias.masked_fill(later, float("-inf"))


def _masked(bias: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """[1 or rows, heads, queries, keys]; one for all rows where they are of one length."""
    found = aligned(bias.to(dtype)[None])
    return found if mask is None else aligned(found + mask)
