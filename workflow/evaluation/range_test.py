"""What a learning-rate range test comes to: the smoothed loss, when it has diverged, which rates it suggests.

Pure functions of numbers. The test is Smith's (2015, https://arxiv.org/abs/1506.01186; 2018, https://arxiv.org/abs/1803.09820);
the conventions for reading a rate off it are fastai's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SMOOTHING = 0.9
"""Weight of what came before in the exponential mean of losses."""
DIVERGED = 4.0
"""A smoothed loss beyond so many times the least one ends the test."""
SKIPPED_SHARE = 0.1
"""First and last points that no slope is read off: the mean begins there, or the loss already rises."""
FEWEST_POINTS = 5


@dataclass(frozen=True)
class Suggestion:
    """A rate, which convention it is by, and that convention in words."""

    name: str
    rate: float
    convention: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass
class RangeTest:
    """Rates and the losses that were found before the update at that rate; grows by `add`."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    _mean: float = 0.0

    def add(self, rate: float, loss: float) -> None:
        """One update; both are finite."""
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._mean / (1 - SMOOTHING ** len(self.rates)))

    @property
    def has_diverged(self) -> bool:
        """Whether the smoothed loss is beyond DIVERGED times its least value."""
        return bool(self.smoothed) and self.smoothed[-1] > DIVERGED * min(self.smoothed)

    def suggestions(self) -> list[Suggestion]:
        """The rate of the steepest fall, then a tenth of the rate of the least loss; none where the loss never fell."""
        steepest = self._steepest()
        if steepest is None:
            return []
        least = int(np.argmin(self.smoothed))
        return [
            Suggestion("steepest descent", self.rates[steepest], "where the smoothed loss falls fastest by log(lr)"),
            Suggestion(
                "least loss / 10", self.rates[least] / 10, "a tenth of the rate at which the smoothed loss is least"
            ),
        ]

    def _steepest(self) -> int | None:
        if len(self.rates) < FEWEST_POINTS:
            return None
        slopes = np.gradient(np.array(self.smoothed), np.log(np.array(self.rates)))
        skipped = math.ceil(SKIPPED_SHARE * len(slopes))
        inner = slopes[skipped : len(slopes) - skipped] if len(slopes) > 2 * skipped else slopes
        place = int(np.argmin(inner)) + (skipped if len(slopes) > 2 * skipped else 0)
        return place if slopes[place] < 0 else None

    def as_json(self) -> list[dict[str, Any]]:
        """One object an update."""
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        return [
            {"step": step, "lr": rate, "loss": loss, "smoothed": mean}
            for step, (rate, loss, mean) in enumerate(rows, start=1)
        ]
