"""Whether a model's files look pruned: the share of zeros in a sample of its matrices.

Knows nothing of training. Reads safetensors alone; a model in other files is taken to be dense.
"""

from __future__ import annotations

from pathlib import Path

MOST_SAMPLED = 4
SPARSE_FROM = 0.1
"""Trained matrices have next to no exact zeros; pruning that is worth its while makes far more."""


def looks_sparse(folder: Path) -> float | None:
    """The share of zeros in the model's largest matrices, embeddings apart, where it is large; else None."""
    from safetensors import SafetensorError, safe_open

    zeros = total = 0
    for file in sorted(folder.glob("*.safetensors"))[:1]:
        try:
            with safe_open(file, framework="pt") as weights:
                shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
                inner = [name for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name]
                for name in sorted(inner, key=lambda name: -shapes[name][0] * shapes[name][1])[:MOST_SAMPLED]:
                    tensor = weights.get_tensor(name)
                    zeros += int((tensor == 0).sum())
                    total += tensor.numel()
        except (OSError, SafetensorError):
            return None
    share = zeros / total if total else 0.0
    return share if share >= SPARSE_FROM else None
