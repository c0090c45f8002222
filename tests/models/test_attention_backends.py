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

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.models import test_ragged_training as whole
from workflow.models import attention_backends, head_loss, varlen_attention
from workflow.models.attention_backends import check_kernel, choose
from workflow.models.fused_attention import aligned
from workflow.models.head_loss import HeadLoss
from workflow.models.pairing import MATMUL, SDPA, TRITON, pairing_of
from workflow.models.ragged_attention import attend, biases_of
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.spans import BLOCK, STEP, sent, spans_of

HEADS, WIDTH = 2, 32
CPU = torch.device("cpu")
MIXES = {
    "one token": ([1], [3]),
    "alike": ([16, 16, 16, 16, 16], [8, 8, 8, 8, 8]),
    "short and long": ([3, 9, 1, 70, 12, 130, 3, 64], [1, 20, 150, 3, 64, 5, 129, 2]),
}
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
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton-cpu or check", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled for the interpreter")
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["forward", "backward_queries", "backward_keys"])
def test_kernels_compile_for_hopper_and_stay_in_its_registers(name, width, tmp_path):
    """Without a GPU; the sizes of tiles and numbers of warps were chosen by this."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends import compiler, nvidia

    from workflow.models import varlen_kernels

    kernel = getattr(varlen_kernels, name)
    constants = {"HAS_BIAS": True, "DROPS": True, "WIDTH": width, "BLOCK": BLOCK, "PRECISION": "tf32"}
    types = {**dict.fromkeys(("lse", "delta", "table", "d_table"), "*fp32"), "seed": "i64"}
    types |= dict.fromkeys(("first", "last", "tiles"), "*i32") | dict.fromkeys(
        ("dropped", "reach", "num_queries"), "i32"
    )
    signature, aligned_arguments = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        default = "i32" if argument.endswith("_stride") else "*bf16"
        signature[argument] = "constexpr" if argument in constants else types.get(argument, default)
        if signature[argument].startswith("*") or argument.endswith("_stride"):
            aligned_arguments[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(
        kernel,
        signature,
        {(kernel.arg_names.index(key),): value for key, value in constants.items()},
        aligned_arguments,
    )
    options = {
        "num_warps": varlen_attention.WARPS[width],
        "num_stages": varlen_attention.STAGES,
        "enable_fp_fusion": True,
    }
    found = triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32), options=options)
    assert found.metadata.shared <= 227 * 1024
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(found.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True)
    assert int(re.search(r"STACK:(\d+)", usage.stdout + usage.stderr)[1]) <= 128


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
        out = attend(q, k, v if value is None else value, pairing, biases, num_heads=HEADS, dropout=dropout)
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


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("is_own", [False, True])
def test_tiles_hold_each_token_once_and_look_at_all_that_it_sees(is_own, is_causal):
    if is_causal and not is_own:
        pytest.skip("only a sequence over itself is causal")
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(1, 40))
        queries, keys = (rng.choice([1, 2, 7, 8, 63, 64, 65, 200], count) for _ in range(2))
        keys = queries if is_own else keys
        spans = spans_of(queries, None if is_own else keys, is_causal=is_causal, device=CPU)
        seen = np.zeros((queries.sum(), keys.sum()), dtype=bool)
        row = col = 0
        for num_rows, num_cols in zip(queries, keys, strict=True):
            part = np.ones((num_rows, num_cols), dtype=bool)
            seen[row : row + num_rows, col : col + num_cols] = np.tril(part) if is_causal else part
            row, col = row + num_rows, col + num_cols
        for table, first, last, tiles in (
            (seen, spans.query_first, spans.query_last, spans.query_tiles),
            (seen.T, spans.key_first, spans.key_last, spans.key_tiles),
        ):
            others = np.arange(table.shape[1])
            assert (((others >= first.numpy()[:, None]) & (others < last.numpy()[:, None])) == table).all()
            held = np.zeros(len(table), dtype=int)
            for begin, end, other_begin, other_end in tiles.tolist():
                assert begin < end <= begin // STEP * STEP + BLOCK
                held[begin:end] += 1
                looked = np.zeros(table.shape[1], dtype=bool)
                looked[other_begin:other_end] = True
                assert not table[begin:end, ~looked].any()
            assert (held == 1).all()


def test_masks_are_laid_out_as_the_fused_kernel_reads_them():
    for length in (1, 7, 8, 13):
        mask = torch.randn(3, 2, length, length)
        found = aligned(mask)
        assert found.equal(mask)
        assert found.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in found.stride()[:-1])
    moved = sent([np.arange(5), np.arange(40), np.arange(1)], CPU)
    assert [part.tolist() for part in moved] == [list(range(5)), list(range(40)), [0]]


def test_a_cpu_gets_explicit_products():
    choice = choose(CPU, torch.bfloat16, width=64)
    assert choice.name == MATMUL
    assert "CPU" in str(choice)
    assert RaggedT5(whole.make("t5")).choice() == choose(CPU, torch.float32, width=8)


def test_a_gpu_gets_the_kernel_only_where_it_is_known_to_be_right(monkeypatch):
    device = torch.device("cuda", 0)
    capability, verdict = [(9, 0)], [None]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    monkeypatch.setattr(attention_backends, "why_no_kernel", lambda: None)
    monkeypatch.setattr(attention_backends, "check_kernel", lambda *_, **__: verdict[0])

    def chosen(dtype=torch.bfloat16, width=64):
        attention_backends._why_not_triton.cache_clear()
        return choose(device, dtype, width=width)

    try:
        assert chosen().name == TRITON
        assert chosen(torch.float32).name == SDPA
        assert (chosen(width=48).name, "48" in chosen(width=48).why) == (SDPA, True)
        verdict[0] = "outputs differ"
        assert (chosen().name, chosen().why) == (SDPA, "outputs differ")
        capability[0] = (8, 0)
        assert "Old GPU" in chosen().why
        torch.use_deterministic_algorithms(True)
        assert chosen().name == MATMUL
    finally:
        torch.use_deterministic_algorithms(False)
        attention_backends._why_not_triton.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_kernel_under_tritons_interpreter")
def test_the_check_passes_a_kernel_that_is_right_and_no_other(monkeypatch):
    state = torch.get_rng_state()
    assert check_kernel(CPU, torch.float16, width=WIDTH) is None
    assert torch.get_rng_state().equal(state)
    kernel = varlen_attention._Attended
    backward = kernel.backward

    def other_seed(ctx, gradient):
        *rest, seed = ctx.rest
        ctx.rest = (*rest, seed + 1)
        return backward(ctx, gradient)

    monkeypatch.setattr(kernel, "backward", staticmethod(other_seed))
    assert "masks differ" in check_kernel(CPU, torch.float16, width=WIDTH)
    monkeypatch.setattr(kernel, "backward", staticmethod(lambda *given: (None, *backward(*given)[1:])))
    assert "RuntimeError" in check_kernel(CPU, torch.float16, width=WIDTH)


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_without_triton_the_reason_is_told():
    varlen_attention.why_no_kernel.cache_clear()
    assert varlen_attention.why_no_kernel() == "Triton is not installed"
    assert "ModuleNotFoundError" in check_kernel(CPU, torch.float32, width=WIDTH)


def test_parts_of_the_labels_add_up_in_fp32(monkeypatch):
    """bf16 gradients of the head are no worse from many parts than from one."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(512, 16), torch.randn(40, 16), torch.randint(0, 40, (512,))

    def gradient(dtype):
        head = HeadLoss(torch.nn.Parameter(weight.to(dtype)))
        head(hidden.to(dtype), labels).backward()
        assert head.weight.grad.dtype == dtype
        return head.weight.grad.float()

    exact, whole_error = gradient(torch.float32), gradient(torch.bfloat16)
    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", 4 * 40)
    in_parts = gradient(torch.bfloat16)
    assert (in_parts - exact).norm() < 1.2 * (whole_error - exact).norm()
