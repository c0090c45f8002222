"""Attention of packed queries over packed keys, sequence by sequence, with gradients and dropout.

Knows nothing of layers, weights or where the bias comes from. Sequences stand one after another, without padding;
a `Pairing` sorts them into groups of like lengths, each computed at once. Padding inside a group is masked, so it
changes nothing but the time. Scores are not scaled, as in T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workflow.models.attention import relative_buckets
from workflow.models.dropout import keep_mask

CPU_SLACK, GPU_SLACK = 2048, 1 << 18
"""Scores a head that a group may compute in vain before another group is cheaper."""


@dataclass(frozen=True)
class Group:
    """Sequences attended to in one call: `rows` of up to `queries` queries and `keys` keys.

    `valid` [rows, 1, 1, keys] says which keys are real; None where all are.
    """

    rows: int
    queries: int
    keys: int
    valid: torch.Tensor | None


@dataclass(frozen=True)
class Places:
    """Where a pack's heads stand in its groups: `spread` [places] names the head of each, `collect` its place of each head.

    Heads are numbered token by token, so that one copy also brings the heads of a sequence together.
    """

    spread: torch.Tensor
    collect: torch.Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Pairing:
    """Which queries meet which keys. In self-attention, `queries` is `keys`."""

    groups: tuple[Group, ...]
    queries: Places
    keys: Places


def pairing_of(
    query_lengths: Sequence[int],
    key_lengths: Sequence[int] | None = None,
    *,
    num_heads: int,
    device: torch.device,
) -> Pairing:
    """Pairs the i-th sequence of queries with the i-th of keys (None: with itself)."""
    queries = np.asarray(query_lengths)
    keys = queries if key_lengths is None else np.asarray(key_lengths)
    slack = CPU_SLACK if device.type == "cpu" else GPU_SLACK
    members = _group(queries, keys, slack)
    groups = tuple(_group_of(queries[part], keys[part], device) for part in members)
    places = _places(queries, members, num_heads, device)
    same = key_lengths is None
    return Pairing(groups, places, places if same else _places(keys, members, num_heads, device))


def _group(queries: np.ndarray, keys: np.ndarray, slack: int) -> list[np.ndarray]:
    """Row numbers of each group: neighbours in length, as long as little is computed in vain."""
    order = np.lexsort((-queries, -keys))
    found, first, widest, real = [], 0, 0, 0
    for end in range(len(order) + 1):
        if end < len(order):
            row = order[end]
            wider, more = max(widest, int(queries[row])), real + int(queries[row] * keys[row])
            if wider * int(keys[order[first]]) * (end - first + 1) - more <= slack:
                widest, real = wider, more
                continue
            widest, real = int(queries[row]), int(queries[row] * keys[row])
        found.append(order[first:end])
        first = end
    return found


def _group_of(queries: np.ndarray, keys: np.ndarray, device: torch.device) -> Group:
    longest = int(keys.max())
    valid = None
    if keys.min() < longest:
        real = np.arange(longest)[None, :] < keys[:, None]
        valid = torch.from_numpy(real)[:, None, None, :].to(device)
    return Group(len(queries), int(queries.max()), longest, valid)


def _places(lengths: np.ndarray, members: Sequence[np.ndarray], num_heads: int, device: torch.device) -> Places:
    """Place (group, row, head, position) <-> head of a token; a place that is not real shows the first token's."""
    starts = np.cumsum(lengths) - lengths
    collect = np.empty((int(lengths.sum()), num_heads), dtype=np.int64)
    spread, sizes, before = [], [], 0
    heads = np.arange(num_heads)
    for rows in members:
        longest = int(lengths[rows].max())
        real = np.arange(longest)[None, :] < lengths[rows][:, None]
        tokens = np.where(real, starts[rows][:, None] + np.arange(longest)[None, :], 0)
        of_heads = tokens[:, None, :] * num_heads + heads[None, :, None]
        places = before + np.arange(of_heads.size).reshape(of_heads.shape)
        collect[tokens[real]] = places.transpose(0, 2, 1)[real]
        spread.append(of_heads.ravel())
        sizes.append(of_heads.size)
        before += of_heads.size
    flat = torch.from_numpy(np.concatenate(spread))
    return Places(flat.to(device), torch.from_numpy(collect.ravel()).to(device), tuple(sizes))


