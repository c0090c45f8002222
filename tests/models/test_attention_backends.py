"""Every back end of attention against plain attention, sequence by sequence: outputs, all gradients, and dropout's masks.

The Triton kernel runs on a GPU, or in a process of its own under Triton's interpreter, which knows no bf16 products.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.models import test_ragged_training as whole
from workflow.models import attention_backends, varlen_attention
from workflow.models.attention_backends import choose
from workflow.models.dropout import Keys, Thinning
from workflow.models.pairing import MATMUL, SDPA, TRITON, pairing_of
from workflow.models.ragged_attention import attend, biases_of
from workflow.models.ragged_training import RaggedScorer, RaggedT5

HEADS, WIDTH = 2, 32
CPU = torch.device("cpu")
MIXES = {
    "one token": ([1], [3]),
    "alike": ([16, 16, 16, 16, 16], [8, 8, 8, 8, 8]),
    "short and long": ([3, 9, 1, 70, 12, 130, 3, 64], [1, 20, 150, 3, 64, 5, 129, 2]),
}
FILES = [__file__, str(Path(__file__).with_name("test_attention_choice.py"))]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def where_marks(device, backend):
    if device == "cuda":
        return [pytest.mark.gpu]
    if backend == TRITON:
        return [pytest.mark.skipif(not INTERPRETED, reason="run by test_the_kernel_under_tritons_interpreter")]
    return []


PLACES = [
    pytest.param((torch.device(device), backend), id=f"{backend}-{device}", marks=where_marks(device, backend))
    for device in ("cpu", "cuda")
    for backend in (MATMUL, SDPA, TRITON)
]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernel_under_tritons_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 9):
        pytest.skip("the interpreters before Triton 3.9 do not know loops over numbers that were loaded")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "triton-cpu or the_check_passes",
            *FILES,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10


class Case:
    """Operands on a device, and what plain attention makes of them; `mask` [queries, heads, longest] thins the weights."""

    def __init__(self, device, queries, keys=None, *, is_causal=False, has_bias=False, dtype=torch.float32):
        torch.manual_seed(7)
        self.queries, self.keys, self.is_causal, self.device = queries, keys or queries, is_causal, device
        self.is_own = keys is None
        size = HEADS * WIDTH
        shapes = [(sum(queries), size), (sum(self.keys), size), (sum(self.keys), size), (sum(queries), size)]
        q, k, v, self.gradient = (torch.randn(shape).to(device, dtype) for shape in shapes)
        self.leaves = [q * 0.3, k, v]
        if has_bias:
            self.leaves.append(torch.randn(HEADS, 2 * max(self.keys) - 1).to(device))

    def run(self, backend, *, dropout=0.0, value=None):
        """(output, gradients)."""
        leaves = [leaf.clone().requires_grad_() for leaf in self.leaves]
        pairing = pairing_of(
            self.queries, None if self.is_own else self.keys, num_heads=HEADS, device=self.device, backend=backend
        )
        biases = None
        if len(leaves) == 4:
            biases = biases_of(leaves[3], pairing, is_causal=self.is_causal, dtype=leaves[0].dtype)
        q, k, v = leaves[:3]
        drawn = torch.randint(-(1 << 31), 1 << 31, (2, len(q)), dtype=torch.int32).to(self.device)
        thinning = Thinning(dropout, Keys(drawn[0], drawn[1]), place=3) if dropout > 0 else None
        out = attend(q, k, v if value is None else value, pairing, biases, num_heads=HEADS, thinning=thinning)
        if value is not None:
            return out.detach(), []
        return out.detach(), torch.autograd.grad(out, leaves, self.gradient)

    def plain(self, mask=None):
        """(output, gradients, softmax weights [queries, heads, longest])."""
        leaves = [leaf.clone().requires_grad_() for leaf in self.leaves]
        q, k, v = (leaf.float().view(-1, HEADS, WIDTH).transpose(0, 1) for leaf in leaves[:3])
        outs, all_weights, row, col = [], [], 0, 0
        for num_rows, num_cols in zip(self.queries, self.keys, strict=True):
            rows, cols = slice(row, row + num_rows), slice(col, col + num_cols)
            scores = q[:, rows] @ k[:, cols].transpose(1, 2)
            distance = torch.arange(num_cols)[None, :] - torch.arange(num_rows)[:, None]
            if len(leaves) == 4:
                scores = scores + leaves[3][:, max(self.keys) - 1 + distance]
            if self.is_causal:
                scores = scores.masked_fill((distance > 0).to(scores.device), float("-inf"))
            weights = scores.softmax(dim=-1)
            all_weights.append(torch.nn.functional.pad(weights.detach(), (0, max(self.keys) - num_cols)))
            if mask is not None:
                weights = weights * mask[rows, :, :num_cols].transpose(0, 1)
            outs.append((weights @ v[:, cols]).transpose(0, 1).flatten(1))
            row, col = row + num_rows, col + num_cols
        out = torch.cat(outs)
        gradients = torch.autograd.grad(out, leaves, self.gradient.float())
        return out.detach(), gradients, torch.cat(all_weights, dim=1).transpose(0, 1)

    def weights_of(self, backend, *, dropout, seed):
        """The thinned weights [queries, heads, longest] of a seed, read off with values that name their key."""
        found = []
        places = torch.cat([torch.arange(length) for length in self.keys]).to(self.device)
        for start in range(0, max(self.keys), WIDTH):
            columns = torch.arange(start, start + WIDTH, device=self.device)
            value = (places[:, None] == columns[None, :]).to(self.leaves[0].dtype).repeat(1, HEADS)
            torch.manual_seed(seed)
            found.append(self.run(backend, dropout=dropout, value=value)[0].view(-1, HEADS, WIDTH).float())
        return torch.cat(found, dim=2)[:, :, : max(self.keys)]


def cases_of(device, mix, kind, **more):
    queries, keys = MIXES[mix]
    if kind == "cross":
        return Case(device, keys, queries, **more)
    return Case(device, queries, is_causal=kind == "decoder", has_bias=True, **more)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("place", PLACES)
def test_outputs_and_gradients_are_those_of_plain_attention(place, mix, kind):
    device, backend = place
    case = cases_of(device, mix, kind)
    out, gradients = case.run(backend)
    expected, expected_gradients, _ = case.plain()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for mine, exact in zip(gradients, expected_gradients, strict=True):
        assert float((mine - exact).abs().max()) <= 1e-5 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("place", PLACES)
def test_forward_and_backward_drop_the_same_weights_at_the_rate(place, kind):
    device, backend = place
    case = cases_of(device, "short and long", kind)
    rate = 0.3
    _, _, weights = case.plain()
    thinned = case.weights_of(backend, dropout=rate, seed=5)
    real = weights > 1e-6
    mask = torch.where(real, thinned / weights, 0.0)
    kept = mask[real] > 0.5
    spread = (rate * (1 - rate) / int(real.sum())) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=4 * spread)
    torch.testing.assert_close(mask[real][kept], torch.full_like(mask[real][kept], 1 / (1 - rate)), rtol=2e-3, atol=0)
    assert not mask[:, 0].equal(mask[:, 1])
    exact_mask = torch.where(mask > 0.5, 1 / (1 - rate), 0.0)
    torch.manual_seed(5)
    out, gradients = case.run(backend, dropout=rate)
    expected, expected_gradients, _ = case.plain(exact_mask)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    for mine, exact in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-3)
    assert not out.equal(case.run(backend, dropout=rate)[0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["t5-v1.1", "umt5"])
@pytest.mark.parametrize("place", PLACES)
def test_a_model_learns_the_same_whatever_the_back_end(place, kind, checkpointing, monkeypatch):
    device, backend = place
    monkeypatch.setitem(whole.SIZES, "d_kv", WIDTH)
    sources, targets = (whole.rows_of(lengths, seed) for seed, lengths in enumerate(whole.MIXES["mixed"]))
    model = whole.make(kind)
    expected_loss = whole.eager_loss(model, sources, targets)
    expected = whole.gradients(model, expected_loss)
    if checkpointing:
        whole.checkpoint(model)
    ragged = RaggedT5(model.to(device)).train()
    ragged.attention = backend
    loss = ragged(whole.packed(sources).to(device), whole.packed(targets).to(device))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    found = {name: gradient.cpu() for name, gradient in whole.gradients(model, loss).items()}
    whole.assert_alike(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [MATMUL, SDPA, TRITON])
def test_bf16_gradients_on_the_device_point_where_those_of_fp32_point(backend, monkeypatch):
    monkeypatch.setitem(whole.SIZES, "d_kv", WIDTH)
    sources, targets = (whole.rows_of(lengths, seed) for seed, lengths in enumerate(whole.MIXES["one long"]))
    model = whole.make("t5-v1.1")
    expected = whole.gradients(model, whole.eager_loss(model, sources, targets))
    ragged = RaggedT5(model.to("cuda", torch.bfloat16)).train()
    ragged.attention = backend
    loss = ragged(whole.packed(sources).to(torch.device("cuda")), whole.packed(targets).to(torch.device("cuda")))
    found = {name: gradient.cpu() for name, gradient in whole.gradients(model, loss).items()}
    assert whole.cosine(found, expected) > 0.999


@pytest.mark.gpu
def test_a_gpu_gets_a_kernel_that_passed_its_check():
    device = torch.device("cuda", 0)
    choice = choose(device, torch.bfloat16, width=64)
    hopper = torch.cuda.get_device_capability(device)[0] == attention_backends.KERNEL_CAPABILITY
    assert choice.name == (TRITON if hopper and varlen_attention.why_no_kernel() is None else SDPA), choice.why


@pytest.mark.gpu
def test_an_update_on_a_gpu_does_not_make_the_host_wait():
    model = whole.make("t5-v1.1", dropout=0.1).to("cuda")
    sources, targets = (whole.rows_of(lengths, seed) for seed, lengths in enumerate(whole.MIXES["mixed"]))
    ragged = RaggedT5(model).train()
    for backend in (SDPA, MATMUL):
        ragged.attention = backend
        batches = [whole.packed(rows).to(torch.device("cuda")) for rows in (sources, targets)]
        ragged(*batches).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            ragged(*(whole.packed(rows).to(torch.device("cuda")) for rows in (sources, targets))).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_scores_by_the_fused_attention_too():
    sources = whole.rows_of(whole.MIXES["mixed"][0], 0)
    model = whole.make("t5")
    expected = whole.eager_logits(model, sources)
    scorer = RaggedScorer(model).train()
    scorer.attention = SDPA
    torch.testing.assert_close(scorer(whole.packed(sources)), expected, rtol=1e-5, atol=1e-5)
