"""Attention over packed sequences as three Triton kernels: forward, the queries' gradient, and that of keys and values.

Knows nothing of autograd or of sequences: `spans` says which tokens a program has and which it looks at. The online
softmax and the division of the backward pass are FlashAttention-2's (Dao 2023). Scores are not scaled; T5's bias comes
from a table by distance. All sums and the softmax are in fp32. Must be imported only where Triton is installed.

Dropout is that of `dropout`: a function of the query's keys, the head, and the key's place in its sequence, so that every
kernel finds the same mask.
"""

import triton
import triton.language as tl

from workflow.models.dropout_kernels import BITS, of_head, survives

LOG2E = tl.constexpr(1.4426950408889634)
STEP = tl.constexpr(8)


@triton.jit
def _kept(seeds_1, seeds_2, dropped, head, rows, live, starts, cols):
    """Whether weights survive, [rows, cols]; `starts` [rows] is where the keys of each query's sequence begin."""
    first = tl.load(seeds_1 + rows, mask=live, other=0)
    second = tl.load(seeds_2 + rows, mask=live, other=0)
    first, second = of_head(first, second, head)
    return survives(first[:, None], second[:, None], cols[None, :] - starts[:, None], dropped)


@triton.jit
def _rows_of(pointer, tokens, live, head, stride, WIDTH: tl.constexpr):
    """[tokens, WIDTH] of a head; zero where not live."""
    places = tokens.to(tl.int64)[:, None] * stride + head * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointer + places, mask=live[:, None], other=0.0)


@triton.jit
def _put_rows(pointer, x, tokens, live, head, stride, WIDTH: tl.constexpr):
    """Writes x [tokens, WIDTH] of a head."""
    places = tokens.to(tl.int64)[:, None] * stride + head * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(pointer + places, x.to(pointer.dtype.element_ty), mask=live[:, None])