class _Moved(torch.autograd.Function):
    """Rows of x by number; the gradient goes back by numbers too, since no real row is taken twice."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(there, back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _, back = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


def spread(packed: torch.Tensor, places: Places, groups: Sequence[Group], num_heads: int) -> list[torch.Tensor]:
    """[tokens, heads * width] -> a group's [rows, heads, positions, width] each.

    The gradient of a place that is not real must be zero, as masks make it.
    """
    flat = packed.reshape(packed.shape[0] * num_heads, -1)
    moved: torch.Tensor = _Moved.apply(flat, places.spread, places.collect)  # type: ignore[no-untyped-call]
    parts = torch.split(moved, list(places.sizes))
    return [part.view(group.rows, num_heads, -1, flat.shape[1]) for part, group in zip(parts, groups, strict=True)]


def _collect(parts: Sequence[torch.Tensor], places: Places, num_heads: int) -> torch.Tensor:
    """What `spread` made -> [tokens, heads * width]."""
    width = parts[0].shape[-1]
    flat = parts[0].reshape(-1, width) if len(parts) == 1 else torch.cat([part.reshape(-1, width) for part in parts])
    moved: torch.Tensor = _Collected.apply(flat, places.collect, places.spread)  # type: ignore[no-untyped-call]
    return moved.view(-1, num_heads * width)


class _Collected(torch.autograd.Function):
    """Rows of real places; the others get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(there, back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        there, back = ctx.saved_tensors
        if len(there) == len(back):
            return gradient.index_select(0, back), None, None
        found = gradient.new_zeros(len(back), gradient.shape[1])
        return found.index_copy_(0, there, gradient), None, None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pairing: Pairing,
    biases: Sequence[torch.Tensor] | None,
    *,
    num_heads: int,
    dropout: float,
) -> torch.Tensor:
    """q [queries, heads * width], k and v [keys, heads * width] -> [queries, heads * width]; a bias a group, or none."""
    groups = pairing.groups
    queries = spread(q, pairing.queries, groups, num_heads)
    keys, values = (spread(part, pairing.keys, groups, num_heads) for part in (k, v))
    found = []
    for number, group in enumerate(groups):
        bias = biases[number] if biases is not None else None
        keep = keep_mask((group.rows, num_heads, group.queries, group.keys), dropout, q) if dropout > 0 else None
        found.append(_Attended.apply(queries[number], keys[number], values[number], bias, group.valid, keep))  # type: ignore[no-untyped-call]
    return _collect(found, pairing.queries, num_heads)


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


def group_biases(
    table: Any, pairing: Pairing, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> list[torch.Tensor]:
    """Each group's bias [heads, queries, keys] in fp32; `table`, the embedding of buckets, is called once.

    One query of a decoder's group looks back only: keys behind it get minus infinity.
    """
    reach = max(group.keys for group in pairing.groups)
    device = table.weight.device
    distances = torch.arange(1 - reach, reach, device=device)
    buckets = relative_buckets(
        distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    by_distance = table(buckets).float().t()
    return [_bias(by_distance, reach, group.keys, bidirectional) for group in pairing.groups]


def _bias(by_distance: torch.Tensor, reach: int, length: int, bidirectional: bool) -> torch.Tensor:
    """[heads, length, length] from the biases [heads, 2 * reach - 1] of distances from 1 - reach on."""
    near = by_distance[:, reach - length : reach + length - 1]
    bias = near.unfold(1, length, 1).flip(1)
    if bidirectional:
        return bias
    later = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
    return bias.masked_fill(later, float("-inf"))
