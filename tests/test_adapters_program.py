"""Runs with adapters as users make them: trained, interrupted and continued, then used by every command."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from tests.conftest import losses, run_program

pytestmark = pytest.mark.slow

LORA = ("--lora_r", 4, "--lora_targets", "all", "--lr", 1e-2, "--dropout", 0)


def train(mount, model, *more, steps=4, name="run", **options):
    where = ("--mount", mount, "--model_init_path", model, "--training_run_name", name)
    sizes = ("--max_steps", steps, "--eval_steps", 2, "--train_batch_size", 8, "--logging_steps", 1)
    return run_program(*where, *sizes, "--no_eval_at_start", *more, **options)


def test_a_run_with_adapters_is_continued_and_used(mount, flan_like, tmp_path):
    done = train(mount, flan_like, "--data", "toy", *LORA)
    assert done.returncode == 0, done.stderr
    line = re.search(
        r"^trains +([\d,]+) of ([\d,]+) parameters \(.*lora adapters of rank 4, alpha 8", done.stdout, re.MULTILINE
    )
    assert line
    run, base = mount / "models" / "run", load_file(flan_like / "model.safetensors")
    best = run / "checkpoint-best-ckpt"
    merged = load_file(best / "model.safetensors")
    assert merged.keys() == base.keys()
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"])
    assert AutoModelForSeq2SeqLM.from_pretrained(best)
    assert (best / "adapter" / "adapter_config.json").is_file()
    # A killed run: the newest checkpoint is gone; the same command goes on from the one before, to the same bits.
    whole = losses(run)
    shutil.rmtree(run / "checkpoint-4")
    (run / "report.json").unlink()
    assert train(mount, flan_like, "--data", "toy", *LORA).returncode == 0
    assert losses(run) == whole
    again = load_file(run / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in load_file(best / "model.safetensors").items())
    # The run is a plain one to whatever uses it, and says what its own evaluation said.
    rows = json.loads((mount / "data" / "toy.json").read_text())["eval"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out = tmp_path / "answers.json"
    told = ("generate", "run", "--mount", mount, "--data", tmp_path / "rows.json", "--out", out)
    answered = run_program(*told, module="workflow")
    assert answered.returncode == 0, answered.stderr
    mine = [row["generations"] for row in json.loads((run / "temperature=0.00_n=1_step=4.json").read_text())]
    for found, expected in zip(json.loads(out.read_text()), mine, strict=True):
        for one, other in zip(found["generations"], expected, strict=True):
            assert one["full_generated"] == other["full_generated"]
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert _served(mount, rows[0]["prompt"]) == mine[0][0]["lm_postprocess"]


def _served(mount, prompt) -> str:
    """The server's answer, by the parts that serve it."""
    from workflow.inference.batch import generate_all
    from workflow.inference.requests import GenerateRequest
    from workflow.inference.sampling import SamplingParams
    from workflow.models.load import load_tokenizer
    from workflow.server.checkpoints import RunFolder
    from workflow.server.loading import make_loader
    from workflow.server.settings import ServeSettings

    found = RunFolder(mount / "models").find("run")
    assert found is not None
    service = make_loader(ServeSettings())("run", found.path)
    ids = load_tokenizer(str(found.path))(prompt).input_ids
    params = SamplingParams(max_new_tokens=service.default_new_tokens, temperature=0.0)
    return generate_all(service.engine, [GenerateRequest(ids, params, seed=0)])[0].generations[0].text


def test_a_classifier_with_adapters_scores_as_it_was_measured(mount, bert_like, tmp_path):
    more = ("--data", "scored", "--lora_r", 2, "--lora_kind", "dora", "--deepspeed", "zero2", "--nproc", 2)
    done = train(mount, bert_like, *more, script="clf.py")
    assert done.returncode == 0, done.stderr
    run = mount / "models" / "run"
    config = json.loads((run / "checkpoint-4" / "adapter" / "adapter_config.json").read_text())
    assert "classifier" in config["modules_to_save"]
    rows = json.loads((mount / "data" / "scored.json").read_text())["eval"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    told = (
        "score",
        run / "checkpoint-4",
        "--mount",
        mount,
        "--data",
        tmp_path / "rows.json",
        "--out",
        tmp_path / "out.jsonl",
    )
    scored = run_program(*told, module="workflow")
    assert scored.returncode == 0, scored.stderr
    mine = [row["pred_score"] for row in json.loads((run / "checkpoint-4-preds.json").read_text())]
    found = [json.loads(line)["pred_score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == pytest.approx(mine, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--lora_r", 2, "--lora_targets", "qq"), "--lora_targets qq: matches no linear map"),
        (("--train_only", "bias"), "--train_only bias: matches no parameter"),
        (("--lora_r", 2, "--train_only", "norm"), "pass one of them"),
        (("--lora_alpha", 16), "--lora_alpha needs adapters"),
    ],
)
def test_what_cannot_be_is_refused(mount, flan_like, flags, text):
    done = train(mount, flan_like, "--data", "toy", *flags)
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())


def test_another_base_is_refused(mount, flan_like, t5_like):
    assert train(mount, flan_like, "--data", "toy", "--lora_r", 2, steps=2).returncode == 0
    other = mount / "models" / "run" / "checkpoint-2"
    done = train(mount, other, "--data", "toy", "--lora_r", 2, "--resume", other, name="next")
    assert done.returncode == 2, done.stderr
    assert "belong to another model" in " ".join(done.stderr.split())
