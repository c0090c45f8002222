"""The settings of fine-tuning strategies: a class for each, and the section that lists them.

Knows nothing of how a strategy works (`workflow/strategies/`); a strategy that is not named is None, and off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from workflow.config.sections import Implied, Section, setting

TOP_LR, GROUPED_LR = 3.5e-6, 1e-6
"""Rates of the presets where --lr is not set."""
AVERAGES = ("swa", "ema")
"""Strategies whose average is a model beside the run's own."""


def steps_of(value: float, max_steps: int) -> int:
    """Updates that a setting means which takes a share of the run (below 1) or a number of updates (from 1 on)."""
    return round(value * max_steps) if value < 1 else int(value)


class LayerwiseLrd(Section):
    """The learning rate falls from layer to layer downward"""

    top_lr: float | None = setting(None, "peak rate of the top layer; by default --lr", rivals=("lr",), gt=0)
    decay: float = setting(0.9, "what each layer's rate is of that of the layer above it", gt=0, le=1)
    head_lr: float | None = setting(None, "peak rate of head and pooler; by default top_lr x 3.6 / 3.5", gt=0)


class GroupedLayerwiseLrd(Section):
    """Three learning rates, for the lower, middle and upper third of the layers"""

    base_lr: float | None = setting(
        None, "peak rate of the embeddings and the lowest third of the layers; by default --lr", rivals=("lr",), gt=0
    )
    factors: tuple[float, float, float] = setting(
        (1.0, 1.75, 3.5), "what the rates of the three thirds, lowest first, are of base_lr"
    )
    head: float = setting(3.6, "what the rate of head and pooler is of base_lr", gt=0)

    @field_validator("factors")
    @classmethod
    def _above_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("each factor must be above 0; --freeze keeps layers from learning")
        return value


class Reinit(Section):
    """The top layers start anew, from the model's own initialiser"""

    layers: int = setting(1, "layers from the top that start anew", ge=0)
    stack: Literal["decoder", "encoder", "both"] = setting(
        "decoder", "whose layers, in an encoder-decoder model; others have one stack only"
    )
    pooler: bool = setting(True, "whether the pooler, where there is one, starts anew too")

    @model_validator(mode="after")
    def _does_something(self) -> Reinit:
        if not self.layers and not self.pooler:
            raise ValueError("reinit with layers 0 and pooler false does nothing; leave it out")
        return self


class Freeze(Section):
    """The head learns first, then everything, or one more layer after the other (gradual unfreezing)"""

    head: float = setting(
        0.1, "updates in which the head learns alone: a number, or below 1 a share of the run; 0 for none", ge=0
    )
    every: float | None = setting(
        None,
        "after these, updates until one more layer learns, from the top down, the embeddings last: a number, or below 1 a share of the run; "
        "by default all learn at once",
        gt=0,
    )

    @model_validator(mode="after")
    def _does_something(self) -> Freeze:
        if not self.head and self.every is None:
            raise ValueError("freeze with head 0 and without every does nothing; leave it out")
        return self


class LabelSmoothing(Section):
    """Targets give a little of their weight to all labels"""

    epsilon: float = setting(0.1, "the weight that all labels share", ge=0, lt=1)


class RDrop(Section):
    """Two passes with different dropout are made to agree"""

    alpha: float = setting(1.0, "weight of the divergence between the two passes", ge=0)


class Swa(Section):
    """The mean of the weights from some update on (stochastic weight averaging)"""

    start: float = setting(0.75, "the first update whose weights count: a number, or below 1 a share of the run", ge=0)
    every: int = setting(1, "updates between two that count", ge=1)
    lr: float | None = setting(
        None, "constant rate from start on, of the group with the highest one; by default the schedule goes on", gt=0
    )


class Ema(Section):
    """An exponential moving average of the weights"""

    start: float = setting(0.0, "the first update whose weights count: a number, or below 1 a share of the run", ge=0)
    decay: float = setting(
        0.999, "the average's own share in each update; less in the first ones: at most (1 + n) / (10 + n)", gt=0, lt=1
    )


class StaticSparsity(Section):
    """Weights that are zero at the start stay zero"""

    keep: bool = setting(True, "false lets the zeros of a sparse model train, so that it becomes dense")


class StrategiesSection(Section):
    """Fine-tuning strategies; --NAME turns one on by its defaults, --NAME false off"""

    affects = "numbers"
    strategy: Literal["linear_scheduler", "layerwise_lrd", "grouped_layerwise_lrd"] | None = setting(
        None,
        "settings by the name of a practice: the linear schedule, layer-wise decay (top layer 3.5e-6, x0.9 a layer, head 3.6e-6), or its grouped "
        "form (base rate 1e-6); --lr, other flags and files win over it",
    )
    layerwise_lrd: LayerwiseLrd | None = setting(
        None, "layer-wise learning-rate decay", rivals=("grouped_layerwise_lrd",)
    )
    grouped_layerwise_lrd: GroupedLayerwiseLrd | None = setting(None, "learning rates by thirds of the layers")
    reinit: Reinit | None = setting(None, "top layers start anew")
    freeze: Freeze | None = setting(None, "the head first, gradual unfreezing")
    label_smoothing: LabelSmoothing | None = setting(None, "label smoothing")
    r_drop: RDrop | None = setting(None, "two passes with different dropout agree")
    static_sparsity: StaticSparsity | None = setting(None, "zeros stay zeros")
    swa: Swa | None = setting(None, "stochastic weight averaging")
    ema: Ema | None = setting(None, "exponential moving average of the weights")

    @model_validator(mode="after")
    def _check_together(self) -> StrategiesSection:
        if self.layerwise_lrd is not None and self.grouped_layerwise_lrd is not None:
            raise ValueError(
                "layerwise_lrd and grouped_layerwise_lrd both set the layers' rates; pass one of them (--layerwise_lrd false turns one off)"
            )
        return self

    @property
    def passes(self) -> int:
        """How often each row passes through the model in an update."""
        return 1 if self.r_drop is None else 2

    @property
    def averages(self) -> tuple[str, ...]:
        """The averages of weights that a run makes."""
        return tuple(name for name in AVERAGES if getattr(self, name) is not None)


def preset(given: Mapping[str, Any]) -> Implied:
    """What --strategy says, below all that is `given`; nothing of a name that there is none of."""
    name, has_lr = given.get("strategy"), given.get("lr") is not None
    values: dict[str, dict[str, Any]] = {
        "linear_scheduler": {"lr_scheduler": "linear"},
        "layerwise_lrd": {"layerwise_lrd": {} if has_lr else {"top_lr": TOP_LR}},
        "grouped_layerwise_lrd": {"grouped_layerwise_lrd": {} if has_lr else {"base_lr": GROUPED_LR}},
    }
    return Implied("strategy", f"--strategy {name}", values.get(str(name), {}))
