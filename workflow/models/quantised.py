"""Frozen linear maps in 4 bits: NF4 with double quantisation (Dettmers et al. 2023), by bitsandbytes.

Knows nothing of adapters, ranks or runs. What is held is buffers, so that whoever lists, moves, converts or shards a
model's parameters has nothing to do with it; `weight` is made of them whenever it is read, and is no parameter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from workflow.errors import ConfigError
from workflow.models.linear import linear, product

BLOCK = 64
"""Weights that share a scale."""
SCALES_BLOCK = 256
"""Scales, of 8 bits, that share a scale of theirs."""
INSTALL = 'pip install "bitsandbytes>=0.50,<0.51"'


def is_installed() -> bool:
    """Whether bitsandbytes can be imported; nothing is."""
    return importlib.util.find_spec("bitsandbytes") is not None


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear map that keeps its weight in NF4 and computes with what that stands for, in `dtype`.

    A product holds the whole weight for as long as it takes, and the backward pass makes it anew. `stand_in`, where it
    is set, gives the weight in the place of the quantised one.
    """

    codes: torch.Tensor
    levels: torch.Tensor
    scales: torch.Tensor
    offset: torch.Tensor
    scale_levels: torch.Tensor
    scale_scales: torch.Tensor

    def __init__(self, plain: torch.nn.Linear, *, dtype: torch.dtype, device: torch.device | str) -> None:
        torch.nn.Module.__init__(self)  # a Linear's own would make a weight
        from bitsandbytes.functional import quantize_4bit

        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self.dtype = dtype
        self.stand_in: Callable[[], torch.Tensor] | None = None
        weight = plain.weight.detach().to(device, torch.float32)
        codes, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        held = {"codes": codes, "levels": state.code, "scales": state.absmax, "offset": state.offset}
        held |= {"scale_levels": state.state2.code, "scale_scales": state.state2.absmax}
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)
        self.train(plain.training)

    @property
    def numel(self) -> int:
        """Numbers of the weight."""
        return self.in_features * self.out_features

    @property
    def held_bytes(self) -> int:
        """What is held in the place of the weight."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def dense(self) -> torch.Tensor:
        """What the codes stand for, [out, in] in `dtype`."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        scales = QuantState(
            absmax=self.scale_scales, code=self.scale_levels, blocksize=SCALES_BLOCK, dtype=torch.float32
        )
        state = QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.offset,
            state2=scales,
        )
        weight: torch.Tensor = dequantize_4bit(self.codes, state)
        return weight

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """What is computed with, [out, in] in `dtype`."""
        return self.dense() if self.stand_in is None else self.stand_in()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]; the gradient is of x alone."""
        found: torch.Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: QuantisedLinear) -> torch.Tensor:
        ctx.module = module
        return linear(x, module.weight, module.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        found = product(gradient.flatten(0, -2), ctx.module.weight)
        return found.view(*gradient.shape[:-1], found.shape[-1]), None


def quantise(model: Any, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str) -> None:
    """Puts `QuantisedLinear` in the place of a model's linear maps (of what adapters stand beside, too), one by one.

    Quantised on `device`, to compute in `dtype`. Raises ConfigError for maps that keep their weight transposed.
    """
    for name in names:
        module, parent, leaf = model.get_submodule(name), *_place(model, name)
        if hasattr(module, "base_layer"):
            module, parent, leaf = module.base_layer, module, "base_layer"
        if not isinstance(module, torch.nn.Linear):
            raise ConfigError(
                f"--lora_base nf4: a {model.config.model_type}'s linear maps ({type(module).__name__}) are not quantised, those of "
                "T5 and BERT-like models are; pass --lora_base full"
            )
        setattr(parent, leaf, QuantisedLinear(module, dtype=dtype, device=device))


def _place(model: Any, name: str) -> tuple[Any, str]:
    above, _, leaf = name.rpartition(".")
    return model.get_submodule(above), leaf


def quantised_maps(model: torch.nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """(name, map) of all that are quantised, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantisedLinear))


def dense_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model's quantised maps stand for, fp32, by the names that weights would have: they are no parameters."""
    for name, module in quantised_maps(model):
        yield f"{name}.weight", module.dense().float()


def num_weights(model: torch.nn.Module) -> int:
    """Numbers of all parameters (also of those that ZeRO-3 has sharded), and of what is quantised."""
    plain = sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())
    return plain + sum(module.numel for _, module in quantised_maps(model))
