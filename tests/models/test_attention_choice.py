"""Who gets which attention, the kernel's check of itself, its tiles and its code, and what else GPUs need of training."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import test_ragged_training as whole
from tests.models.test_attention_backends import CPU, INTERPRETED, WIDTH
from workflow.models import attention_backends, head_loss, varlen_attention
from workflow.models.attention_backends import check_kernel, choose
from workflow.models.dropout import STEPS, Keys, keep_mask
from workflow.models.fused_attention import aligned
from workflow.models.head_loss import HeadLoss
from workflow.models.pairing import MATMUL, SDPA, TRITON
from workflow.models.ragged_training import RaggedT5
from workflow.models.spans import BLOCK, STEP, sent, spans_of


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
        *rest, keys = ctx.rest
        ctx.rest = (*rest, keys.at(7) if keys is not None else None)
        return backward(ctx, gradient)

    monkeypatch.setattr(kernel, "backward", staticmethod(other_seed))
    assert "with dropout, gradients of queries differ" in check_kernel(CPU, torch.float16, width=WIDTH)
    monkeypatch.setattr(kernel, "backward", staticmethod(lambda *given: (None, *backward(*given)[1:])))
    assert "RuntimeError" in check_kernel(CPU, torch.float16, width=WIDTH)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_kernel_under_tritons_interpreter")
@pytest.mark.parametrize("width", [7, 1500])
def test_the_check_passes_elementwise_dropout_that_drops_as_a_cpu_does(width):
    from workflow.models import dropout_kernels

    keys = Keys(*torch.randint(-(1 << 31), 1 << 31, (2, 9), dtype=torch.int32))
    x, out = torch.randn(9, width), torch.empty(9, width)
    dropout_kernels.launch(x, out, keys.first, keys.second, round(0.1 * STEPS))
    torch.testing.assert_close(out, x * keep_mask(keys, width, 0.1))
    assert out.eq(0).any()


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
