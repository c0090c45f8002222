"""The tensors of a micro-batch, padded or ragged.

Knows nothing of models, nor of how rows came together. A micro-batch without rows, which only keeps a rank in step
with the others, counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workflow.data.encoders import INPUT, TOKEN_TYPES
from workflow.data.features import Features

IGNORED_LABEL = -100
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
PASS = 0x1B873593CC9E2D51


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

    def repeated(self, times: int) -> Batch:
        """All rows, then all of them again."""
        ids, mask, labels = (t.repeat(times, 1) for t in (self.input_ids, self.attention_mask, self.labels))
        return Batch(self.rows * times, ids, mask, labels, self.num_source_tokens * times)


def collate(features: Features, rows: Sequence[int], *, pad_id: int) -> Batch:
    """Pads the rows to their longest; without rows, one row of padding whose labels are all ignored."""
    if not rows:
        one = torch.full((1, 1), pad_id)
        return Batch((), one, torch.ones_like(one), torch.full((1, 1), IGNORED_LABEL), 0)
    sources = [features.row("prompt", row) for row in rows]
    targets = [features.row("completion", row) for row in rows]
    return Batch(
        rows=tuple(rows),
        input_ids=pad(sources, pad_id),
        attention_mask=pad([np.ones_like(ids) for ids in sources], 0),
        labels=pad(targets, IGNORED_LABEL),
        num_source_tokens=sum(map(len, sources)),
    )


@dataclass(frozen=True)
class Ragged:
    """Sequences one after another, without padding: `ids` and (or None) `token_types` int64 [tokens]; tokens of each.

    `keys` int64 [tokens] are random numbers that dropout's masks follow from; None leaves drawing them to the model.
    """

    ids: torch.Tensor
    lengths: tuple[int, ...]
    token_types: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def repeated(self, times: int) -> Ragged:
        """All sequences, then all of them again, with other keys."""
        types = self.token_types.repeat(times) if self.token_types is not None else None
        keys = torch.cat([self.keys ^ (number * PASS) for number in range(times)]) if self.keys is not None else None
        return Ragged(self.ids.repeat(times), self.lengths * times, types, keys)

    def to(self, device: torch.device) -> Ragged:
        """The same sequences on a device."""
        # Pinned: else the host waits for the copy.
        ids, types, keys = (
            part.pin_memory() if part is not None and device.type == "cuda" else part
            for part in (self.ids, self.token_types, self.keys)
        )
        assert ids is not None
        types, keys = (part.to(device, non_blocking=True) if part is not None else None for part in (types, keys))
        return Ragged(ids.to(device, non_blocking=True), self.lengths, types, keys)


def ragged(features: Features, field: str, rows: Sequence[int], *, pad_id: int, seed: int | None = None) -> Ragged:
    """A field of some rows; an input comes with its token types where there are any, and with keys where a seed is given.

    Without rows, one sequence of one padding token, for batches that only keep ranks in step.
    """
    if not rows:
        return Ragged(torch.tensor([pad_id]), (1,), keys=torch.zeros(1, dtype=torch.int64))
    found = [features.row(field, row) for row in rows]
    has_types = field == INPUT and TOKEN_TYPES in features.fields
    types = _one_after_another([features.row(TOKEN_TYPES, row) for row in rows]) if has_types else None
    lengths = tuple(map(len, found))
    keys = torch.from_numpy(token_keys(seed, rows, lengths)) if seed is not None else None
    return Ragged(_one_after_another(found), lengths, types, keys)


def token_keys(seed: int, rows: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """A random number for each token, a function of seed, row number and position alone (splitmix64 of a counter each)."""
    lengths_of, row_numbers = np.asarray(lengths), np.asarray(rows, dtype=np.uint64)
    starts = np.cumsum(lengths_of) - lengths_of
    positions = np.arange(lengths_of.sum()) - np.repeat(starts, lengths_of)
    of_rows = _mixed(_mixed(np.full(len(row_numbers), seed, dtype=np.uint64)) + row_numbers * GOLDEN)
    return _mixed(np.repeat(of_rows, lengths_of) + (positions.astype(np.uint64) + np.uint64(1)) * GOLDEN).view(np.int64)


def _mixed(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of splitmix64 (Steele et al. 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _one_after_another(rows: Sequence[npt.NDArray[np.int32]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(rows).astype(np.int64))


@dataclass(frozen=True)
class ScoreBatch:
    """One padded micro-batch of inputs to be scored.

    `input_ids`, `attention_mask` and (or None) `token_types` int64 [rows, longest input]; `targets` float32
    [rows, width], without rows where there are no targets; `rows` as in `Batch`.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_types: torch.Tensor | None
    targets: torch.Tensor

    def to(self, device: torch.device) -> ScoreBatch:
        """The same batch on a device."""
        ids, mask, targets = (
            t.to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.targets)
        )
        types = self.token_types.to(device, non_blocking=True) if self.token_types is not None else None
        return ScoreBatch(self.rows, ids, mask, types, targets)

    def repeated(self, times: int) -> ScoreBatch:
        """All rows, then all of them again."""
        ids, mask, targets = (t.repeat(times, 1) for t in (self.input_ids, self.attention_mask, self.targets))
        types = self.token_types.repeat(times, 1) if self.token_types is not None else None
        return ScoreBatch(self.rows * times, ids, mask, types, targets)


def collate_scores(features: Features, rows: Sequence[int], *, pad_id: int) -> ScoreBatch:
    """Pads the inputs to their longest; without rows, one row of padding and no target."""
    has_types = TOKEN_TYPES in features.fields
    if not rows:
        one = torch.full((1, 1), pad_id)
        types = torch.zeros_like(one) if has_types else None
        return ScoreBatch((), one, torch.ones_like(one), types, torch.zeros(0, features.targets.shape[1]))
    inputs = [features.row(INPUT, row) for row in rows]
    return ScoreBatch(
        rows=tuple(rows),
        input_ids=pad(inputs, pad_id),
        attention_mask=pad([np.ones_like(ids) for ids in inputs], 0),
        token_types=pad([features.row(TOKEN_TYPES, row) for row in rows], 0) if has_types else None,
        targets=torch.from_numpy(features.targets[list(rows)]),
    )


def pad(rows: Sequence[npt.NDArray[np.int32] | Sequence[int]], value: int) -> torch.Tensor:
    """int64 [rows, longest], filled up at the right."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
