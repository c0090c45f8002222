"""Which rows are computed together, and by which rank: batches and shares of like length.

Pure functions of numbers; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workflow.runtime import Ranks


def batches_by_length(lengths: Sequence[int], batch_size: int, num_batches: int | None = None) -> list[list[int]]:
    """The positions of `lengths` in batches of like length, longest first.

    `num_batches` is given where ranks must make the same number of calls; missing batches are empty ones.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches + [[] for _ in range((num_batches or 0) - len(batches))]


def share_by_length(lengths: npt.NDArray[np.integer], ranks: Ranks, *, batch_size: int) -> tuple[list[int], int]:
    """This rank's rows, dealt out by length so that the work is even, and the number of batches of the largest share."""
    by_length: list[int] = np.argsort(-lengths, kind="stable").tolist()
    most = -(-len(by_length) // ranks.world_size)
    return by_length[ranks.rank :: ranks.world_size], -(-most // batch_size)
