"""Which attention a device gets: explicit products, torch's fused one, or the Triton kernel, and why.

Knows nothing of models. The kernel is never trusted unseen: before it is first chosen in a process, it must agree with
explicit fp32 products on that device, in outputs, in gradients, and in which weights dropout drops.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from workflow.models.dropout import Keys, Thinning
from workflow.models.pairing import MATMUL, SDPA, TRITON, pairing_of
from workflow.models.ragged_attention import attend, biases_of
from workflow.models.varlen_attention import WIDTHS, why_no_kernel

KERNEL_TYPES = (torch.bfloat16, torch.float16)
"""In fp32 the kernel's products would be exact and slow, and its tiles would not fit into registers."""
KERNEL_CAPABILITY = 9
"""The GPUs (Hopper) for whose registers the kernel's tiles were chosen; on others it is right, but may be slow."""
LENGTHS = (1, 37, 64, 130, 5)
TOLERANCE = 0.03
"""Largest difference over the largest value; bf16 keeps 8 bits."""
DROPOUT = 0.25


@dataclass(frozen=True)
class Choice:
    """The name of a back end of `pairing`, and the reason, for people."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{TITLES[self.name]} ({self.why})"


TITLES = {MATMUL: "grouped products", SDPA: "grouped fused attention", TRITON: "one Triton kernel, no groups"}


def choose(device: torch.device, dtype: torch.dtype, *, width: int) -> Choice:
    """The back end for weights of a type on a device, with heads of a width. Cheap but for the first call of a kind."""
    if device.type != "cuda":
        return Choice(MATMUL, f"on {device.type.upper()}")
    if torch.are_deterministic_algorithms_enabled():
        return Choice(MATMUL, "the others' gradients do not repeat to the bit")
    why_not = _why_not_triton(device, dtype, width)
    return Choice(TRITON, "it passed its check here") if why_not is None else Choice(SDPA, why_not)


def head_width(config: Any) -> int:
    """Of a transformers configuration: T5's own setting, or a share of the model's width."""
    found: int = config.d_kv if hasattr(config, "d_kv") else config.hidden_size // config.num_attention_heads
    return found


@functools.cache
def _why_not_triton(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    if dtype not in KERNEL_TYPES:
        return f"the kernel is not for {str(dtype).removeprefix('torch.')}"
    if width not in WIDTHS:
        return f"the kernel is not for heads of {width}"
    if torch.cuda.get_device_capability(device)[0] != KERNEL_CAPABILITY:
        return f"the kernel has not been tried on a {torch.cuda.get_device_name(device)}"
    if (why := why_no_kernel()) is not None:
        return why
    return check_kernel(device, dtype, width=width)


def check_kernel(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
    """What is wrong with the kernel on this device; None where it agrees with explicit products. Draws no random number."""
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(0)
            for is_causal, has_bias in ((False, True), (True, True), (False, False)):
                wrong = _differences(device, dtype, width, is_causal=is_causal, has_bias=has_bias)
                if wrong:
                    return f"the kernel failed its check here: {wrong}"
    except Exception as error:  # whatever a compiler or a driver may raise, training goes on without the kernel
        return f"the kernel failed its check here: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _differences(
    device: torch.device, dtype: torch.dtype, width: int, *, is_causal: bool, has_bias: bool
) -> str | None:
    """What differs on a small mix of lengths; without a bias, queries of other lengths than the keys."""
    heads, keys = 2, LENGTHS
    queries = keys if has_bias else keys[::-1]
    q, k, v, d_out = (
        torch.randn(sum(lengths), heads * width, device=device).mul_(scale).to(dtype)
        for lengths, scale in ((queries, width**-0.5), (keys, 1.0), (keys, 1.0), (queries, 1.0))
    )
    table = torch.randn(heads, 2 * max(keys) - 1, device=device)

    drawn = torch.randint(-(1 << 31), 1 << 31, (2, sum(queries)), dtype=torch.int32).to(device)

    def run(backend: str, of: torch.dtype, thinning: Thinning | None) -> list[torch.Tensor]:
        others = None if has_bias else keys
        pairing = pairing_of(queries, others, num_heads=heads, device=device, backend=backend)
        own_q, own_k, own_v = (part.to(of, copy=True).requires_grad_() for part in (q, k, v))
        leaves, biases = [own_q, own_k, own_v], None
        if has_bias:
            leaves.append(table.clone().requires_grad_())
            biases = biases_of(leaves[-1], pairing, is_causal=is_causal, dtype=of)
        out = attend(own_q, own_k, own_v, pairing, biases, num_heads=heads, thinning=thinning)
        return [out.detach(), *torch.autograd.grad(out, leaves, d_out.to(of))]

    for thinning in (None, Thinning(DROPOUT, Keys(drawn[0], drawn[1]), place=1)):
        parts = zip(NAMES, run(TRITON, dtype, thinning), run(MATMUL, torch.float32, thinning), strict=False)
        for name, mine, exact in parts:
            apart = float((mine.float() - exact).abs().max() / exact.abs().max())
            if not apart <= TOLERANCE:
                dropping = "with dropout, " if thinning is not None else ""
                return f"{dropping}{name} differ by {apart:.2g} of the largest"
    return None


NAMES = ("outputs", "gradients of queries", "gradients of keys", "gradients of values", "gradients of biases")
