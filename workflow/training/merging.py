"""A model's adapters inside its frozen weights for a while: what reads bare weights then sees what training has made.

Knows nothing of evaluation. An engine reads weights, not modules; between evaluations the frozen weights are, bit for
bit, what they were.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from workflow.models.adapters import AdaptedLayer, Adapters
from workflow.models.quantised import QuantisedLinear, quantised_maps
from workflow.training.backend import Backend


@contextlib.contextmanager
def adapters_merged(backend: Backend, adapters: Adapters | None) -> Iterator[None]:
    """Merges inside the block; a collective call under ZeRO-3. What was there is kept on the CPU meanwhile.

    Nothing can be put into a quantised weight: there, merged weights stand in for it.
    """
    if adapters is not None and adapters.plan.base != "full":
        with _standing_in(backend.module, adapters, _room(backend.device)):
            yield
        return
    before = []
    with torch.no_grad():
        for layer in adapters.layers if adapters is not None else ():
            with backend.gathered(list(layer.module.parameters())):
                merged = layer.merged()
            before.append((layer, backend.exchange(layer.base, merged)))
            layer.count_merged(is_merged=True)
    try:
        yield
    finally:
        for layer, kept in before:
            backend.put_back(layer.base, kept)
            layer.count_merged(is_merged=False)


@contextlib.contextmanager
def _standing_in(model: torch.nn.Module, adapters: Adapters, room: int) -> Iterator[None]:
    """Merged weights in the type of training stand in for all quantised ones: kept while `room` bytes last, of the
    others each is made whenever it is read."""
    layers = {id(layer.module.base_layer): layer for layer in adapters.layers}
    maps = [module for _, module in quantised_maps(model)]
    try:
        for module in maps:
            layer = layers.get(id(module))
            make = partial(_merged, module, layer)
            room -= module.numel * module.dtype.itemsize
            module.stand_in = make if room < 0 else _kept(make())
            if layer is not None:
                layer.count_merged(is_merged=True)
        yield
    finally:
        for module in maps:
            module.stand_in = None
        for layer in adapters.layers:
            layer.count_merged(is_merged=False)


@torch.no_grad()
def _merged(module: QuantisedLinear, layer: AdaptedLayer | None) -> torch.Tensor:
    return module.dense() if layer is None else layer.merged().to(module.dtype)


def _kept(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: weight


def _room(device: torch.device) -> int:
    """Bytes that kept weights may take: half of what is free on a GPU; on CPUs, where making a weight takes longest, all."""
    if device.type != "cuda":
        return sys.maxsize
    free: int = torch.cuda.mem_get_info(device)[0]
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
