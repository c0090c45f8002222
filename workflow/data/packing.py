"""Divides the rows of an update over ranks and micro-batches, and makes each micro-batch's tensors.

Knows nothing of models. Whatever the division, the rows of an update and its label count are the same, so the
numbers are too: every rank gets the same number of micro-batches (ranks must make the same collective calls),
and a rank that runs out of rows gets an empty one, which counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workflow.data.features import Features

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """One padded micro-batch.

    `input_ids`, `attention_mask` int64 [rows, longest prompt]; `labels` int64 [rows, longest completion], -100 where
    padded; `rows` are row numbers of the split (empty for a batch that only keeps the ranks in step);
    `num_source_tokens` counts real tokens.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    num_source_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        ids, mask, labels = (
            t.to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.labels)
        )
        return Batch(self.rows, ids, mask, labels, self.num_source_tokens)


def divide(
    rows: npt.NDArray[np.int64], costs: npt.NDArray[np.int32], *, world_size: int, micro_batch_size: int
) -> list[list[list[int]]]:
    """[rank][micro-batch] -> row numbers.

    Rows are dealt to ranks by falling cost, back and forth, so that every rank gets about the same work; within a
    rank, neighbours in length share a micro-batch, so that little is padded.
    """
    order = rows[np.argsort(-costs, kind="stable")].tolist()
    hands: list[list[int]] = [[] for _ in range(world_size)]
    for number, row in enumerate(order):
        turn, seat = divmod(number, world_size)
        hands[seat if turn % 2 == 0 else world_size - 1 - seat].append(row)
    num_micro_batches = -(-max(map(len, hands)) // micro_batch_size)
    return [
        [hand[start * micro_batch_size : (start + 1) * micro_batch_size] for start in range(num_micro_batches)]
        for hand in hands
    ]


def collate(features: Features, rows: Sequence[int], *, pad_id: int) -> Batch:
    """Pads the rows to their longest; without rows, one row of padding whose labels are all ignored."""
    if not rows:
        one = torch.full((1, 1), pad_id)
        return Batch((), one, torch.ones_like(one), torch.full((1, 1), IGNORED_LABEL), 0)
    sources = [features.source(row) for row in rows]
    targets = [features.target(row) for row in rows]
    return Batch(
        rows=tuple(rows),
        input_ids=pad(sources, pad_id),
        attention_mask=pad([np.ones_like(ids) for ids in sources], 0),
        labels=pad(targets, IGNORED_LABEL),
        num_source_tokens=sum(map(len, sources)),
    )


def pad(rows: Sequence[npt.NDArray[np.int32] | Sequence[int]], value: int) -> torch.Tensor:
    """int64 [rows, longest], filled up at the right."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
