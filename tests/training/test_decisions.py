"""Pure decisions: steps, warmup, schedules, FLOPs, the DeepSpeed configuration, parameter groups."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ROOT
from workflow.errors import ConfigError
from workflow.models.load import load_seq2seq
from workflow.training.ds_config import pick_precision, plan_backend
from workflow.training.ds_file import OWNED
from workflow.training.flops import T5Dimensions, peak_flops
from workflow.training.objectives import shift_right
from workflow.training.optim import make_optimizer, parameter_groups, set_lr
from workflow.training.schedule import happens, lr_multiplier, plan_steps


def steps(**given):
    return plan_steps(
        **{
            "max_steps": 1000,
            "num_epochs": 4.0,
            "eval_steps": None,
            "save_steps": None,
            "warmup_steps": 0,
            "warmup_ratio": None,
            **given,
        }
    )


def test_evaluation_and_saving_once_an_epoch_unless_told():
    assert (steps().eval_steps, steps().save_steps) == (250, 250)
    assert (steps(eval_steps=100).save_steps, steps(eval_steps=100, save_steps=70).save_steps) == (100, 70)
    assert steps(max_steps=3, num_epochs=4.0).eval_steps == 1
    assert steps(num_epochs=0.5).eval_steps == 1000


def test_a_warmup_longer_than_half_the_run_is_cut_with_a_notice():
    cut = steps(max_steps=2001, warmup_steps=2000)
    assert cut.warmup_steps == 200
    assert "warmup cut from 2000 to 200" in cut.notes[0]
    assert steps(max_steps=6001, warmup_steps=2000).warmup_steps == 2000
    assert steps(warmup_ratio=0.06, warmup_steps=2000).warmup_steps == 60


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules(kind):
    values = [lr_multiplier(step, kind=kind, warmup_steps=10, max_steps=100) for step in range(1, 101)]
    assert values[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert values[10] == pytest.approx(1.0)
    assert all(0 < value <= 1 for value in values)
    assert all(later <= earlier for earlier, later in zip(values[10:], values[11:], strict=False))
    assert values[-1] == pytest.approx({"linear": 1 / 90, "cosine": 0.0003, "constant": 1.0}[kind], abs=2e-4)
    assert lr_multiplier(1, kind=kind, warmup_steps=0, max_steps=1) == 1.0


def test_the_inverse_square_root():
    values = [lr_multiplier(step, kind="inverse_sqrt", warmup_steps=25, max_steps=999) for step in (5, 25, 100, 2500)]
    assert values == pytest.approx([0.2, 1.0, 0.5, 0.1])
    assert lr_multiplier(4, kind="inverse_sqrt", warmup_steps=0, max_steps=9) == 0.5


def test_one_cycle():
    values = [lr_multiplier(step, kind="one_cycle", warmup_steps=30, max_steps=100) for step in range(1, 101)]
    assert values[29] == 1.0 == max(values)
    assert values[0] == pytest.approx(1 / 25 + 24 / 25 / 30)
    assert values[65] == pytest.approx(0.5, abs=0.02)
    assert values[-1] < 0.001
    assert values == [*sorted(values[:30]), *sorted(values[30:], reverse=True)]


def test_happens():
    assert [step for step in range(1, 8) if happens(step, 3, 7)] == [3, 6, 7]


@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_flops_equal_a_counted_forward_pass(kind, request):
    model = load_seq2seq(str(request.getfixturevalue(kind))).model
    model.set_attn_implementation("eager")
    source, target = 23, 11
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            input_ids=torch.ones(1, source, dtype=torch.long),
            decoder_input_ids=torch.ones(1, target, dtype=torch.long),
            use_cache=False,
        )
    # Full self-attention over the target is counted there; causal use is half of it.
    dimensions = T5Dimensions.of(model.config)
    causal = dimensions.num_decoder_layers * 2 * dimensions.inner * target * (target - 1)
    assert dimensions.forward_flops(source, target) + causal == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_flops_of_the_published_shapes():
    """The figures per example at 512/114 tokens of our performance notes, in TFLOP of training."""
    for layers, d, inner, ff, expected in (
        (8, 512, 384, 1024, 0.106),
        (12, 768, 768, 2048, 0.425),
        (24, 1024, 1024, 2816, 1.47),
        (24, 2048, 2048, 5120, 5.34),
        (24, 4096, 4096, 10240, 20.9),
    ):
        found = T5Dimensions(d, inner, ff, True, layers, layers, 32128).training_flops(512, 114)
        assert found / 1e12 == pytest.approx(expected, rel=0.02)


def test_peaks():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("something else") is None


def backend(**given):
    return plan_backend(
        **{
            "deepspeed": "auto",
            "precision": "fp32",
            "optimizer": "adamw",
            "world_size": 1,
            "max_grad_norm": 1.0,
            "micro_batch_size": 4,
            **given,
        }
    )


def test_auto_stages():
    assert backend().name == "zero0"
    assert backend(world_size=4).name == "zero2"
    assert backend(precision="bf16").name == "zero1"
    assert (pick_precision("auto", "cuda"), pick_precision("auto", "cpu"), pick_precision("fp32", "cuda")) == (
        "bf16",
        "fp32",
        "fp32",
    )


def test_gradients_are_summed_in_fp32_unless_a_file_says_otherwise(tmp_path):
    assert backend(precision="bf16").config["communication_data_type"] == "fp32"
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "communication_data_type": "bf16"}')
    told = backend(precision="bf16", deepspeed=str(tmp_path / "ds.json"))
    assert told.config["communication_data_type"] == "bf16"


def test_combinations_that_would_train_wrongly_are_refused():
    """F5: Adafactor under ZeRO is not Adafactor. F10: fp16 overflows."""
    for bad in ({"deepspeed": "zero1"}, {"deepspeed": "zero3"}, {"world_size": 2}, {"precision": "bf16"}):
        with pytest.raises(ConfigError, match="nothing is factored"):
            backend(optimizer="adafactor", **bad)
    assert backend(optimizer="adafactor").stage == 0
    with pytest.raises(ConfigError, match="bias correction"):
        backend(deepspeed="zero0", precision="bf16")


def test_deepspeed_files(tmp_path):
    def given(text):
        (tmp_path / "ds.json").write_text(text)
        return backend(deepspeed=str(tmp_path / "ds.json"))

    assert given('{"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}').stage == 3
    for key, flag in OWNED.items():
        with pytest.raises(ConfigError) as caught:
            given(json.dumps({key: 1}))
        assert flag.split()[0] in str(caught.value)
    for text, expected in (
        ("{", "not valid JSON"),
        ("[]", "one object"),
        ('{"zero_optimization": {"stage": 7}}', "must be 0, 1, 2 or 3"),
        ('{"zero_optimization": 1}', "must be 0"),
    ):
        with pytest.raises(ConfigError, match=expected):
            given(text)
    with pytest.raises(ConfigError, match="No such file"):
        backend(deepspeed="none.json")


def test_shipped_files_are_the_stages_and_own_nothing_else():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for path in (ROOT / "ds_configs").glob("*.json"):
        plan = backend(deepspeed=str(path))
        assert path.stem.startswith(f"zero{plan.stage}")
        zero = plan.config["zero_optimization"]
        assert zero.keys() <= DeepSpeedZeroConfig.model_fields.keys(), path
        DeepSpeedZeroConfig.model_validate(zero)
    for stage in range(4):
        assert (
            backend(deepspeed=f"zero{stage}").config
            == backend(deepspeed=str(ROOT / f"ds_configs/zero{stage}.json")).config
        )


def test_every_parameter_is_in_exactly_one_group(flan_like):
    model = load_seq2seq(str(flan_like)).model
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = [names[id(parameter)] for parameter in groups[1]["params"]]
    assert all("layer_norm" in name or "relative_attention_bias" in name for name in plain)
    assert len(parameter_groups(model, lr=1e-3, weight_decay=0.0)) == 1


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_schedule_multiplies_each_groups_own_rate(name):
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = make_optimizer(
        name, [{"params": [weight], "lr": lr, "initial_lr": lr} for weight, lr in zip(weights, (1.0, 0.1), strict=True)]
    )
    assert set_lr(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


def test_shift_right():
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    assert shift_right(labels, start_token=0, pad_token=0).tolist() == [[0, 5, 6], [0, 7, 1]]
