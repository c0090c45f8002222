"""Bytes of weights, gradients, optimizer and buffers by formula against what DeepSpeed allocates, at every stage."""

from __future__ import annotations

import json

import pytest

from tests.training.rank_worker import run_group
from workflow.models.model_shape import num_parameters, shape_of
from workflow.training.model_states import OFFLOADS, STAGES, Zero, host_bytes, model_states

CONFIG = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "vocab_size": 512, "num_layers": 6}
BUCKET = 20_000
TOLERANCE = 0.1
"""Of the model's fp32 bytes there are also: a layer's gradients on their way, padding of shares."""

PAIRS = [
    (stage, precision) for stage in range(4) for precision in ("fp32", "bf16") if (stage, precision) != (0, "bf16")
]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_deepspeed_allocates(tmp_path, world_size):
    files = {}
    for stage in range(4):
        zero = {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
        if stage == 3:
            zero |= {"stage3_prefetch_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
        files[stage] = tmp_path / f"zero{stage}.json"
        files[stage].write_text(json.dumps({"zero_optimization": zero}))
    jobs = [
        {"do": "allocate", "config": CONFIG, "precision": precision, "deepspeed": str(files[stage])}
        for stage, precision in PAIRS
    ]
    found = run_group(world_size, jobs, tmp_path / "group")
    count = num_parameters(shape_of({"model_type": "t5", **CONFIG}, name="x"))
    for (stage, precision), measured in zip(PAIRS, found, strict=True):
        zero = Zero.of(f"zero{stage}", json.loads(files[stage].read_text()))
        states = model_states(count, zero, precision=precision, world_size=world_size)
        case = f"{zero.name} {precision} on {world_size}"
        held = states.weights + states.gradients + states.optimizer
        assert measured["held"] == pytest.approx(held, rel=TOLERANCE), case
        assert measured["in_backward"] <= states.held * (1 + TOLERANCE), case
        assert measured["peak"] == pytest.approx(max(states.held, states.at_update), rel=TOLERANCE), case


def test_formulas():
    """The papers' figures, of a billion parameters on 4 ranks in bf16, and what DeepSpeed adds to them."""
    billion = 10**9
    zero1, zero2, zero3 = (model_states(billion, zero, precision="bf16", world_size=4) for zero in STAGES[1:])
    assert (zero1.weights, zero1.optimizer, zero1.gradients) == (2 * billion, 3 * billion, 6 * billion)
    assert (zero2.weights, zero2.optimizer, zero2.gradients) == (2 * billion, 3 * billion, billion)
    assert zero3.weights + zero3.optimizer + zero3.gradients == 18 * billion / 4
    fp32 = model_states(billion, STAGES[0], precision="fp32", world_size=4)
    assert fp32.weights + fp32.optimizer + fp32.gradients == 16 * billion
    adafactor = model_states(billion, STAGES[0], precision="fp32", world_size=1, adafactor_numbers=10**6)
    assert adafactor.optimizer == 4 * 10**6


def test_offload_moves_states_to_the_machine():
    billion = 10**9
    for zero, on_gpu in zip(OFFLOADS, (2 * billion, 0), strict=True):
        states = model_states(billion, zero, precision="bf16", world_size=2)
        assert (states.weights, states.gradients, states.optimizer) == (on_gpu, 0, 0)
        assert states.host >= 8 * billion
        assert host_bytes(billion, states, ranks_here=2) > 2 * states.host


def test_the_shipped_files_are_the_strategies_of_the_plan():
    from tests.conftest import ROOT

    for zero in OFFLOADS:
        assert Zero.of(zero.name, json.loads((ROOT / zero.name).read_text())) == zero
