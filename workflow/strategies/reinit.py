"""The top layers of a pretrained model start anew, from the model's own initialiser (Zhang et al. 2021).

What the last layers have learned serves pretraining, and few rows do not unlearn it. Knows nothing of training.
"""

from __future__ import annotations

from typing import Any

import torch

from workflow.config.strategy_settings import Reinit as Settings
from workflow.errors import ConfigError
from workflow.models.layer_stack import Stack, sharing, stacks_of
from workflow.runtime import derived_seed, seeded
from workflow.strategies.base import Strategy


class Reinit(Strategy):
    """Layers of the chosen stack from the top, and the pooler; each kind of parameter as `_init_weights` makes it."""

    name = "reinit"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def prepare_model(self, model: Any, *, seed: int) -> list[str]:
        """Raises ConfigError for a model with fewer layers."""
        modules: dict[str, torch.nn.Module] = {}
        for stack in self._stacks(model):
            first = len(stack.layers) - self.settings.layers
            if first < 0:
                why = f" ({found})" if (found := sharing(model)) else ""
                raise ConfigError(
                    f"--reinit.layers {self.settings.layers}: this model has {len(stack.layers)} {stack.name} layers{why}; pass at most that"
                )
            modules |= {f"{stack.name}.{number}": stack.layers[number] for number in range(first, len(stack.layers))}
        if self.settings.pooler:
            modules |= {path: part for path, part in model.named_modules() if path.rpartition(".")[2] == "pooler"}
        if not modules:
            raise ConfigError(
                "--reinit.layers 0: this model has no pooler, so nothing would start anew; leave --reinit out"
            )
        with seeded(derived_seed(seed, "reinit")):
            for module in modules.values():
                start_anew(model, module)
        notes = [f"starts anew, from the model's own initialiser: {', '.join(modules)}"]
        if self.settings.layers and (shared := sharing(model)):
            notes.append(
                f"{shared}, so --reinit.layers {self.settings.layers} starts each layer anew that has them; --reinit.layers 0 keeps them"
            )
        return notes

    def _stacks(self, model: Any) -> list[Stack]:
        stacks = stacks_of(model)
        wanted = self.settings.stack
        return [stack for stack in stacks if len(stacks) == 1 or wanted in (stack.name, "both")]


@torch.no_grad()
def start_anew(model: Any, module: torch.nn.Module) -> None:
    """Initialises a part of a model, children before what holds them, as transformers does."""
    for parameter in module.parameters():
        parameter.data = parameter.data.float().clone()  # it may be a page of a file
        parameter.__dict__.pop("_is_hf_initialized", None)  # by which transformers keeps what was loaded
    module.apply(model._init_weights)
