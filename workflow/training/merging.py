"""A model's adapters inside its frozen weights for a while: what reads bare weights then sees what training has made.

Knows nothing of evaluation. An engine reads weights, not modules; between evaluations the frozen weights are, bit for
bit, what they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from workflow.models.adapters import Adapters
from workflow.training.backend import Backend


@contextlib.contextmanager
def adapters_merged(backend: Backend, adapters: Adapters | None) -> Iterator[None]:
    """Merges inside the block; a collective call under ZeRO-3. What was there is kept on the CPU meanwhile."""
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
