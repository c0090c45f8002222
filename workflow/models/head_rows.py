"""Puts the outputs of a classification head in another order, as if it had been trained so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workflow.errors import ModelError
from workflow.models.load import head_names

PROBE_TOKENS = 8
TOLERANCE = 1e-4


@torch.no_grad()
def put_rows(name: str, model: Any, rows: Sequence[int | None]) -> None:
    """Makes output `n` of a model's head what output `rows[n]` was, or 0 where that is None.

    Raises ModelError where the last layer of the head is no linear one, as a trial shows.
    """
    before = _probe(model)
    layer = _last_layer(name, model, outputs=before.shape[1])
    for key in ("weight", "bias"):
        value = getattr(layer, key)
        if value is not None:
            parts = [value[row] if row is not None else torch.zeros_like(value[0]) for row in rows]
            setattr(layer, key, torch.nn.Parameter(torch.stack(parts), requires_grad=value.requires_grad))
    layer.out_features = len(rows)
    for owner in (model, model.config):
        if hasattr(owner, "num_labels"):
            owner.num_labels = len(rows)
    wanted = torch.stack([before[:, row] if row is not None else before[:, 0] * 0 for row in rows], dim=1)
    if not torch.allclose(_probe(model), wanted, atol=TOLERANCE, rtol=TOLERANCE):
        raise _unknown_head(name, model)


def _probe(model: Any) -> torch.Tensor:
    ids = torch.arange(1, PROBE_TOKENS + 1)[None] % model.config.vocab_size
    found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    return found


def _last_layer(name: str, model: Any, outputs: int) -> torch.nn.Linear:
    inside = {key.rpartition(".")[0] for key in head_names(model)}
    layers = [
        module
        for key, module in model.named_modules()
        if key in inside and isinstance(module, torch.nn.Linear) and module.out_features == outputs
    ]
    if not layers:
        raise _unknown_head(name, model)
    return layers[-1]


def _unknown_head(name: str, model: Any) -> ModelError:
    return ModelError(
        f"{name}: the outputs of a {type(model).__name__} cannot be put in another order; give --labels in the order of "
        "its own, or leave them out"
    )
