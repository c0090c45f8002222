"""Attention over packed sequences, with T5's bias by distance: no padding token is ever computed.

Knows nothing of layers or weights. Tokens of all sequences stand one after another, [tokens, ...]; a `Layout` says
which belong together. Scores are not scaled, as in T5 (Raffel et al. 2020, section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that are attended to in one call: `rows` of up to `length` tokens from token `start` on.

    Where lengths differ, `index` [rows, length] says which token of the pack stands where, and `valid` [rows, length]
    which places are real; both None where all have `length` tokens.
    """

    start: int
    num_tokens: int
    rows: int
    length: int
    index: torch.Tensor | None = None
    valid: torch.Tensor | None = None

    def rows_of(self, packed: torch.Tensor) -> torch.Tensor:
        """This group's part [rows, length, ...] of a packed tensor [tokens, ...]; places that are not real hold any token."""
        part = packed[self.start : self.start + self.num_tokens]
        return part[self.index] if self.index is not None else part.reshape(self.rows, self.length, *part.shape[1:])


@dataclass(frozen=True)
class Layout:
    """How sequences are packed: longest first; `order[i]` is the caller's number of the i-th packed sequence."""

    order: tuple[int, ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens in the pack."""
        return sum(self.lengths)


def layout_of(lengths: Sequence[int], *, waste: float = 0.0, device: torch.device | str = "cpu") -> Layout:
    """Packs sequences of these lengths; a group holds lengths down to (1 - waste) of its longest.

    `waste` 0 makes groups of equal lengths, which need no copying and no mask: best on CPUs. A GPU prefers few groups.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    packed = [lengths[number] for number in order]
    starts = [0]
    for length in packed:
        starts.append(starts[-1] + length)
    groups = []
    first = 0
    for end in range(1, len(packed) + 1):
        if end == len(packed) or packed[end] < packed[first] * (1 - waste):
            groups.append(_group(packed[first:end], starts[first], device))
            first = end
    return Layout(tuple(order), tuple(packed), tuple(starts[:-1]), tuple(groups))


def _group(lengths: Sequence[int], start: int, device: torch.device | str) -> Group:
    longest, total = lengths[0], sum(lengths)
    if lengths[-1] == longest:
        return Group(start, total, len(lengths), longest)
    each = torch.tensor(lengths, device=device)
    places = torch.arange(longest, device=device)
    valid = places[None, :] < each[:, None]
    index = ((each.cumsum(0) - each)[:, None] + places[None, :]).masked_fill(~valid, 0)
    return Group(start, total, len(lengths), longest, index, valid)


def relative_buckets(
    distances: torch.Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """T5's bucket of each distance (key position minus query position), int64 of the same shape.

    Half of the buckets are single distances, the others grow logarithmically to `max_distance` and beyond. The
    arithmetic, fp32 logarithms included, is that of the original, so that no distance falls into a neighbour's bucket.
    """
    offset: torch.Tensor | int = 0
    if bidirectional:
        num_buckets //= 2
        offset = (distances > 0).long() * num_buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = num_buckets // 2
    growth = torch.log(distances.float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    large = (exact + growth.clamp(min=0).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distances < exact, distances, large)


def bias_matrix(table: torch.Tensor, length: int, *, num_buckets: int, max_distance: int) -> torch.Tensor:
    """The encoder's bias [heads, length, length] from its table [buckets, heads]."""
    places = torch.arange(length, device=table.device)
    buckets = relative_buckets(
        places[None, :] - places[:, None], bidirectional=True, num_buckets=num_buckets, max_distance=max_distance
    )
    return table[buckets].permute(2, 0, 1).contiguous()


def packed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, layout: Layout, bias: torch.Tensor
) -> torch.Tensor:
    """Self-attention within each packed sequence: q, k, v [tokens, heads, d_kv], bias [heads, longest, longest].

    Returns [tokens, heads, d_kv].
    """
    parts = [_group_attention(q, k, v, group, bias[:, : group.length, : group.length]) for group in layout.groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _group_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Group, bias: torch.Tensor
) -> torch.Tensor:
    query, key, value = (group.rows_of(tensor).transpose(1, 2) for tensor in (q, k, v))
    mask = bias[None]
    if group.valid is not None:
        mask = mask.masked_fill(~group.valid[:, None, None, :], float("-inf"))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0).transpose(1, 2)
    return found.flatten(0, 1) if group.valid is None else found[group.valid]
