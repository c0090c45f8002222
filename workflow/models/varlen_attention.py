"""Attention over packed sequences by the Triton kernels, with gradients: no groups, no padding.

Knows nothing of where queries or biases come from. Imports Triton when it is first used, so that the package works
without it. The gradient of the biases is summed by atomic additions, in an order that is not always the same: where
results must repeat to the bit, another back end is to be used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

from workflow.models.dropout import STEPS, Keys, Thinning
from workflow.models.spans import BLOCK, Spans

WIDTHS = (32, 64, 128)
"""Head widths that the kernels take."""
WARPS = {32: 4, 64: 4, 128: 8}
"""By width, so that on Hopper nothing of a tile leaves the registers."""
WARPS_IN_FP32 = 8
STAGES = 2


@functools.cache
def why_no_kernel() -> str | None:
    """What Triton lacks here; None where the kernels can be made."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        language = importlib.import_module("triton.language")
    except Exception as error:  # an installation may be broken in any way
        return f"Triton cannot be imported: {error}"
    missing = [name for name in ("gather", "exp2") if not hasattr(language, name)]
    return f"this Triton has no {', '.join(missing)}" if missing else None


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spans: Spans,
    by_distance: torch.Tensor | None,
    *,
    num_heads: int,
    thinning: Thinning | None,
) -> torch.Tensor:
    """q [queries, heads * width], k and v [keys, heads * width] -> [queries, heads * width], all of one type.

    `by_distance` fp32 [heads, 2 * reach - 1]: the bias of a key `d` places behind its query stands at reach - 1 + d.
    """
    keys = thinning.keys.at(thinning.place) if thinning is not None else None
    dropped = round(thinning.rate * STEPS) if thinning is not None else 0
    found: torch.Tensor = _Attended.apply(q, k, v, by_distance, spans, num_heads, dropped, keys)  # type: ignore[no-untyped-call]
    return found


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        by_distance: torch.Tensor | None,
        spans: Spans,
        num_heads: int,
        dropped: int,
        keys: Keys | None,
    ) -> torch.Tensor:
        q, k, v = (part if part.stride(1) == 1 else part.contiguous() for part in (q, k, v))
        table = by_distance.contiguous() if by_distance is not None else None
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(num_heads, len(q), device=q.device)
        reach, settings = _settings(q, table, num_heads, dropped)
        _kernels().forward[(len(spans.query_tiles), num_heads)](
            q, k, v, out, lse, table, spans.query_first, spans.query_last, spans.query_tiles, *_drawn(keys), dropped, reach, len(q),
            q.stride(0), k.stride(0), v.stride(0), out.stride(0), **settings,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, table, out, lse)
        ctx.rest = (spans, num_heads, dropped, keys)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, table, out, lse = ctx.saved_tensors
        spans, num_heads, dropped, keys = ctx.rest
        gradient = gradient.contiguous()
        d_q, d_k, d_v = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k, v))
        d_table = torch.zeros_like(table) if table is not None else None
        delta = torch.empty_like(lse)
        reach, settings = _settings(q, table, num_heads, dropped)
        strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
        _kernels().backward_queries[(len(spans.query_tiles), num_heads)](
            q, k, v, out, gradient, d_q, lse, delta, table, d_table, spans.query_first, spans.query_last,
            spans.query_tiles, *_drawn(keys), dropped, reach, len(q), *strides, **settings,
        )  # fmt: skip
        _kernels().backward_keys[(len(spans.key_tiles), num_heads)](
            q, k, v, gradient, d_k, d_v, lse, delta, table, spans.key_first, spans.key_last, spans.query_first, spans.key_tiles,
            *_drawn(keys), dropped, reach, len(q), *strides, **settings,
        )  # fmt: skip
        return d_q, d_k, d_v, d_table, None, None, None, None


def _settings(q: torch.Tensor, table: torch.Tensor | None, num_heads: int, dropped: int) -> tuple[int, dict[str, Any]]:
    """(the longest distance and one, what the kernels are compiled for)."""
    reach = (table.shape[1] + 1) // 2 if table is not None else 0
    width = q.shape[1] // num_heads
    return reach, {
        "HAS_BIAS": table is not None,
        "DROPS": dropped > 0,
        "WIDTH": width,
        "BLOCK": BLOCK,
        "PRECISION": "ieee"
        if q.dtype == torch.float32
        else "tf32",  # of fp32 products; others are what their operands are
        "num_warps": WARPS_IN_FP32 if q.dtype == torch.float32 else WARPS[width],
        "num_stages": STAGES,
        "enable_fp_fusion": True,  # as it has been by default; newer Tritons ask for a word
    }


def _drawn(keys: Keys | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (keys.first, keys.second) if keys is not None else (None, None)


def _kernels() -> Any:
    return importlib.import_module("workflow.models.varlen_kernels")
