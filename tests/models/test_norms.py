"""The fused norm is transformers' norm; only its rounding in bf16 is finer."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from workflow.models.norms import FusedNorm, fused_norm, use_fused_norms


def norm(dtype=torch.float32):
    torch.manual_seed(0)
    module = T5LayerNorm(48)
    torch.nn.init.normal_(module.weight)
    return module.to(dtype)


def gradients(out, *leaves):
    torch.manual_seed(1)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_it_is_transformers_norm(dtype, tolerance):
    module, x = norm(dtype), (3 * torch.randn(17, 48)).requires_grad_()
    theirs, ours = module(x), fused_norm(x, module.weight, module.variance_epsilon)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for mine, expected in zip(gradients(ours, x, module.weight), gradients(theirs, x, module.weight), strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=10 * tolerance)


@torch.no_grad()
def test_bf16_is_nearer_to_the_truth_than_two_roundings():
    module, x = norm(torch.bfloat16), 3 * torch.randn(200, 48)
    truth = fused_norm(x, module.weight.float(), module.variance_epsilon)
    apart = [float((out.float() - truth).abs().mean()) for out in (fused_norm(x, module.weight, 1e-6), module(x))]
    assert apart[0] < apart[1]


def test_a_models_norms_are_exchanged_and_the_same_on_cpus():
    plain = torch.nn.Sequential(norm(), torch.nn.LayerNorm(48))
    fused, x = copy.deepcopy(plain), torch.randn(5, 48)
    use_fused_norms(fused)
    assert (type(fused[0]), type(fused[1])) == (FusedNorm, torch.nn.LayerNorm)
    assert torch.equal(fused(x), plain(x))
    assert list(fused.state_dict()) == list(plain.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_on_a_gpu(dtype, tolerance):
    module = norm(dtype).cuda()
    fused = copy.deepcopy(module)
    use_fused_norms(torch.nn.Sequential(fused))
    assert isinstance(fused, FusedNorm)
    x = torch.randn(300, 48, device="cuda")
    torch.testing.assert_close(fused(x), module(x), rtol=tolerance, atol=tolerance)
