"""Optimizers and their parameter groups; every parameter stands in exactly one group.

Knows nothing of DeepSpeed or steps; a schedule multiplies each group's own `initial_lr`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from workflow.models.layer_stack import Part, parts_of
from workflow.strategies.base import Group

Multiplier = Callable[[Mapping[str, Any]], float]
"""What a group of the optimizer has its initial rate multiplied by."""


def parameter_groups(
    model: Any, *, lr: float, weight_decay: float, head: Collection[str] = (), by_layer: bool = False
) -> list[dict[str, Any]]:
    """`planned_groups` as an optimizer takes them."""
    return optimizer_groups(
        model, planned_groups(model, lr=lr, weight_decay=weight_decay, head=head, by_layer=by_layer)
    )


def planned_groups(
    model: Any, *, lr: float, weight_decay: float, head: Collection[str] = (), by_layer: bool = False
) -> list[Group]:
    """Groups with weight decay and without (layer norms, relative-position biases), of the head and of the rest.

    `head` names the output head's parameters; their groups have `is_head` set. `by_layer`: a pair for each part of the
    model instead, from the embeddings up.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    parts = parts_of(model) if by_layer else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "layer_norm" in name or "relative_attention_bias" in name
            place = _place(parts[name]) if by_layer else ()
            groups.setdefault((*place, plain or weight_decay == 0, name in head), []).append(name)
    return [
        Group(
            _name(parts.get(names[0]), plain=plain and weight_decay > 0, is_head=is_head),
            tuple(names),
            lr,
            0.0 if plain else weight_decay,
            parts.get(names[0]),
            is_head,
        )
        for (*_, plain, is_head), names in sorted(groups.items(), key=itemgetter(0))
    ]


ORDER = ("embeddings", "layer", "final", "pooler", "head")


def _place(part: Part) -> tuple[int, str, int]:
    return ORDER.index(part.kind), part.stack, part.layer


def _name(part: Part | None, *, plain: bool, is_head: bool) -> str:
    where = str(part) if part is not None else "head" if is_head else "body"
    return f"{where}, without decay" if plain else where


def optimizer_groups(model: Any, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Torch's parameter groups. Asserts that every parameter that trains stands in exactly one."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    counts = Counter(name for group in groups for name in group.parameters)
    assert counts == Counter([*parameters]), (
        f"not in exactly one group: {(counts - Counter([*parameters])) + (Counter([*parameters]) - counts)}"
    )
    return [
        {
            "params": [parameters[name] for name in group.parameters],
            "weight_decay": group.weight_decay,
            "lr": group.initial_lr,
            "initial_lr": group.initial_lr,
            "group_name": group.name,
            "is_head": group.is_head,
            "part": group.part,
        }
        for group in groups
    ]


def groups_record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """`param_groups.json`."""
    return [
        {
            "name": group.name,
            "initial_lr": group.initial_lr,
            "weight_decay": group.weight_decay,
            "parameters": list(group.parameters),
        }
        for group in groups
    ]


def rates_text(groups: Sequence[Group]) -> str:
    """Initial rates from the top down, places of the same rate together."""
    places: dict[float, list[str]] = {}
    for group in reversed(groups):
        names = places.setdefault(group.initial_lr, [])
        if (place := group.name.partition(",")[0]) not in names:
            names.append(place)
    return "; ".join(f"{rate:.3g} {' '.join(names)}" for rate, names in places.items())


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's fused AdamW, or Adafactor with external learning rate (Shazeer and Stern 2018, without its own schedule)."""
    if name == "adafactor":
        from transformers.optimization import Adafactor

        adafactor: torch.optim.Optimizer = Adafactor(
            groups, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return adafactor
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_lr(optimizer: Any, multiplier: float | Multiplier) -> float:
    """Sets each group's rate to its share of `initial_lr`; returns the highest.

    With a rate of 0 Adam's moments are warm, and its step count right, when a group begins to learn.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (multiplier(group) if callable(multiplier) else multiplier)
    return float(max(group["lr"] for group in optimizer.param_groups))


def uneven_rates(optimizer: Any) -> dict[str, float]:
    """The groups' rates by name, where they are not all one share of their initial ones; else nothing."""
    groups = optimizer.param_groups
    top = max(groups, key=lambda group: group["lr"])
    is_even = all(
        math.isclose(group["lr"] * top["initial_lr"], top["lr"] * group["initial_lr"], rel_tol=1e-9) for group in groups
    )
    return {} if is_even else {group["group_name"]: float(group["lr"]) for group in groups}
