"""Matrix-multiplication FLOPs of T5, BERT and GPT-2, and the peaks of GPUs, from which MFU follows.

Pure functions. Two FLOPs a multiply-add; real tokens only; recomputation is not counted. (6 x parameters x tokens
would overstate Flan-T5 about twofold: each half of the model sees only its own tokens.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "A10": 125e12,
    "L40S": 362e12,
}
"""Dense bf16 peak by a part of the GPU's name, from the makers' data sheets."""


class Dimensions(Protocol):
    """What the FLOPs of a model depend on."""

    def training_flops(self, sources: Floats, targets: Floats) -> Floats:
        """FLOPs of a forward and a backward pass over each example, from its numbers of tokens."""


@dataclass(frozen=True)
class T5Dimensions:
    """What the FLOPs of a T5 depend on."""

    d_model: int
    inner: int
    d_ff: int
    gated: bool
    num_layers: int
    num_decoder_layers: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any, *, num_outputs: int | None = None) -> T5Dimensions:
        """From a transformers T5Config; `num_outputs` where only some rows of the output head are used."""
        return cls(
            d_model=config.d_model,
            inner=config.num_heads * config.d_kv,
            d_ff=config.d_ff,
            gated=bool(config.is_gated_act),
            num_layers=config.num_layers,
            num_decoder_layers=config.num_decoder_layers,
            vocab_size=config.vocab_size if num_outputs is None else num_outputs,
        )

    def forward_flops(self, source: Floats, target: Floats) -> Floats:
        """FLOPs of one forward pass over examples of `source` encoder and `target` decoder tokens each."""
        d, inner, mlp = self.d_model, self.inner, (6 if self.gated else 4) * self.d_model * self.d_ff
        encoder = self.num_layers * (source * (8 * d * inner + mlp) + 4 * inner * source**2)
        decoder = target * (12 * d * inner + mlp) + 2 * inner * target * (target + 1)
        cross = 4 * d * inner * source + 4 * inner * target * source
        return encoder + self.num_decoder_layers * (decoder + cross) + 2 * target * d * self.vocab_size

    def training_flops(self, sources: Floats, targets: Floats) -> Floats:
        """Forward and backward."""
        return 3.0 * self.forward_flops(sources, targets)


@dataclass(frozen=True)
class EncoderDimensions:
    """What the FLOPs of a stack of plain transformer layers (BERT, GPT-2) depend on; a head on top counts for nothing."""

    d_model: int
    d_ff: int
    num_layers: int
    is_causal: bool

    @classmethod
    def of(cls, config: Any) -> EncoderDimensions | None:
        """From a transformers configuration, or None where it does not say."""
        d_model, num_layers = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
        if d_model is None or num_layers is None:
            return None
        if config.model_type == "gpt2":
            return cls(d_model, config.n_inner or 4 * d_model, num_layers, is_causal=True)
        d_ff = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None)
        return cls(d_model, d_ff, num_layers, is_causal=False) if d_ff else None

    def forward_flops(self, source: Floats) -> Floats:
        """FLOPs of one forward pass over `source` tokens each; causal attention sees half of the pairs."""
        pairs = source * (source + 1) / 2 if self.is_causal else source**2
        token_wise = source * (8 * self.d_model**2 + 4 * self.d_model * self.d_ff)
        return self.num_layers * (token_wise + 4 * self.d_model * pairs)

    def training_flops(self, sources: Floats, targets: Floats) -> Floats:  # noqa: ARG002
        """Forward and backward."""
        return 3.0 * self.forward_flops(sources)


def dimensions_of(config: Any, *, num_outputs: int | None = None) -> Dimensions | None:
    """The dimensions of a T5-family model, of a BERT-like one or of GPT-2; None for what is not known."""
    if config.model_type in ("t5", "mt5", "umt5"):
        return T5Dimensions.of(config, num_outputs=num_outputs)
    return EncoderDimensions.of(config)


def peak_flops(gpu_name: str) -> float | None:
    """The dense bf16 peak of a GPU, or None when it is not known."""
    matches = [name for name in PEAK_FLOPS if name in gpu_name]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None
