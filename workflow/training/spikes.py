"""Tells when an update's loss stands far above those of the updates before it.

Only looks. Median and median deviation instead of mean and deviation, so that one spike does not hide the next.
Knows nothing of models or files.
"""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 100
LEAST = 25
"""Updates before anything is said."""
SIGMAS = 10.0
LEAST_SHARE = 0.5
"""A spike also lies this share of the median above it: a loss that hardly moves has a tiny deviation."""
LEAST_RISE = 0.1
"""Nats: what a loss near zero does below that matters to nobody."""
MAD_TO_SIGMA = 1.4826
"""A normal distribution's deviation over its median absolute deviation."""


class Spikes:
    """The losses of the last updates."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)

    def look(self, loss: float) -> str | None:
        """What is odd about this loss, if anything."""
        told = self._odd(loss) if len(self._last) >= LEAST else None
        self._last.append(loss)
        return told

    def _odd(self, loss: float) -> str | None:
        usual = statistics.median(self._last)
        sigma = MAD_TO_SIGMA * statistics.median(abs(value - usual) for value in self._last)
        if loss <= usual + max(SIGMAS * sigma, LEAST_SHARE * abs(usual), LEAST_RISE):
            return None
        return f"loss {loss:.4g} stands out from the last {len(self._last)} updates (median {usual:.4g}, deviation {sigma:.2g})"
