"""Packed sequences as the tiles of a varlen attention kernel: which tokens a program has, and which it must look at.

Knows nothing of the kernel's arithmetic. Short neighbours share a tile, long sequences are cut into several, so that
no tile holds padding beyond its own rim, and none is made for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

BLOCK = 64
"""Tokens of a tile: the kernel's block of queries, and its block of keys."""
STEP = 8
"""Tiles begin at multiples of it in the pack, so that loads are aligned."""
ALIGNED = 16
"""Elements that an index tensor begins at a multiple of, so that kernels are compiled for aligned pointers alone."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Tokens are numbered through the pack; all tensors are int32, and every `last` is exclusive.

    A query sees the keys from `query_first` to `query_last` [queries], and a key is seen by the queries from `key_first`
    to `key_last` [keys]. A row of `query_tiles` [tiles, 4] says: queries from, to; keys from, to. `key_tiles` the other
    way round.
    """

    query_first: torch.Tensor
    query_last: torch.Tensor
    key_first: torch.Tensor
    key_last: torch.Tensor
    query_tiles: torch.Tensor
    key_tiles: torch.Tensor


def spans_of(queries: Numbers, keys: Numbers | None, *, is_causal: bool, device: torch.device) -> Spans:
    """Of the i-th sequence of queries over the i-th of keys (None: over itself); `is_causal` only over itself."""
    assert keys is None or not is_causal
    others = queries if keys is None else keys
    query_ends, key_ends = np.cumsum(queries), np.cumsum(others)
    query_starts, key_starts = query_ends - queries, key_ends - others
    query_first, query_last = (np.repeat(edge, queries) for edge in (key_starts, key_ends))
    key_first, key_last = (np.repeat(edge, others) for edge in (query_starts, query_ends))
    query_tiles = _tiles(query_starts, query_ends, key_starts, key_ends)
    key_tiles = _tiles(key_starts, key_ends, query_starts, query_ends)
    if is_causal:
        query_last, key_first = np.arange(len(query_last)) + 1, np.arange(len(key_first))
        query_tiles[:, 3] = query_tiles[:, 1]
        key_tiles[:, 2] = key_tiles[:, 0]
    arrays = [query_first, query_last, key_first, key_last, *map(_largest_first, (query_tiles, key_tiles))]
    first, last, seen_first, seen_last, *tiles = sent([array.astype(np.int32).ravel() for array in arrays], device)
    return Spans(first, last, seen_first, seen_last, tiles[0].view(-1, 4), tiles[1].view(-1, 4))


def _tiles(starts: Numbers, ends: Numbers, other_starts: Numbers, other_ends: Numbers) -> Numbers:
    """[tiles, 4]: a tile's tokens from, to; the other side's from, to. A sequence joins its neighbours' tile only whole."""
    found: list[tuple[int, int, int, int]] = []
    begin = end = first = 0  # of the tile that is still open
    for number, (start, stop) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if not number or _room(begin) < stop:
            if number:
                found.append((begin, end, first, number - 1))
            begin, first = start, number
            while _room(begin) < stop:
                found.append((begin, _room(begin), number, number))
                begin = _room(begin)
        end = stop
    found.append((begin, end, first, len(starts) - 1))
    tiles = np.array(found)
    return np.stack([tiles[:, 0], tiles[:, 1], other_starts[tiles[:, 2]], other_ends[tiles[:, 3]]], axis=1)


def _room(begin: int) -> int:
    """Where a tile that begins there must end."""
    return begin // STEP * STEP + BLOCK


def _largest_first(tiles: Numbers) -> Numbers:
    """The tiles that look at most come first, so that none of them is left for the end."""
    return tiles[np.argsort(tiles[:, 2] - tiles[:, 3], kind="stable")]


def sent(arrays: Sequence[npt.NDArray[np.integer]], device: torch.device) -> list[torch.Tensor]:
    """Flat arrays of one type on the device, in one copy; the host does not wait for it where memory can be pinned."""
    sizes = [len(array) for array in arrays]
    starts = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes)]).tolist()
    joined = torch.empty(starts[-1], dtype=torch.from_numpy(arrays[0]).dtype, pin_memory=device.type == "cuda")
    flat = joined.numpy()
    for array, start, size in zip(arrays, starts, sizes, strict=False):
        flat[start : start + size] = array
    moved = joined.to(device, non_blocking=True)
    return [moved[start : start + size] for start, size in zip(starts, sizes, strict=False)]
