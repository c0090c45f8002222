"""Products by oneDNN are torch's, and so are their gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from workflow.models.linear import ONEDNN, Linear, linear, use_onednn


@pytest.mark.parametrize("shape", [(7, 20), (1, 20), (2, 3, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_torchs(bias, dtype, shape):
    torch.manual_seed(0)
    theirs = torch.nn.Linear(20, 33, bias=bias, dtype=dtype)
    ours = copy.deepcopy(theirs)
    use_onednn(ours)
    assert (type(ours) is Linear) == ONEDNN
    x = torch.randn(shape, dtype=dtype)
    found = []
    for module in (theirs, ours):
        at = x.clone().requires_grad_()
        module(at).square().sum().backward()
        found.append([module(at).detach(), at.grad, *(parameter.grad for parameter in module.parameters())])
        with torch.no_grad():
            found[-1].append(linear(at, module.weight, module.bias))
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=bound, atol=bound)


def test_only_what_learns_gets_a_gradient():
    module = torch.nn.Linear(4, 3)
    module.weight.requires_grad_(False)
    use_onednn(module)
    module(torch.ones(5, 4)).sum().backward()
    assert module.weight.grad is None
    assert torch.equal(module.bias.grad, torch.full((3,), 5.0))