@triton.jit
def _bounds(tiles):
    """A program's own tokens (from, to), and those that it looks at (from, to)."""
    row = tiles + 4 * tl.program_id(0)
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit(do_not_specialize=["dropped", "reach", "num_queries"])
def forward(
    q, k, v, out, lse, table, first, last, tiles, seeds_1, seeds_2, dropped, reach, num_queries, q_stride, k_stride, v_stride, out_stride,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: `out`, and `lse` [heads, queries], the logarithm (to base 2) of the softmax's sum."""
    head = tl.program_id(1)
    begin, end, key_begin, key_end = _bounds(tiles)
    rows = begin // STEP * STEP + tl.arange(0, BLOCK)
    live = (rows >= begin) & (rows < end)
    seen_from = tl.load(first + rows, mask=live, other=0)
    seen_to = tl.load(last + rows, mask=live, other=0)
    query = _rows_of(q, rows, live, head, q_stride, WIDTH)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(key_begin // STEP * STEP, key_end, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        within = (cols >= key_begin) & (cols < key_end)
        seen = (cols[None, :] >= seen_from[:, None]) & (cols[None, :] < seen_to[:, None])
        scores = tl.dot(query, tl.trans(_rows_of(k, cols, within, head, k_stride, WIDTH)), input_precision=PRECISION)
        if HAS_BIAS:
            places = head * (2 * reach - 1) + reach - 1 + cols[None, :] - rows[:, None]
            scores += tl.load(table + places, mask=seen, other=0.0)
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        fading = tl.exp2(highest - base)
        total = total * fading + tl.sum(weights, 1)
        if DROPS:
            weights = tl.where(_kept(seeds_1, seeds_2, dropped, head, rows, live, seen_from, cols), weights, 0.0)
        value = _rows_of(v, cols, within, head, v_stride, WIDTH)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * fading[:, None], input_precision=PRECISION)
        highest = higher
    total = tl.where(live, total, 1.0)
    mixed = mixed / total[:, None]
    if DROPS:
        mixed *= BITS / (BITS - dropped)
    _put_rows(out, mixed, rows, live, head, out_stride, WIDTH)
    tl.store(lse + head * num_queries + rows, highest + tl.log2(total), mask=live)


@triton.jit(do_not_specialize=["dropped", "reach", "num_queries"])
def backward_queries(
    q, k, v, out, d_out, d_q, lse, delta, table, d_table, first, last, tiles, seeds_1, seeds_2, dropped, reach, num_queries, q_stride, k_stride, v_stride,
    out_stride,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: `d_q`, `delta` [heads, queries] for the other kernel, and its part of `d_table`."""
    head = tl.program_id(1)
    begin, end, key_begin, key_end = _bounds(tiles)
    rows = begin // STEP * STEP + tl.arange(0, BLOCK)
    live = (rows >= begin) & (rows < end)
    seen_from = tl.load(first + rows, mask=live, other=0)
    seen_to = tl.load(last + rows, mask=live, other=0)
    query = _rows_of(q, rows, live, head, q_stride, WIDTH)
    gradient = _rows_of(d_out, rows, live, head, out_stride, WIDTH)
    found = _rows_of(out, rows, live, head, out_stride, WIDTH)
    own_delta = tl.sum(found.to(tl.float32) * gradient.to(tl.float32), 1)
    own_lse = tl.load(lse + head * num_queries + rows, mask=live, other=0.0)
    tl.store(delta + head * num_queries + rows, own_delta, mask=live)
    d_query = tl.zeros([BLOCK, WIDTH], tl.float32)
    local = tl.arange(0, BLOCK)
    for start in range(key_begin // STEP * STEP, key_end, BLOCK):
        cols = start + local
        within = (cols >= key_begin) & (cols < key_end)
        seen = (cols[None, :] >= seen_from[:, None]) & (cols[None, :] < seen_to[:, None])
        key = _rows_of(k, cols, within, head, k_stride, WIDTH)
        value = _rows_of(v, cols, within, head, v_stride, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if HAS_BIAS:
            places = head * (2 * reach - 1) + reach - 1 + cols[None, :] - rows[:, None]
            scores += tl.load(table + places, mask=seen, other=0.0)
        weights = tl.exp2(tl.where(seen, scores * LOG2E - own_lse[:, None], float("-inf")))
        d_weights = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
        if DROPS:
            kept = _kept(seeds_1, seeds_2, dropped, head, rows, live, seen_from, cols)
            d_weights = tl.where(kept, d_weights * (BITS / (BITS - dropped)), 0.0)
        d_scores = weights * (d_weights - own_delta[:, None])
        d_query = tl.dot(d_scores.to(key.dtype), key, d_query, input_precision=PRECISION)
        if HAS_BIAS:
            # Row r turned by r places: a column then holds one distance, or, behind the turn, the one BLOCK below it.
            turned = local[None, :] + local[:, None]
            skewed = tl.gather(d_scores, turned % BLOCK, 1)
            distance = start - begin // STEP * STEP + local
            near, far = tl.where(turned < BLOCK, skewed, 0.0), tl.where(turned < BLOCK, 0.0, skewed)
            own = d_table + head * (2 * reach - 1) + reach - 1
            tl.atomic_add(own + distance, tl.sum(near, 0), mask=(distance > -reach) & (distance < reach), sem="relaxed")
            below = distance - BLOCK
            tl.atomic_add(own + below, tl.sum(far, 0), mask=(below > -reach) & (below < reach), sem="relaxed")
    _put_rows(d_q, d_query, rows, live, head, out_stride, WIDTH)


@triton.jit(do_not_specialize=["dropped", "reach", "num_queries"])
def backward_keys(
    q, k, v, d_out, d_k, d_v, lse, delta, table, first, last, begins, tiles, seeds_1, seeds_2, dropped, reach, num_queries, q_stride, k_stride, v_stride,
    out_stride,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one head: `d_k` and `d_v`; scores stand transposed, [keys, queries]."""
    head = tl.program_id(1)
    begin, end, query_begin, query_end = _bounds(tiles)
    key_start = begin // STEP * STEP
    cols = key_start + tl.arange(0, BLOCK)
    live = (cols >= begin) & (cols < end)
    seen_from = tl.load(first + cols, mask=live, other=0)
    seen_to = tl.load(last + cols, mask=live, other=0)
    key = _rows_of(k, cols, live, head, k_stride, WIDTH)
    value = _rows_of(v, cols, live, head, v_stride, WIDTH)
    d_key = tl.zeros([BLOCK, WIDTH], tl.float32)
    d_value = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(query_begin, query_end, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        within = rows < query_end
        seen = (rows[None, :] >= seen_from[:, None]) & (rows[None, :] < seen_to[:, None])
        query = _rows_of(q, rows, within, head, q_stride, WIDTH)
        gradient = _rows_of(d_out, rows, within, head, out_stride, WIDTH)
        row_lse = tl.load(lse + head * num_queries + rows, mask=within, other=0.0)
        row_delta = tl.load(delta + head * num_queries + rows, mask=within, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        if HAS_BIAS:
            places = head * (2 * reach - 1) + reach - 1 + cols[:, None] - rows[None, :]
            scores += tl.load(table + places, mask=seen, other=0.0)
        weights = tl.exp2(tl.where(seen, scores * LOG2E - row_lse[None, :], float("-inf")))
        d_weights = tl.dot(value, tl.trans(gradient), input_precision=PRECISION)
        thinned = weights
        if DROPS:
            starts = tl.load(begins + rows, mask=within, other=0)
            kept = tl.trans(_kept(seeds_1, seeds_2, dropped, head, rows, within, starts, cols))
            thinned = tl.where(kept, weights * (BITS / (BITS - dropped)), 0.0)
            d_weights = tl.where(kept, d_weights * (BITS / (BITS - dropped)), 0.0)
        d_value = tl.dot(thinned.to(gradient.dtype), gradient, d_value, input_precision=PRECISION)
        d_scores = weights * (d_weights - row_delta[None, :])
        d_key = tl.dot(d_scores.to(query.dtype), query, d_key, input_precision=PRECISION)
    _put_rows(d_k, d_key, cols, live, head, out_stride, WIDTH)
    _put_rows(d_v, d_value, cols, live, head, out_stride, WIDTH)
