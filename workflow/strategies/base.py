"""What a strategy is: seams that do nothing unless it says otherwise, and what flows through them.

Knows nothing of the training loop, ranks or files; what a strategy needs of them comes as `Masters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from workflow.models.layer_stack import Part, sharing

LogitLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(fp32 logits [passes, n, width], targets: int64 labels [n] or float [n, width]) -> the loss of each, fp32 [n]."""
TOKENS = "tokens"
"""The problem of models that write, beside the names of `--problem`: a label a token, out of the whole vocabulary."""


@dataclass(frozen=True)
class Group:
    """Parameters by name that share a rate and a weight decay; `part` where all stand in one place of the model."""

    name: str
    parameters: tuple[str, ...]
    initial_lr: float
    weight_decay: float
    part: Part | None = None
    is_head: bool = False


@dataclass(frozen=True)
class Piece:
    """This rank's share of a weight that trains, flat: `master` is fp32, and stands from `start` on in the flat whole weight.

    `working` is what the next forward pass reads on this rank (maybe bf16, maybe the same memory), and stands from
    `working_start` on. `dimensions` is the whole weight's number of them.
    """

    name: str
    dimensions: int
    master: torch.Tensor
    start: int
    working: torch.Tensor
    working_start: int


class Masters(Protocol):
    """The weights that train, whatever the ZeRO stage. Calls that say "collective" are made by all ranks alike."""

    def pieces(self) -> Iterator[Piece]:
        """Of every weight that trains, in the model's order; of each, maybe nothing is this rank's."""

    def write(self, piece: Piece) -> None:
        """Says that a piece's tensors were changed in place."""

    def real(self, piece: Piece) -> torch.Tensor:
        """A piece's master without what only fills it up behind the whole weight's end."""

    def whole(self, name: str, master: torch.Tensor) -> torch.Tensor:
        """The whole weight, fp32 in its own shape, from pieces like `Piece.master`; collective."""

    def part_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """This rank's piece of a whole weight, like `Piece.master`."""

    def total(self, counts: Sequence[float]) -> list[float]:
        """Sums over the whole weights from those over this rank's pieces; collective."""


class Strategy:
    """Base of all: every seam does nothing. `name` is the setting that turns it on."""

    name: ClassVar[str]
    by_layer: ClassVar[bool] = False
    """Whether it looks at `Group.part`, so that groups must not span layers."""
    passes: int = 1
    """Forward passes of each row in one batch."""

    def plan(self, max_steps: int) -> None:
        """Told the run's length before anything starts. Raises ConfigError where there is nothing left to do in it."""

    def prepare_model(self, model: Any, *, seed: int) -> list[str]:  # noqa: ARG002
        """Changes a model that a new run starts from, alike on every rank; notes for people. Raises ConfigError."""
        shared = sharing(model) if self.by_layer else None
        return [f"{shared}, so --{self.name} does not tell them apart: they count as that many"] if shared else []

    def param_groups(self, groups: Sequence[Group], *, lr: float) -> list[Group]:  # noqa: ARG002
        """The groups with other rates; `lr` is the run's. Raises ConfigError for a model that does not fit."""
        return list(groups)

    def rate(self, multiplier: float, *, step: int, part: Part | None, highest: float) -> float:  # noqa: ARG002
        """What a group's initial rate is multiplied by at `step`, given what the schedule says; `highest` is the largest initial rate."""
        return multiplier

    def loss(self, inner: LogitLoss, problem: str) -> LogitLoss | None:  # noqa: ARG002
        """Another loss around `inner`, or None: no change. Raises ConfigError for a problem that it does not know."""
        return None

    def begin(self, masters: Masters) -> None:
        """Called once, before the first update of this process, with the weights as they are then."""

    def after_step(self, step: int, masters: Masters) -> None:
        """Called after every update that was made."""

    def figures(self, masters: Masters) -> dict[str, float]:  # noqa: ARG002
        """What to write beside an evaluation's metrics; collective."""
        return {}

    # ---- state, for checkpoints

    def average(self) -> Mapping[str, torch.Tensor]:
        """Weights to evaluate and save beside the model's own, in pieces by name; nothing where there are none (yet)."""
        return {}

    def about(self, step: int) -> str:  # noqa: ARG002
        """What the average after `step` updates is, for people."""
        return ""

    def state(self) -> dict[str, int]:
        """Numbers to go on with; what `average` holds is saved besides."""
        return {}

    def load(self, state: Mapping[str, int], average: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `state` and `average` gave."""
