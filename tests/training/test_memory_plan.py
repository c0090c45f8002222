"""What is decided from estimates: stages, tokens, recomputing, time; pure functions of numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workflow.models.adapters import AdapterPlan, add_adapters
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.model_shape import shape_of
from workflow.models.published import published_config
from workflow.training.flops import T5Dimensions
from workflow.training.memory_plan import (
    Job,
    adapter_numbers,
    auto_stage,
    estimate,
    pick,
    stages_in_order,
    what_would_fit,
)
from workflow.training.model_states import STAGES
from workflow.training.time_plan import Work, dimensions_of_shape, work_of

GB = 10**9


def job(name="google/flan-t5-xxl", *, longest=(512, 114), precision="bf16", **more) -> Job:
    config = published_config(name)
    assert config is not None
    return Job(shape_of(config, name=name), longest, precision, "cuda", 0.1, **more)


def best(of: Job, world_size: int, memory: int):
    zeros = stages_in_order(of.precision, world_size, of.optimizer)
    return pick(of, world_size=world_size, memory=memory, zeros=zeros)


def test_xxl_on_four_gpus_of_80_gb_is_zero3():
    """PERFORMANCE figures of 4 such GPUs: ZeRO-3 is the only stage that leaves room for activations."""
    found = best(job(), 4, 80 * GB)
    assert found.zero.name == "zero3"
    assert not found.checkpointing
    assert found.states.weights + found.states.gradients + found.states.optimizer == pytest.approx(50.1 * GB, rel=0.01)
    assert found.needed <= found.room < 80 * GB
    assert 626 <= found.tokens < 4096
    zero2 = estimate(job(), STAGES[2], world_size=4, memory=80 * GB, checkpointing=False)
    assert not zero2.fits


def test_longer_rows_ask_for_recomputing():
    found = best(job(longest=(3072, 1024)), 4, 80 * GB)
    assert (found.zero.name, found.checkpointing) == ("zero3", True)
    assert found.flags == f"--deepspeed zero3 --micro_batch_tokens {found.tokens} --gradient_checkpointing"


def test_small_models_take_the_first_candidate():
    small = job("google/flan-t5-base")
    assert best(small, 1, 24 * GB).zero.name == "zero1"
    assert best(small, 4, 24 * GB).zero.name == "zero2"
    assert best(replace(small, precision="fp32"), 1, 24 * GB).zero.name == "zero0"
    assert best(replace(small, precision="fp32", optimizer="adafactor"), 4, 24 * GB).zero.name == "zero0"


def test_one_gpu_of_24_gb_is_refused_xxl():
    assert best(job(), 1, 24 * GB) is None
    found = what_would_fit(job(), world_size=1, memory=24 * GB)
    assert any("such GPUs (zero3" in one for one in found)
    assert any("zero3_offload.json" in one and "machine's memory" in one for one in found)
    count = int(next(one for one in found if "such GPUs" in one).split()[0])
    assert best(job(), count, 24 * GB) is not None
    assert best(job(), count - 1, 24 * GB) is None


def test_fewer_bits_and_smaller_passes_are_named():
    xl = job("google/flan-t5-xl", precision="fp32", longest=(256, 64))
    assert best(xl, 1, 48 * GB) is None
    assert best(replace(xl, optimizer="adafactor"), 1, 48 * GB) is not None
    narrow = job("google/flan-t5-large", copies=400)
    assert best(narrow, 1, 24 * GB) is None
    assert "--deepspeed zero1" in what_would_fit(narrow, world_size=1, memory=24 * GB)[0]
    assert "--precision bf16" in what_would_fit(xl, world_size=2, memory=40 * GB)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tokens_fill_the_room_and_not_more(checkpointing):
    of = job("google/flan-t5-large")
    found = estimate(of, STAGES[1], world_size=1, memory=40 * GB, checkpointing=checkpointing)
    rows = found.tokens // of.row_tokens
    free = found.room - found.states.held
    assert of.activations(rows, checkpointing=checkpointing).peak <= free
    assert of.activations(rows + 2, checkpointing=checkpointing).peak > free


def test_more_memory_never_gives_less():
    of = job("google/flan-t5-xl", longest=(512, 128))
    tokens = [
        estimate(of, STAGES[3], world_size=4, memory=size * GB, checkpointing=False).tokens
        for size in range(24, 160, 8)
    ]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize(
    ("name", "ranks", "memory", "stage", "says"),
    [
        ("google/flan-t5-base", 1, 80, "zero1", "by estimate its longest row takes"),
        ("google/flan-t5-base", 4, 80, "zero2", "by estimate"),
        ("google/flan-t5-xxl", 4, 80, "zero3", "zero2 would not fit"),
        ("google/flan-t5-xxl", 2, 80, "zero3", "will not fit; workflow plan says what would"),
    ],
)
def test_auto(name, ranks, memory, stage, says):
    zero, why = auto_stage(job(name), world_size=ranks, memory=memory * GB, checkpointing=False)
    assert zero.name == stage
    assert says in why


def test_auto_advises_recomputing_and_never_does_it():
    of = job(longest=(3072, 1024))
    zero, why = auto_stage(of, world_size=4, memory=80 * GB, checkpointing=False)
    assert (zero.name, "pass --gradient_checkpointing" in why) == ("zero3", True)
    zero, why = auto_stage(of, world_size=4, memory=80 * GB, checkpointing=True)
    assert (zero.name, "zero2 would not fit" in why) == ("zero3", True)


def test_work_and_hours():
    """The published FLOPs of a row of 512 + 114 tokens, from a configuration of transformers and from the shape alike."""
    import transformers

    config = published_config("google/flan-t5-xxl")
    assert config is not None
    shape = shape_of(config, name="x")
    mine = dimensions_of_shape(shape)
    options = {key: value for key, value in config.items() if key not in ("model_type", "tie_word_embeddings")}
    assert mine == T5Dimensions.of(transformers.T5Config(**options))
    work = work_of(mine, np.array([512, 512]), np.array([114, 114]), steps=100, update_size=16)
    assert work.tokens == 100 * 16 * 626
    assert work.flops == pytest.approx(1600 * 20.9e12, rel=0.02)
    plain, again = (
        Work(10, 1.0, 3.6e15).hours(num_gpus=2, peak=1e13, mfu=0.5, checkpointing=flag) for flag in (False, True)
    )
    assert plain == pytest.approx(1.0)
    assert again == pytest.approx(4 / 3)
    bert = published_config("bert-base-uncased")
    assert bert is not None
    stack = work_of(
        dimensions_of_shape(shape_of(bert, name="b")), np.array([128]), np.array([0]), steps=1, update_size=1
    )
    assert stack.flops == pytest.approx(6 * 85e6 * 128, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpu_peaks_at_what_was_planned(checkpointing):
    """Untested where there is no GPU: one bf16 update of a small model under ZeRO-1, peak allocated against the plan."""
    import torch
    import transformers

    from workflow.data.packing import Ragged
    from workflow.models.ragged_training import RaggedT5
    from workflow.runtime import Ranks, join_ranks, leave_ranks
    from workflow.training.backend import Backend
    from workflow.training.ds_config import plan_backend
    from workflow.training.optim import make_optimizer, parameter_groups

    config = published_config("google/flan-t5-small")
    assert config is not None
    rows, source, target = 16, 256, 64
    of = job("google/flan-t5-small", longest=(source, target), copies=rows)
    options = {key: value for key, value in config.items() if key not in ("model_type", "tie_word_embeddings")}
    join_ranks(Ranks(), device="cuda")
    try:
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options, decoder_start_token_id=0))
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        plan = plan_backend(
            deepspeed="zero1", precision="bf16", optimizer="adamw", world_size=1, max_grad_norm=1.0, micro_batch_size=1
        )
        optimizer = make_optimizer("adamw", parameter_groups(model, lr=1e-3, weight_decay=0.0))
        device = torch.device("cuda", 0)
        backend = Backend(model, optimizer, plan, max_grad_norm=1.0, device=device, form=RaggedT5(model))
        packs = [
            Ragged(torch.randint(1, 32000, (rows * length,), device=device), (length,) * rows)
            for length in (source, target)
        ]
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats(device)
            backend.backward(backend.wrapped(*packs), is_last=True)
            backend.step(1.0)
        peak = torch.cuda.max_memory_allocated(device)
        backend.destroy()
    finally:
        leave_ranks()
    planned = estimate(of, STAGES[1], world_size=1, memory=80 * GB, checkpointing=checkpointing)
    assert planned.needed * 0.7 <= peak <= planned.needed * 1.15


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("kind", ["flan_like", "t5_like", "bert_like"])
def test_adapters_are_counted(kind, targets, request):
    folder = request.getfixturevalue(kind)
    loaded = load_classifier(str(folder), problem="binary", labels=("no", "yes")) if kind == "bert_like" else None
    loaded = loaded or load_seq2seq(str(folder))
    add_adapters(loaded.model, AdapterPlan(4, 8.0, 0.0, (targets,), "lora"), start=str(folder), new_weights=(), seed=0)
    count = sum(weight.numel() for name, weight in loaded.model.named_parameters() if "lora_" in name)
    shape = shape_of(loaded.model.config.to_dict(), name=kind, num_labels=2)
    assert adapter_numbers(shape, 4, everywhere=targets == "all") == count


def test_adapters_leave_room_for_xxl_on_one_gpu():
    shape = job().shape
    of = job(num_adapters=adapter_numbers(shape, 16, everywhere=True))
    found = best(of, 1, 80 * GB)
    assert found.zero.name == "zero1"
    frozen = 2 * of.num_parameters
    assert frozen < found.states.weights + found.states.gradients + found.states.optimizer < 1.2 * frozen
    assert best(of, 1, 24 * GB) is None
    shared = best(of, 4, 24 * GB)
    assert shared.zero.name == "zero3"
    assert shared.states.weights == pytest.approx(found.states.weights / 4, rel=0.01)
