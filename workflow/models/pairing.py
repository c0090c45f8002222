"""Which queries of packed sequences meet which keys, as the index tensors that an attention needs.

Knows nothing of layers, weights or biases. Sequences stand one after another, without padding. A `Pairing` is made once
a micro-batch; what a back end needs of it is made when first asked for, and goes to the device in one copy that the
host does not wait for: groups of like lengths here, tiles of a varlen kernel in `spans`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workflow.models.fused_attention import aligned
from workflow.models.spans import Spans, sent, spans_of

CPU_SLACK, GPU_SLACK = 2048, 1 << 18
"""Scores a head that a group may compute in vain before another group is cheaper."""

MATMUL, SDPA, TRITON = "matmul", "sdpa", "triton"
"""The back ends: groups by explicit products, groups by torch's fused attention, and a kernel without groups."""

Lengths = npt.NDArray[np.int64]


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
class Grouped:
    """A pairing as groups."""

    groups: tuple[Group, ...]
    queries: Places
    keys: Places


class Pairing:
    """Which queries meet which keys. In self-attention, the places of `queries` are those of `keys`."""

    def __init__(
        self,
        queries: Lengths,
        keys: Lengths | None,
        *,
        num_heads: int,
        device: torch.device,
        backend: str,
        slack: int,
    ) -> None:
        self.query_lengths = queries
        self.key_lengths = queries if keys is None else keys
        self.is_own = keys is None
        self.num_heads = num_heads
        self.device = device
        self.backend = backend
        self.slack = slack
        self._spans: dict[bool, Spans] = {}
        self._masks: dict[torch.dtype, list[torch.Tensor | None]] = {}

    @functools.cached_property
    def starts(self) -> torch.Tensor:
        """int64 [sequences]: where each sequence of queries begins."""
        return sent([np.cumsum(self.query_lengths) - self.query_lengths], self.device)[0]

    @property
    def reach(self) -> int:
        """The longest sequence of keys."""
        return int(self.key_lengths.max())

    @property
    def groups(self) -> tuple[Group, ...]:
        """Sequences of like lengths."""
        return self._grouped.groups

    @property
    def queries(self) -> Places:
        """Where the queries stand in the groups."""
        return self._grouped.queries

    @property
    def keys(self) -> Places:
        """Where the keys stand in the groups."""
        return self._grouped.keys

    @functools.cached_property
    def _grouped(self) -> Grouped:
        queries, keys, device = self.query_lengths, self.key_lengths, self.device
        members = _group(queries, keys, self.slack)
        lengths = [queries] if self.is_own else [queries, keys]
        numbers = [_places(each, members, self.num_heads) for each in lengths]
        flat = [index for there, back, _ in numbers for index in (there, back)]
        real, *indexes = sent([keys[np.concatenate(members)], *flat], device)
        places = [
            Places(there, back, sizes)
            for there, back, (_, _, sizes) in zip(indexes[::2], indexes[1::2], numbers, strict=True)
        ]
        on_device = torch.split(real, [len(rows) for rows in members])
        groups = tuple(
            _group_of(queries[rows], keys[rows], there) for rows, there in zip(members, on_device, strict=True)
        )
        return Grouped(groups, places[0], places[-1])

    def spans(self, *, is_causal: bool) -> Spans:
        """The pairing as a kernel's tiles; `is_causal` where a query sees no key behind it."""
        if is_causal not in self._spans:
            keys = None if self.is_own else self.key_lengths
            self._spans[is_causal] = spans_of(self.query_lengths, keys, is_causal=is_causal, device=self.device)
        return self._spans[is_causal]

    def masks(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        """Each group's `valid`, to be added to scores: 0, and minus infinity where no real key stands."""
        if dtype not in self._masks:
            self._masks[dtype] = [_additive(group.valid, dtype) for group in self.groups]
        return self._masks[dtype]


def pairing_of(
    query_lengths: Sequence[int],
    key_lengths: Sequence[int] | None = None,
    *,
    num_heads: int,
    device: torch.device,
    backend: str = MATMUL,
    gpu_slack: int = GPU_SLACK,
) -> Pairing:
    """Pairs the i-th sequence of queries with the i-th of keys (None: with itself); no sequence is empty.

    On a GPU, up to `gpu_slack` scores of a group may be computed in vain.
    """
    slack = CPU_SLACK if device.type == "cpu" else gpu_slack
    keys = None if key_lengths is None else np.asarray(key_lengths, dtype=np.int64)
    queries = np.asarray(query_lengths, dtype=np.int64)
    return Pairing(queries, keys, num_heads=num_heads, device=device, backend=backend, slack=slack)


def _group(queries: Lengths, keys: Lengths, slack: int) -> list[Lengths]:
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


def _group_of(queries: Lengths, keys: Lengths, on_device: torch.Tensor) -> Group:
    """A group of these lengths; `on_device` are the keys' lengths there."""
    longest = int(keys.max())
    valid = None
    if keys.min() < longest:
        places = torch.arange(longest, device=on_device.device)
        valid = (places[None, :] < on_device[:, None])[:, None, None, :]
    return Group(len(queries), int(queries.max()), longest, valid)


def _places(lengths: Lengths, members: Sequence[Lengths], num_heads: int) -> tuple[Lengths, Lengths, tuple[int, ...]]:
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
    return np.concatenate(spread), collect.ravel(), tuple(sizes)


def _additive(valid: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if valid is None:
        return None
    return aligned(torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, float("-inf")))


class _Moved(torch.autograd.Function):
    """Rows of x by number, `there`; `back` names the place of each row of x, so no two gradients meet in one row.

    Where `there` is longer, its other places are not real and their gradient, zero, is left; where it is shorter, the other
    rows of x get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(there, back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        there, back = ctx.saved_tensors
        if len(there) >= len(back):
            return gradient.index_select(0, back), None, None
        found = gradient.new_zeros(len(back), gradient.shape[1])
        return found.index_copy_(0, there, gradient), None, None


def spread(packed: torch.Tensor, places: Places, groups: Sequence[Group], num_heads: int) -> list[torch.Tensor]:
    """[tokens, heads * width] -> a group's [rows, heads, positions, width] each.

    The gradient of a place that is not real must be zero, as masks make it.
    """
    flat = packed.reshape(packed.shape[0] * num_heads, -1)
    moved: torch.Tensor = _Moved.apply(flat, places.spread, places.collect)  # type: ignore[no-untyped-call]
    parts = torch.split(moved, list(places.sizes))
    return [part.view(group.rows, num_heads, -1, flat.shape[1]) for part, group in zip(parts, groups, strict=True)]


def collect(parts: Sequence[torch.Tensor], places: Places, num_heads: int) -> torch.Tensor:
    """What `spread` made -> [tokens, heads * width]."""
    width = parts[0].shape[-1]
    flat = parts[0].reshape(-1, width) if len(parts) == 1 else torch.cat([part.reshape(-1, width) for part in parts])
    moved: torch.Tensor = _Moved.apply(flat, places.collect, places.spread)  # type: ignore[no-untyped-call]
    return moved.view(-1, num_heads * width)
