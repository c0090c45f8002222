"""Where a model's parameters stand: embeddings, layer i of a stack, what follows the last layer, pooler, head.

Knows nothing of learning rates. Read off the model's own modules: its stacks are the outermost lists of modules
(T5's `encoder.block` and `decoder.block`, BERT's `encoder.layer`, DistilBERT's `transformer.layer`, GPT-2's `h`), so
no family and no number of layers is written down here. An adapter's weights belong to the layer that they sit in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workflow.models.load import head_names

Kind = Literal["embeddings", "layer", "final", "pooler", "head"]


@dataclass(frozen=True)
class Part:
    """A place in a model. Layers are counted from 0, the lowest; `stack` and `layers` (how many it has) are of layers and what follows them."""

    kind: Kind
    stack: str = ""
    layer: int = 0
    layers: int = 0

    @property
    def depth(self) -> int:
        """Layers between here and the top of the stack; 0 for the top layer and all that follows, `layers` for embeddings."""
        if self.kind == "embeddings":
            return self.layers
        return self.layers - 1 - self.layer if self.kind == "layer" else 0

    def __str__(self) -> str:
        if self.kind == "layer":
            return f"{self.stack}.{self.layer}"
        return f"{self.stack}.final" if self.kind == "final" else self.kind


@dataclass(frozen=True)
class Stack:
    """Layers one above the other: the path of their list in the model, what to call it, and the layers, lowest first."""

    path: str
    name: str
    layers: tuple[Any, ...]


def stacks_of(model: Any) -> list[Stack]:
    """The stacks of a model, in the order of its modules."""
    paths: list[str] = []
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in paths)
        if isinstance(module, torch.nn.ModuleList) and not is_inside and any(True for _ in module.parameters()):
            paths.append(path)
    return [Stack(path, _stack_name(path), tuple(model.get_submodule(path))) for path in paths]


def _stack_name(path: str) -> str:
    return next((part for part in path.split(".") if part in ("encoder", "decoder")), "layers")


def sharing(model: Any) -> str | None:
    """`the 12 layers of this albert are 1 set of weights`, where layers are the same modules again; None elsewhere."""
    config = model.config
    groups, layers = (getattr(config, key, None) for key in ("num_hidden_groups", "num_hidden_layers"))
    if groups is None or layers is None or groups >= layers:
        return None
    return f"the {layers} layers of this {config.model_type} are {groups} set{'s' if groups > 1 else ''} of weights"


def parts_of(model: Any) -> dict[str, Part]:
    """The part of each parameter by name, as in `named_parameters` (a tied head is the embeddings)."""
    stacks = stacks_of(model)
    deepest = max((len(stack.layers) for stack in stacks), default=0)
    heads = {*head_names(model)}
    modules = dict(model.named_modules())
    order = _stack_before(model, stacks)
    found = {}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        found[name] = _part(name, modules[owner], stacks, order[owner], deepest, is_head=name in heads)
    return found


def _stack_before(model: Any, stacks: Sequence[Stack]) -> dict[str, Stack | None]:
    """For each module's path, the stack that comes last before it in the order of modules."""
    by_path = {stack.path: stack for stack in stacks}
    found: dict[str, Stack | None] = {}
    last: Stack | None = None
    for path, _ in model.named_modules():
        last = by_path.get(path, last)
        found[path] = last
    return found


def _part(name: str, owner: Any, stacks: Sequence[Stack], before: Stack | None, deepest: int, *, is_head: bool) -> Part:
    for stack in stacks:
        if name.startswith(f"{stack.path}."):
            return Part("layer", stack.name, int(name[len(stack.path) + 1 :].split(".")[0]), len(stack.layers))
    if is_head:
        return Part("head")
    if "pooler" in name.split("."):
        return Part("pooler")
    if before is None or isinstance(owner, torch.nn.Embedding):
        return Part("embeddings", layers=deepest)
    return Part("final", before.name, layers=len(before.layers))
