"""Packed attention equals attention one by one; buckets are transformers', distance by distance."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from workflow.models.attention import bias_matrix, layout_of, packed_attention, relative_buckets
from workflow.models.linear import LARGE, ONEDNN, linear


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 20), (16, 128), (64, 300)])
def test_buckets_are_those_of_transformers(bidirectional, num_buckets, max_distance):
    distances = torch.arange(-3000, 3001)
    mine = relative_buckets(distances, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance)
    theirs = T5Attention._relative_position_bucket(distances, bidirectional, num_buckets, max_distance)
    assert mine.equal(theirs)


@pytest.mark.parametrize("waste", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("lengths", [[1], [4, 4], [3, 9, 1, 9, 8, 3, 3, 2], [5, 4, 3, 2, 1]])
def test_packed_equals_one_by_one(lengths, waste):
    torch.manual_seed(0)
    layout = layout_of(lengths, waste=waste)
    assert sorted(layout.order) == list(range(len(lengths)))
    assert [lengths[number] for number in layout.order] == list(layout.lengths)
    assert len(layout.groups) == (len(set(lengths)) if waste == 0 else 1 if waste == 1 else len(layout.groups))
    q, k, v = torch.randn(3, layout.num_tokens, 2, 8)
    bias = bias_matrix(torch.randn(32, 2), max(lengths), num_buckets=32, max_distance=128)
    found = packed_attention(q, k, v, layout=layout, bias=bias)
    for start, length in zip(layout.starts, layout.lengths, strict=True):
        part = [tensor[start : start + length].transpose(0, 1) for tensor in (q, k, v)]
        weights = (part[0] @ part[1].transpose(1, 2) + bias[:, :length, :length]).softmax(-1)
        expected = (weights @ part[2]).transpose(0, 1)
        torch.testing.assert_close(found[start : start + length], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (5,), (1, 3), (2, 2)])
def test_few_rows_of_large_weights(shape):
    weight = torch.randn(LARGE // 512, 512, generator=torch.Generator().manual_seed(0))
    x = torch.randn(*shape, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = linear(x, weight)
        assert found.is_contiguous()
        torch.testing.assert_close(found, x @ weight.T, atol=1e-4, rtol=1e-5)


def test_linear_is_linear_and_keeps_gradients():
    x, weight = torch.randn(5, 2, 16), torch.randn(24, 16, requires_grad=True)
    assert linear(x, weight).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), x @ weight.T)
        torch.testing.assert_close(linear(x[:1, 0], weight[2:20]), x[:1, 0] @ weight[2:20].T)
    assert isinstance(ONEDNN, bool)
