"""Which rows each update trains on: a pure function of (seed, number of rows, examples per update, step).

Knows nothing of ranks, micro-batches or lengths, so that none of them can change the order of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class DataPlan:
    """An endless sequence of epochs, each a permutation of all rows, cut into updates of `update_size` rows."""

    num_rows: int
    update_size: int
    seed: int
    _epoch: int = field(default=-1, repr=False)
    _order: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Row numbers of update `step` (1-based), int64 of shape [update_size]; an update may span epochs."""
        assert step >= 1
        position, parts, wanted = (step - 1) * self.update_size, [], self.update_size
        while wanted:
            epoch, offset = divmod(position, self.num_rows)
            part = self._permutation(epoch)[offset : offset + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return np.concatenate(parts)

    def epoch(self, step: int) -> float:
        """Passes over the data that are complete after `step` updates."""
        return step * self.update_size / self.num_rows

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch or self._order is None:
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.num_rows)
            self._epoch = epoch
        return self._order


def steps_for_epochs(num_epochs: float, num_rows: int, update_size: int) -> int:
    """Updates that pass over the rows `num_epochs` times, the last one rounded up."""
    return max(1, math.ceil(num_epochs * num_rows / update_size))
