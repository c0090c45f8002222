"""The masks of `dropout` in Triton: one kernel for elementwise dropout, and the hash that attention's kernels share.

Every function gives bit for bit what `dropout.bits` gives on CPUs. Must be imported only where Triton is installed.
"""

import torch
import triton
import triton.language as tl

from workflow.models.dropout import COLUMN, FIRST_MULTIPLIER, HEAD, SECOND_MULTIPLIER, STEPS, signed

BLOCK = 1024
# As int32, which wraps around like the CPU's: literals beyond 2**31 would be taken for int64.
OF_COLUMN, OF_HEAD = tl.constexpr(signed(COLUMN)), tl.constexpr(signed(HEAD))
MULTIPLIER_1, MULTIPLIER_2 = tl.constexpr(signed(FIRST_MULTIPLIER)), tl.constexpr(signed(SECOND_MULTIPLIER))
BITS = tl.constexpr(float(STEPS))


@triton.jit
def survives(first, second, column, below):
    """Whether elements survive; int32 operands that broadcast: a token's two keys, and the element's place in the token."""
    z = first + (column >> 1) * OF_COLUMN
    z = z ^ ((z >> 16) & 0xFFFF)
    z = z * MULTIPLIER_1
    z = z ^ ((z >> 13) & 0x7FFFF)
    z = z ^ second
    z = z * MULTIPLIER_2
    z = z ^ ((z >> 16) & 0xFFFF)
    half = (z >> ((column & 1) * 16)) & 0xFFFF
    return (half ^ 0x8000) >= below  # int16 counts from -32768


@triton.jit
def of_head(first, second, head):
    """Keys of one head of the tokens."""
    return first + head * OF_HEAD, second ^ (head * OF_HEAD)


@triton.jit(do_not_specialize=["below", "width"])
def _drop(x, out, first, second, below, width, BLOCK: tl.constexpr):
    """One token's BLOCK elements."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < width
    places = token.to(tl.int64) * width + column
    value = tl.load(x + places, mask=within, other=0.0)
    keep = survives(tl.load(first + token), tl.load(second + token), column, below)
    scaled = (value.to(tl.float32) * (BITS / (BITS - below))).to(out.dtype.element_ty)
    tl.store(out + places, tl.where(keep, scaled, 0.0), mask=within)


def launch(x: torch.Tensor, out: torch.Tensor, first: torch.Tensor, second: torch.Tensor, below: int) -> None:
    """Write x [tokens, width], thinned out, to `out`; both contiguous, keys int32 [tokens]."""
    tokens, width = x.shape
    _drop[(tokens, triton.cdiv(width, BLOCK))](x, out, first, second, below, width, BLOCK=BLOCK)
