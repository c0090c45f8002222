"""A run with a base in NF4 as users make it: trained, continued, used; what cannot be is refused before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import losses, run_program
from tests.test_adapters_program import LORA, train
from workflow.config.flags import parse
from workflow.config.sections import TrainedSection
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError
from workflow.models import quantised
from workflow.recipe.trained import check_base
from workflow.training.ds_config import plan_backend

NF4 = (*LORA, "--lora_base", "nf4")


@pytest.mark.slow
def test_a_run_is_continued_and_its_checkpoint_is_what_was_evaluated(mount, flan_like, tmp_path):
    pytest.importorskip("bitsandbytes")
    done = train(mount, flan_like, "--data", "toy", *NF4)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert re.search(r"lora adapters of rank 4.*; 36 frozen linear maps in NF4: [\d.]+ MB in the place of [\d.]+", said)
    run = mount / "models" / "run"
    merged, base = (load_file(folder / "model.safetensors") for folder in (run / "checkpoint-4", flan_like))
    assert merged.keys() == base.keys()
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"])
    assert json.loads((run / "checkpoint-4" / "adapter" / "base.json").read_text())["adapters"]["base"] == "nf4"
    whole = losses(run)
    shutil.rmtree(run / "checkpoint-4")
    (run / "report.json").unlink()
    assert train(mount, flan_like, "--data", "toy", *NF4).returncode == 0
    assert losses(run) == whole
    again = load_file(run / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in merged.items())
    rows = json.loads((mount / "data" / "toy.json").read_text())["eval"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out = tmp_path / "answers.json"
    told = ("generate", run / "checkpoint-4", "--mount", mount, "--data", tmp_path / "rows.json", "--out", out)
    answered = run_program(*told, module="workflow")
    assert answered.returncode == 0, answered.stderr
    mine = [row["generations"] for row in json.loads((run / "temperature=0.00_n=1_step=4.json").read_text())]
    for found, expected in zip(json.loads(out.read_text()), mine, strict=True):
        for one, other in zip(found["generations"], expected, strict=True):
            assert one["full_generated"] == other["full_generated"]
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--lora_base", "nf4"), "--lora_base needs adapters; pass --lora_r"),
        (("--lora_r", "4", "--lora_base", "nf4", "--lora_kind", "dora"), "takes --lora_kind lora or rslora"),
        (("--lora_r", "4", "--lora_base", "int4"), "lora_base"),
    ],
)
def test_settings_that_do_not_go_together(flags, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse(Seq2SeqSettings, ["--data", "x", "--model_init_path", "y", *flags], prog="seq2seq.py", example="x")


def test_zero3_is_refused():
    asked = {"precision": "bf16", "optimizer": "adamw", "world_size": 2, "max_grad_norm": 1.0, "micro_batch_size": 1}
    for stage in ("zero1", "zero2", "auto"):
        assert plan_backend(deepspeed=stage, lora_base="nf4", **asked).stage < 3
    with pytest.raises(ConfigError, match=r"--lora_base nf4 with zero3: .*use --deepspeed zero2"):
        plan_backend(deepspeed="zero3", lora_base="nf4", **asked)


def test_without_bitsandbytes_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    check_base(TrainedSection(lora_r=4))
    with pytest.raises(ConfigError, match=r"not installed: pip install .bitsandbytes"):
        check_base(TrainedSection(lora_r=4, lora_base="nf4"))
