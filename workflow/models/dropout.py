"""Drop elements of packed tokens by masks that are a function of the row, whatever else is in its micro-batch.

A mask follows from a token's key (of the run's seed, the update, the training row, and the position in it), the module
that drops, and the element's place in the token: a hash in the place of a generator (as in Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"). So neither the number of ranks nor the size of micro-batches moves a mask, and
gradient checkpointing finds the same one again. An element takes 16 bits, several times cheaper on CPUs than
`torch.nn.functional.dropout`. The rate is a multiple of 2**-16; kept elements are scaled by exactly what it asks for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import torch

STEPS = 1 << 16
# Odd numbers whose multiples spread over 2**32 (golden ratio) and murmur3's mixing constants; the Triton kernels share them.
COLUMN, HEAD = 0x9E3779B9, 0x85157AF5
FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0x85EBCA6B, 0xC2B2AE35
PLACES = (0x2545F491, 0x6C8E9CF5)
SECOND_USE = 1 << 20
"""What a module's place is moved by where it drops a second time in one forward pass."""


class Keyed(Protocol):
    """Sequences one after another."""

    @property
    def ids(self) -> torch.Tensor:
        """int64 [tokens]."""

    @property
    def keys(self) -> torch.Tensor | None:
        """int64 [tokens]: a random number for each token."""


@dataclass(frozen=True)
class Keys:
    """Two int32 numbers for each token, or for each query of each head, from which the bits of its masks follow."""

    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, packed: Keyed) -> Keys:
        """Read a pack's keys; without any, draw them from torch's generator on the CPU."""
        keys = packed.keys
        if keys is None:
            keys = torch.empty(len(packed.ids), dtype=torch.int64).random_(-(1 << 63), None).to(packed.ids.device)
        first, second = keys.view(torch.int32).view(-1, 2).unbind(1)
        return cls(first.contiguous(), second.contiguous())

    def select(self, tokens: torch.Tensor) -> Keys:
        """Keys of some tokens, by number."""
        return Keys(self.first.index_select(0, tokens), self.second.index_select(0, tokens))

    def at(self, place: int) -> Keys:
        """Keys for one place in the model."""
        first, second = (signed(place * constant) for constant in PLACES)
        return Keys(self.first ^ first, self.second ^ second)

    def of_heads(self, num_heads: int) -> Keys:
        """Keys of each token's heads, token by token: int32 [tokens * num_heads]."""
        heads = _multiples(num_heads, HEAD, self.first.device)
        return Keys((self.first[:, None] + heads).flatten(), (self.second[:, None] ^ heads).flatten())


@dataclass(frozen=True)
class Thinning:
    """How an attention drops weights: at a rate, by the keys of its queries, at its place in the model."""

    rate: float
    keys: Keys
    place: int

    @classmethod
    def of(cls, module: Any, rate: float, keys: Keys) -> Thinning | None:
        """Describe what `module`, to which `number_places` gave a number, drops; None where it drops nothing."""
        return cls(rate, keys, module.dropout_place) if module.training and rate > 0 else None


def number_places(model: torch.nn.Module) -> None:
    """Give every module its number in the model, by which its masks differ from those of the others."""
    for number, module in enumerate(model.modules(), start=1):
        module.dropout_place = number  # type: ignore[assignment]


def signed(number: int) -> int:
    """The number modulo 2**32 as an int32 holds it."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


@functools.lru_cache(maxsize=64)
def _multiples(count: int, constant: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32, device=device) * signed(constant)


def bits(keys: Keys, width: int) -> torch.Tensor:
    """int16 [*keys, width], each value alike; two neighbours share a hash (murmur3's, a key added in its middle)."""
    z = keys.first[..., None] + _multiples(-(-width // 2), COLUMN, keys.first.device)
    # Shifts of int32 drag the sign along, hence the masks.
    z ^= (z >> 16).bitwise_and_(0xFFFF)
    z *= signed(FIRST_MULTIPLIER)
    z ^= (z >> 13).bitwise_and_(0x7FFFF)
    z ^= keys.second[..., None]
    z *= signed(SECOND_MULTIPLIER)
    z ^= (z >> 16).bitwise_and_(0xFFFF)
    return z.view(torch.int16)[..., :width]


def keep_mask(keys: Keys, width: int, rate: float) -> torch.Tensor:
    """fp32 [*keys, width]: 0 with the probability `rate`, else 1 / (1 - rate)."""
    below = round(rate * STEPS)
    mask = torch.empty(*keys.first.shape, width, device=keys.first.device)
    torch.ge(bits(keys, width), below - STEPS // 2, out=mask)  # three times as fast as a comparison that is converted
    return mask.mul_(STEPS / (STEPS - below) if below < STEPS else 0.0)


def dropped(x: torch.Tensor, module: Any, keys: Keys, *, place: int | None = None) -> torch.Tensor:
    """x [tokens, width] as a `torch.nn.Dropout` leaves it; `place` where a module drops more than once."""
    if not module.training or module.p == 0:
        return x
    if module.p >= 1:
        return x * 0.0
    here = keys.at(module.dropout_place if place is None else place)
    if x.device.type == "cpu":
        return x * keep_mask(here, x.shape[1], module.p).to(x.dtype)
    if why_not_by_row() is None:
        found: torch.Tensor = _Dropped.apply(x, here, round(module.p * STEPS))  # type: ignore[no-untyped-call]
        return found
    return torch.nn.functional.dropout(x, module.p)


@functools.cache
def why_not_by_row() -> str | None:
    """Say what a GPU lacks for masks by row, which one Triton kernel makes there; None where it lacks nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        importlib.import_module("workflow.models.dropout_kernels")
    except Exception as error:  # an installation may be broken in any way
        return f"Triton cannot be imported: {error}"
    return None


class _Dropped(torch.autograd.Function):
    """One kernel for each direction; the mask is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, keys: Keys, below: int) -> torch.Tensor:
        ctx.save_for_backward(keys.first, keys.second)
        ctx.below = below
        return _thinned(x, keys, below)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _thinned(gradient, Keys(*ctx.saved_tensors), ctx.below), None, None


def _thinned(x: torch.Tensor, keys: Keys, below: int) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    importlib.import_module("workflow.models.dropout_kernels").launch(x, out, keys.first, keys.second, below)
    return out
