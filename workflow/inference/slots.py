"""Decode slots: the keys and values of answers in the making, in pools of like source length.

Knows nothing of requests or sampling. The rows in use are always the first ones of a pool, so a step works on slices
and copies nothing; when a row leaves, the last one moves into its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workflow.models.attention import relative_buckets
from workflow.models.t5_weights import T5Weights, bias_table

SMALLEST_SOURCE = 32
FIRST_ROWS = 4
FIRST_TARGET = 16


def source_bucket(length: int) -> int:
    """The source length of the pool that a prompt of `length` tokens belongs to: a power of two."""
    return max(SMALLEST_SOURCE, 1 << (length - 1).bit_length())


@dataclass(frozen=True)
class Step:
    """What all layers of a decode step share, for one pool: where new keys go, biases and masks.

    `rows` counts the answers; `self_bias` fp32 [tables, rows, heads, 1, target] is -inf at positions yet to come;
    `cross_mask` fp32 [rows, 1, 1, source] is -inf behind a prompt's end.
    """

    rows: int
    target: int
    source: int
    row_numbers: torch.Tensor
    positions: torch.Tensor
    self_bias: torch.Tensor
    cross_mask: torch.Tensor


class Pool:
    """Slots of answers whose prompts have at most `source` tokens; the tensors grow by doubling."""

    def __init__(self, weights: T5Weights, source: int) -> None:
        self.weights = weights
        self.source = source
        self.occupants: list[Any] = []
        self.positions: list[int] = []
        self.source_lengths: list[int] = []
        self._rows, self._target = 0, FIRST_TARGET
        self.cross = self._empty(0, source)
        self.own = self._empty(0, FIRST_TARGET)

    def _empty(self, rows: int, length: int) -> torch.Tensor:
        """Keys and values [2, layers, rows, heads, length, d_kv]."""
        shape = (2, len(self.weights.decoder), rows, self.weights.num_heads, length, self.weights.d_kv)
        return torch.zeros(shape, device=self.weights.device, dtype=self.weights.dtype)

    def __len__(self) -> int:
        return len(self.occupants)

    def add(self, occupant: Any, cross: torch.Tensor) -> None:
        """Takes a new answer, with its prompt's keys and values [2, layers, heads, tokens, d_kv]."""
        row, length = len(self.occupants), cross.shape[3]
        if row == self._rows:
            self._grow(rows=max(FIRST_ROWS, 2 * self._rows))
        self.cross[:, :, row, :, :length] = cross
        self.occupants.append(occupant)
        self.positions.append(0)
        self.source_lengths.append(length)

    def remove(self, row: int) -> None:
        """Frees a row; the last one takes its place. What is left is zeros: masked places are still multiplied, and an
        answer that failed may have left numbers there that are none."""
        last = len(self.occupants) - 1
        self._wipe(row)
        if row != last:
            length, reached = self.source_lengths[last], self.positions[last]
            self.cross[:, :, row, :, :length] = self.cross[:, :, last, :, :length]
            self.own[:, :, row, :, :reached] = self.own[:, :, last, :, :reached]
            self._wipe(last)
        for entries in (self.occupants, self.positions, self.source_lengths):
            entries[row] = entries[last]
            entries.pop()

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Rows decode on as if they were others of the same prompt, which have come as far."""
        reached = self.positions[sources[0]]
        self.own[:, :, targets, :, :reached] = self.own[:, :, sources, :, :reached]

    def _wipe(self, row: int) -> None:
        self.cross[:, :, row, :, : self.source_lengths[row]] = 0
        self.own[:, :, row, :, : self.positions[row] + 1] = 0

    def _grow(self, *, rows: int | None = None, target: int | None = None) -> None:
        rows, target = rows or self._rows, target or self._target
        own, cross = self._empty(rows, target), self.cross
        own[:, :, : self._rows, :, : self._target] = self.own
        if rows > self._rows:
            cross = self._empty(rows, self.source)
            cross[:, :, : self._rows] = self.cross
        self.own, self.cross, self._rows, self._target = own, cross, rows, target

    @property
    def room(self) -> tuple[int, int]:
        """Rows and target positions that the tensors have; they move in memory when it changes."""
        return self._rows, self._target

    def reserve(self) -> None:
        """Makes room for one more position of every answer."""
        while max(self.positions) >= self._target:
            self._grow(target=2 * self._target)

    def step(self, tables: torch.Tensor, *, rows: int = 0, whole: bool = False) -> Step:
        """The next position of every answer, after `reserve`. `tables` [tables, heads, distances], see `distance_tables`.

        `rows` asks for meaningless rows behind the real ones, `whole` for all of the room: both make steps of one shape.
        """
        spare = [0] * (rows - len(self.occupants))
        positions = torch.tensor(self.positions + spare, device=self.weights.device)
        lengths = torch.tensor(self.source_lengths + [1 for _ in spare], device=self.weights.device)
        target = self._target if whole else max(self.positions) + 1
        source = self.source if whole else max(self.source_lengths)
        distances = positions[:, None] - torch.arange(target, device=self.weights.device)
        bias = tables[:, :, distances.clamp(min=0, max=tables.shape[2] - 1)].masked_fill(distances < 0, float("-inf"))
        behind = torch.arange(source, device=self.weights.device)[None, :] >= lengths[:, None]
        mask = torch.zeros(behind.shape, device=self.weights.device).masked_fill(behind, float("-inf"))
        return Step(
            len(positions),
            target,
            source,
            torch.arange(len(positions), device=self.weights.device),
            positions,
            bias.transpose(1, 2).unsqueeze(3),
            mask[:, None, None, :],
        )

    def advance(self) -> None:
        """After a step: every answer is one position further."""
        self.positions = [position + 1 for position in self.positions]

    def attend_own(self, layer: int, step: Step, qkv: torch.Tensor, *, table: int) -> torch.Tensor:
        """Self-attention of one new position, queries, keys and values [rows, 3, heads, d_kv]; keeps the latter two."""
        own = self.own[:, layer]
        own[:, step.row_numbers, :, step.positions] = qkv[:, 1:]
        keys, values = own[:, : step.rows, :, : step.target]
        return one_query_attention(qkv[:, 0], keys, values, step.self_bias[table])

    def attend_cross(self, layer: int, step: Step, q: torch.Tensor) -> torch.Tensor:
        """Attention over the prompts, q [rows, heads, d_kv]."""
        keys, values = self.cross[:, layer, : step.rows, :, : step.source]
        return one_query_attention(q, keys, values, step.cross_mask)


def one_query_attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """q [rows, heads, d_kv], keys and values [rows, heads, length, d_kv], bias fp32 -> [rows, heads, d_kv].

    For a single query, two plain matrix products beat `scaled_dot_product_attention` on CPUs.
    """
    scores = (q.unsqueeze(2) @ keys.transpose(2, 3)).float() + bias
    return (scores.softmax(dim=-1).to(values.dtype) @ values).squeeze(2)


def distance_tables(weights: T5Weights) -> torch.Tensor:
    """The decoder's bias by distance, fp32 [tables, heads, distances]: one table for T5, one a layer for UMT5.

    It ends at the distance from which all share a bucket.
    """
    config = weights.config
    buckets = relative_buckets(
        -torch.arange(config.relative_attention_max_distance + 1, device=weights.device),
        bidirectional=False,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    tables = [table for layer in weights.decoder if (table := bias_table(layer.attention)) is not None]
    with weights.gather(tables):
        return torch.stack([table[buckets].T.float() for table in tables])
