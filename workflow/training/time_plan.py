"""How long a run takes by its FLOPs: an estimate from lengths of rows, a peak and an assumed share of it.

Pure functions of numbers; knows nothing of files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workflow.models.model_shape import ModelShape, T5Shape
from workflow.training.flops import Dimensions, EncoderDimensions, T5Dimensions

Ints = npt.NDArray[np.integer]

RECOMPUTED = 4 / 3
"""Work of an update with gradient checkpointing over work without: one more forward pass for three."""


def dimensions_of_shape(shape: ModelShape, *, num_outputs: int | None = None) -> Dimensions:
    """What FLOPs follow from; `num_outputs` where only some rows of a T5's output head are used."""
    if isinstance(shape, T5Shape):
        return T5Dimensions(
            shape.d_model,
            shape.inner,
            shape.d_ff,
            shape.gated,
            shape.num_layers,
            shape.num_decoder_layers,
            shape.vocab_size if num_outputs is None else num_outputs,
        )
    return EncoderDimensions(shape.d_model, shape.d_ff, shape.num_layers, is_causal=shape.family == "gpt2")


@dataclass(frozen=True)
class Work:
    """What a whole run computes: real tokens and FLOPs (recomputing is not counted)."""

    steps: int
    tokens_per_update: float
    flops_per_update: float

    @property
    def tokens(self) -> float:
        """Of prompts and completions, repeats counted."""
        return self.steps * self.tokens_per_update

    @property
    def flops(self) -> float:
        """Of forward and backward passes."""
        return self.steps * self.flops_per_update

    def hours(self, *, num_gpus: int, peak: float, mfu: float, checkpointing: bool) -> float:
        """On GPUs of `peak` FLOP/s each, of which a share `mfu` is reached. Without evaluations and checkpoints."""
        return self.flops * (RECOMPUTED if checkpointing else 1.0) / (num_gpus * peak * mfu) / 3600


def work_of(dimensions: Dimensions, sources: Ints, targets: Ints, *, steps: int, update_size: int) -> Work:
    """Of updates of `update_size` rows, on average as long as these."""
    flops = dimensions.training_flops(sources.astype(np.float64), targets.astype(np.float64))
    tokens = float(np.mean(sources, dtype=np.float64) + np.mean(targets, dtype=np.float64))
    return Work(steps, update_size * tokens, update_size * float(np.mean(flops)))
