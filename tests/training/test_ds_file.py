"""DeepSpeed files: what has no effect or a wrong one is refused before anything loads, and the stage is shown."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.test_decisions import backend
from workflow.clf import clf
from workflow.errors import ConfigError
from workflow.seq2seq import seq2seq
from workflow.training.ds_file import OWNED, TAKEN, UNUSED, read_ds_file, stage_text
from workflow.training.zero_start import check_values

ZERO2 = {"zero_optimization": {"stage": 2}}
HF = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "optimizer": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


@pytest.fixture
def file(tmp_path):
    def written(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"zero_optimisation": {"stage": 3}}, 'unknown key "zero_optimisation"; did you mean "zero_optimization"'),
        ({"deepspeed_config": {"zero_stage": 3}}, r'of an Accelerate file; .*{"zero_optimization": {"stage": 3}}'),
        ({"zero_stage": 2}, r'{"zero_optimization": {"stage": 2}}'),
        ({"steps_per_print": 10}, "says no ZeRO stage"),
        ({}, "says no ZeRO stage"),
        ({"zero_optimization": {}}, "says no ZeRO stage"),
        ({"zero_optimization": "auto"}, '"zero_optimization" is "auto", which decides nothing'),
        ({"zero_optimization": {"stage": "auto"}}, '"zero_optimization.stage" is "auto", which decides nothing'),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "auto"}}}, "device.* decides nothing"),
        ({"zero_optimization": {"stage": True}}, "must be 0, 1, 2 or 3, not true"),
        ({"zero_optimization": {"stage": "3"}}, 'must be 0, 1, 2 or 3, not "3"'),
        ({"zero_optimization": True}, "must be 0, 1, 2 or 3, not true"),
        ({**ZERO2, "communication_data_type": "fp16"}, '"communication_data_type" is "fp16"'),
        ({**ZERO2, "aio": {"dtype": "float16"}}, '"aio.dtype" is "float16"'),
        ({**ZERO2, "data_types": {"grad_accum_dtype": "fp16"}}, "set by --precision"),
        ({**ZERO2, "fp16": {"enabled": True}}, "set by --precision bf16"),
        ({**ZERO2, "fp16": True}, "set by --precision bf16"),
        ({**ZERO2, "amp": {"enabled": True, "opt_level": "O1"}}, "set by --precision bf16"),
        ({**ZERO2, "bf16": {"enabled": True}}, "set by --precision bf16"),
        ({**ZERO2, "optimizer": {"type": "AdamW"}}, "set by --optimizer and --lr"),
        ({**ZERO2, "elasticity": {"enabled": True}}, "feature of DeepSpeed that runs here make no use of"),
        ({**ZERO2, "tensor_parallel": {"autotp_size": 2}}, "feature of DeepSpeed that runs here make no use of"),
        ('{"zero_optimization": {"stage": 3, "stage": 0}}', '"stage" is given twice'),
        ("[" * 100_000, "not valid JSON"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "auto"}}, "offload_optimizer.* decides nothing"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "does nothing below stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "does nothing below stage 1"),
        ({**ZERO2, "aio": [1]}, r'"aio" must be an object, not \[1\]'),
        ({**ZERO2, "comms_logger": True}, '"comms_logger" must be an object, not true'),
        ({**ZERO2, "prescale_gradients": "yes"}, '"prescale_gradients" must be true or false, not "yes"'),
        ({**ZERO2, "gradient_predivide_factor": "2"}, '"gradient_predivide_factor" must be a number, not "2"'),
        ({**ZERO2, "communication_data_type": 3}, '"communication_data_type" must be a text, not 3'),
    ],
)
def test_what_a_file_may_not_say(file, content, told):
    with pytest.raises(ConfigError, match=told) as error:
        read_ds_file(file(content))
    assert all(problem.startswith(f"--deepspeed {file(content)}: ") for problem in error.value.problems)


def test_every_problem_is_told_at_once(file):
    with pytest.raises(ConfigError) as error:
        read_ds_file(file({"zero_optimisation": {}, "train_batch_size": 8, "communication_data_type": "half"}))
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("off", [{"enabled": False}, {"enabled": "auto"}, False, "auto"])
def test_blocks_that_are_off_wish_nothing(file, off):
    for key in ("fp16", "bf16", "amp", "torch_autocast"):
        assert read_ds_file(file({**ZERO2, key: off})) == ZERO2
    if off is not False and off != "auto":
        assert read_ds_file(file({**ZERO2, "elasticity": off, "wandb": off})) == ZERO2


def test_null_says_nothing(file):
    assert read_ds_file(file({**ZERO2, "fp16": None, "aio": None, "bf16": {"enabled": None}})) == ZERO2


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ({"aio": {"block_size": "x"}}, "aio.block_size = 'x': expected int"),
        ({"aio": {"block_sise": 1}}, 'unknown key "aio.block_sise"; did you mean "block_size"'),
        ({"comms_logger": {"enabld": True}}, 'unknown key "comms_logger.enabld"; did you mean "enabled"'),
        ({"comms_logger": {"prof_ops": 3}}, "comms_logger.prof_ops = 3: "),
    ],
)
def test_other_blocks_are_told_by_their_names(file, blocks, told):
    with pytest.raises(ConfigError, match=told):
        check_values(backend(deepspeed=str(file({**ZERO2, **blocks}))))


@pytest.mark.parametrize("off", [{"enabled": False}, False])
def test_a_file_without_bf16_is_for_fp32(file, off):
    name = str(file({**ZERO2, "bf16": off}))
    assert backend(deepspeed=name, precision="fp32").stage == 2
    with pytest.raises(ConfigError, match=r'"bf16" is off, but this run is in bf16'):
        backend(deepspeed=name, precision="bf16")


def test_a_file_of_the_transformers_trainer(file):
    found = read_ds_file(file(HF))
    assert found["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    assert found.keys() == {"zero_optimization", "steps_per_print", "wall_clock_breakdown"}
    plan = backend(deepspeed=str(file(HF)))
    check_values(plan)
    assert str(plan) == f"{file(HF)} (ZeRO-3, optimizer on cpu)"


def test_the_stage_is_shown():
    assert stage_text("zero2", {"stage": 2}) == "zero2"
    offload = {"stage": 3, "offload_param": {"device": "nvme"}, "offload_optimizer": {"device": "none"}}
    assert stage_text("ds.json", offload) == "ds.json (ZeRO-3, weights on nvme)"
    assert stage_text("ds.json", {"stage": 0}) == "ds.json (ZeRO-0)"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"stage": 3, "stage3_prefetch_bucket_size": 15099494.4}, "zero_optimization.stage3_prefetch_bucket_size = 15"),
        (
            {"stage": 2, "reduce_buckt_size": 5},
            'unknown key "zero_optimization.reduce_buckt_size"; did you mean "reduce_b',
        ),
        ({"stage": 2, "offload_optimizer": {"devise": "cpu"}}, 'offload_optimizer.devise"; did you mean "device"'),
        ({"stage": 3, "offload_param": {"device": "gpu"}}, "zero_optimization.offload_param.device = 'gpu'"),
        ({"stage": 3, "stage3_max_live_parameters": -1}, "zero_optimization.stage3_max_live_parameters = -1"),
        ({"stage": 2, "overlap_comm": "maybe"}, "zero_optimization.overlap_comm = 'maybe'"),
    ],
)
def test_values_are_read_by_deepspeeds_own_models(file, content, told):
    plan = backend(deepspeed=str(file({"zero_optimization": content})))
    with pytest.raises(ConfigError, match=told) as error:
        check_values(plan)
    assert all("\n" not in problem for problem in error.value.problems)


@pytest.mark.parametrize(
    "more", [{"communication_data_type": "int7"}, {"aio": {"block_sice": 1}}, {"comms_logger": {"enabeld": True}}]
)
def test_values_beside_zero_too(file, more):
    with pytest.raises(ConfigError) as error:
        check_values(backend(deepspeed=str(file({**ZERO2, **more}))))
    (problem,) = error.value.problems
    assert "\n" not in problem


def test_our_own_files_are_good():
    for path in (ROOT / "ds_configs").glob("*.json"):
        check_values(backend(deepspeed=str(path)))


def test_keys_stand_in_one_list():
    assert len({*OWNED, *TAKEN, *UNUSED}) == len(OWNED) + len(TAKEN) + len(UNUSED)


def test_what_a_file_may_say_is_what_deepspeed_reads():
    """Each key stands in DeepSpeed's own source, so that one it no longer reads is noticed."""
    package = Path(find_spec("deepspeed").submodule_search_locations[0])
    folders = ("runtime", "runtime/zero", "runtime/swap_tensor", "runtime/activation_checkpointing", "comm", "monitor")
    source = "".join(path.read_text(encoding="utf-8") for folder in folders for path in (package / folder).glob("*.py"))
    assert [key for key in (*OWNED, *TAKEN) if key not in source] == []


@pytest.mark.parametrize(("program", "model"), [(seq2seq, "--model_init_path"), (clf, "--model_pretrain_name")])
def test_the_programs_refuse_it_first(file, program, model):
    argv = [model, "nowhere", "--data", "nothing", "--deepspeed", str(file({"zero_optimisation": {"stage": 3}}))]
    with pytest.raises(ConfigError, match="did you mean"):
        program(argv)
