"""Divides the rows of an update over ranks and micro-batches.

Knows nothing of models or tensors. Whatever the division, the rows of an update and its label count are the same, so
the numbers are too: every rank gets the same number of micro-batches (ranks must make the same collective calls), and
a rank that runs out of rows gets an empty one, which counts for nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class MicroBatchLimits:
    """What one micro-batch may hold: `rows` examples, and `tokens` of sources and targets; None: as many as there are.

    `padded` batches compute their longest source and target for every row. A batch computes its rows `passes` times.
    A single row may exceed the tokens. `of_one_length`: no rows of unlike lengths together.
    """

    rows: int | None = None
    tokens: int | None = None
    padded: bool = False
    passes: int = 1
    of_one_length: bool = False

    def computed(self, sources: Sequence[int], targets: Sequence[int]) -> int:
        """Tokens that a micro-batch of rows of these lengths computes."""
        if self.padded:
            return self.passes * len(sources) * (max(sources, default=0) + max(targets, default=0))
        return self.passes * (sum(sources) + sum(targets))


def divide(
    rows: Ints,
    sources: Ints,
    targets: Ints,
    *,
    world_size: int,
    limits: MicroBatchLimits,
    costs: npt.NDArray[np.float64] | None = None,
) -> list[list[list[int]]]:
    """[rank][micro-batch] -> row numbers; `sources`, `targets` and `costs` (by default, lengths) are those of `rows`.

    Each row goes, by falling cost, to the rank with the least to do (Graham's longest-processing-time rule, 1969).
    Where rows a micro-batch are limited, so are they a rank. Within a rank, neighbours in length share a micro-batch, and
    micro-batches are about alike.
    """
    costs = (sources + targets).astype(np.float64) if costs is None else costs
    most = len(rows) if limits.rows is None else -(-len(rows) // world_size)
    hands = [_by_length(hand, sources, targets) for hand in _deal(costs, world_size, most)]
    lengths = list(zip(sources.tolist(), targets.tolist(), strict=True))
    count = max(len(_cut(hand, lengths, limits)) for hand in hands)
    numbers = rows.tolist()
    return [
        [[numbers[place] for place in part] for part in _cut_evenly(hand, lengths, limits, count)] for hand in hands
    ]


def _deal(costs: npt.NDArray[np.float64], world_size: int, most: int) -> list[list[int]]:
    """Places of each rank's rows, `most` a rank at the most."""
    hands: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0.0, rank) for rank in range(world_size)]
    for place in np.argsort(-costs, kind="stable").tolist():
        load, rank = loads[0]
        hands[rank].append(place)
        if len(hands[rank]) < most:
            heapq.heapreplace(loads, (load + float(costs[place]), rank))
        else:
            heapq.heappop(loads)
    return hands


def _by_length(hand: Sequence[int], sources: Ints, targets: Ints) -> list[int]:
    places = np.asarray(hand, dtype=np.int64)
    return places[np.lexsort((places, -targets[places], -sources[places]))].tolist()  # type: ignore[no-any-return]


def _cut(hand: Sequence[int], lengths: Sequence[tuple[int, int]], limits: MicroBatchLimits) -> list[list[int]]:
    """Neighbours together, as many as the limits allow."""
    parts: list[list[int]] = []
    total = longest_source = longest_target = 0
    for place in hand:
        source, target = lengths[place]
        fits = not limits.of_one_length or (source, target) == (longest_source, longest_target)
        if parts and fits and (limits.rows is None or len(parts[-1]) < limits.rows):
            wider = (max(longest_source, source), max(longest_target, target))
            size = (len(parts[-1]) + 1) * sum(wider) if limits.padded else total + source + target
            if limits.tokens is None or limits.passes * size <= limits.tokens:
                parts[-1].append(place)
                total, (longest_source, longest_target) = total + source + target, wider
                continue
        parts.append([place])
        total, longest_source, longest_target = source + target, source, target
    return parts


def _cut_evenly(
    hand: Sequence[int], lengths: Sequence[tuple[int, int]], limits: MicroBatchLimits, count: int
) -> list[list[int]]:
    """`count` micro-batches whose largest is as small as such cuts make it; empty ones where rows run out."""
    if count == 1:
        return [list(hand)]
    low, high = 1, limits.computed(*zip(*(lengths[place] for place in hand), strict=True)) if hand else 1
    high = min(high, limits.tokens or high)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(hand, lengths, replace(limits, tokens=middle))) <= count:
            high = middle
        else:
            low = middle + 1
    parts = _cut(hand, lengths, replace(limits, tokens=low))
    return parts + [[] for _ in range(count - len(parts))]
