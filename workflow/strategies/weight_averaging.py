"""Averages of the weights that training passes through: SWA (Izmailov et al. 2018) and EMA (Polyak and Juditsky 1992).

Kept in fp32 beside the masters, each rank its own piece, so that no update waits for it. Batch statistics, which SWA
has to compute anew elsewhere, do not exist in these models. Knows nothing of how an average is evaluated or saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from workflow.config.strategy_settings import Ema as EmaSettings
from workflow.config.strategy_settings import Swa as SwaSettings
from workflow.config.strategy_settings import steps_of
from workflow.errors import ConfigError
from workflow.models.layer_stack import Part
from workflow.strategies.base import Masters, Strategy


class WeightAverage(Strategy, ABC):
    """average += share x (weights - average) after every update that counts; the first of these is the average itself."""

    def __init__(self, *, start: float, every: int = 1) -> None:
        self.start, self.every, self.first = start, every, 1
        self.count = 0
        """Updates that the average holds."""
        self.begun: int | None = None
        """The first of them; after `first` where that was left out, or made by a run that took no average."""
        self._average: dict[str, torch.Tensor] = {}

    @abstractmethod
    def share(self) -> float:
        """Of the newest weights."""

    def about(self, step: int) -> str:
        """What the average after `step` updates is, for people."""
        times = f"every {self.every} updates" if self.every > 1 else "each update"
        return f"{self.what()} of the weights after {times} from update {self.begun or self.first} to {step}"

    @abstractmethod
    def what(self) -> str:
        """Which average."""

    def plan(self, max_steps: int) -> None:
        """Raises ConfigError where no update would count."""
        self.first = max(1, steps_of(self.start, max_steps))
        if self.first > max_steps:
            raise ConfigError(
                f"--{self.name}.start {self.start:g}: this run has {max_steps} updates, so nothing would ever be averaged; "
                "pass a smaller number, or a share of the run such as 0.5"
            )

    def next_after(self, step: int) -> int:
        """The first update after `step` that counts."""
        return max(self.first, step + 1 + (self.first - step - 1) % self.every)

    @torch.no_grad()
    def after_step(self, step: int, masters: Masters) -> None:
        """Takes the weights in, if the update counts."""
        if step < self.first or (step - self.first) % self.every:
            return
        self.begun = self.begun or step
        share = self.share() if self._average else 1.0
        for piece in masters.pieces():
            if piece.name in self._average:
                self._average[piece.name].lerp_(piece.master, share)
            else:
                self._average[piece.name] = piece.master.detach().clone()
        self.count += 1

    def average(self) -> Mapping[str, torch.Tensor]:
        """fp32 pieces."""
        return self._average

    def state(self) -> dict[str, int]:
        """How many updates the average holds, and the first of them."""
        return {"count": self.count, "begun": self.begun} if self.begun else {}

    def load(self, state: Mapping[str, int], average: Mapping[str, torch.Tensor]) -> None:
        """As it was."""
        self.count, self.begun, self._average = state["count"], state.get("begun", self.first), dict(average)


class Swa(WeightAverage):
    """The mean of the weights after `start`, at a constant rate if one is given."""

    name = "swa"

    def __init__(self, settings: SwaSettings) -> None:
        super().__init__(start=settings.start, every=settings.every)
        self.lr = settings.lr

    def what(self) -> str:
        """The mean."""
        return "the mean (stochastic weight averaging)"

    def share(self) -> float:
        """The mean's."""
        return 1.0 / (self.count + 1)

    def rate(self, multiplier: float, *, step: int, part: Part | None, highest: float) -> float:  # noqa: ARG002
        """From start on the own rate for the highest group, the others in proportion; what is frozen stays so."""
        if self.lr is None or step < self.first or multiplier == 0.0:
            return multiplier
        return self.lr / highest


class Ema(WeightAverage):
    """average x decay + weights x (1 - decay); the decay rises to what is set, so that the first weights do not linger."""

    name = "ema"

    def __init__(self, settings: EmaSettings) -> None:
        super().__init__(start=settings.start)
        self.decay = settings.decay

    def what(self) -> str:
        """With its decay."""
        return f"an exponential moving average (decay {self.decay:g}, less in the first updates)"

    def share(self) -> float:
        """1 - decay, with a decay of at most (1 + n) / (10 + n) after n updates."""
        return 1.0 - min(self.decay, (1 + self.count) / (10 + self.count))
