"""A run with strategies as users start it: groups, averages as models of their own, and going on after a kill."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import lines_without_times, run_program
from tests.training_program import Training, finished

pytestmark = pytest.mark.slow

FLAGS = (
    *("--max_steps", 6, "--eval_steps", 3, "--save_steps", 3, "--lr", 1e-3, "--warmup_steps", 2, "--logging_steps", 1),
    *("--train_batch_size", 4, "--dropout", 0.1, "--layerwise_lrd.decay", 0.8, "--r_drop.alpha", 2, "--swa.start", 3),
    *("--ema", "--reinit.layers", 1),
)


def clf(mount, model, *more):
    names = ("--mount", mount, "--model_init_path", model, "--data_name", "scored", "--training_run_name", "run")
    return run_program(*names, *more, script="clf.py")


def read(path):
    return json.loads(path.read_text())


def test_averages_are_models_and_runs_go_on(mount, bert_like):
    done = clf(mount, bert_like, *FLAGS)
    assert done.returncode == 0, done.stderr
    run = mount / "models/run"
    groups = {group["name"]: group["initial_lr"] for group in read(run / "param_groups.json")}
    assert groups["encoder.1"] == 1e-3
    assert groups["encoder.0"] == pytest.approx(0.8e-3)
    assert "starts anew, from the model's own initialiser: encoder.1, bert.pooler" in done.stdout
    card = (run / "checkpoint-6/README.md").read_text()
    assert f"learning rate {min(groups.values()):.3g} to {max(groups.values()):.3g}" in card
    assert "layerwise_lrd (" in card
    assert "and swa (" in card
    lines, report = lines_without_times(run), read(run / "report.json")
    last = lines[-1]
    for name in ("swa", "ema"):
        assert last[f"{name}_eval_loss"] == report["averages"][name]["metrics"]["eval_loss"]["value"]
        assert last[f"{name}_eval_loss"] != last["eval_loss"]
    before = read(run / "swa-preds.json")

    scored = run_program(
        *("score", run / "checkpoint-swa", "--data", mount / "data/scored.json", "--split", "eval", "--mount", mount),
        *("--out", mount / "scores.jsonl"),
        module="workflow",
    )
    assert scored.returncode == 0, scored.stderr
    scores = [json.loads(line)["pred_score"] for line in (mount / "scores.jsonl").read_text().splitlines()]
    assert scores == pytest.approx([row["pred_score"] for row in before], abs=1e-5)

    for name in (
        "checkpoint-6",
        "checkpoint-swa",
        "checkpoint-ema",
        "checkpoint-best-ckpt",
    ):  # as if killed after step 3
        shutil.rmtree(run / name)
    (run / "report.json").unlink()
    again = clf(mount, bert_like, *FLAGS)
    assert "continued after step 3" in again.stdout, again.stderr
    assert lines_without_times(run) == lines
    assert read(run / "swa-preds.json") == before
    assert read(run / "report.json")["averages"] == report["averages"]
    other = clf(mount, bert_like, *FLAGS, "--swa.start", 4)
    assert other.returncode == 2
    assert '"start": 4.0' in other.stderr


AVERAGED = {
    "max_steps": 24,
    "eval_steps": 12,
    "save_steps": 4,
    "save_total_limit": 2,
    "nproc": 2,
    "deepspeed": "zero2",
    "lora_r": 4,
    "lora_targets": "all",
    "lora_dropout": 0.1,
    "max_new_tokens": 4,
    "lr": 3e-2,
    "layerwise_lrd.decay": 0.8,
    "r_drop.alpha": 1.0,
    "swa.start": 6,
    "ema.decay": 0.9,
}


def test_killed_between_saves_averages_of_adapters_are_the_same(mount, flan_like):
    """On two ranks, to the last bit; and an average, merged into a plain model, is what was evaluated."""
    with Training(mount, flan_like, **AVERAGED) as run:
        run.reaches(10)
        run.send(signal.SIGKILL)
    folder = mount / "models/run"
    assert not (folder / "report.json").exists()
    again = finished(mount, flan_like, **AVERAGED)
    assert "continued after step" in again.output
    folder.rename(mount / "models/killed")
    whole = finished(mount, flan_like, **AVERAGED)
    assert "continued" not in whole.output
    for name in ("swa", "ema"):
        kept = load_file(folder / f"checkpoint-{name}/model.safetensors")
        same = load_file(mount / f"models/killed/checkpoint-{name}/model.safetensors")
        assert all(torch.equal(same[key], weight) for key, weight in kept.items()), name
        assert kept.keys() == load_file(flan_like / "model.safetensors").keys()
        assert not torch.equal(kept[QUERY], load_file(folder / "checkpoint-24/model.safetensors")[QUERY])
        assert "no checkpoint of the training but" in (folder / f"checkpoint-{name}/README.md").read_text()
    model = ("--model_init_path", folder / "checkpoint-swa", "--data_name", "toy", "--mount", mount)
    told = run_program(*model, "--no_train", "--pred_dir", "swa", "--max_new_tokens", 4, cwd=mount)
    assert told.returncode == 0, told.stderr
    found = read(mount / "preds/swa/metrics.json")["metrics"]["eval_loss"]["value"]
    assert found == pytest.approx(whole.report().averages["swa"].metrics["eval_loss"].value, rel=1e-4)


QUERY = "decoder.block.0.layer.0.SelfAttention.q.weight"


def test_a_pruned_model_stays_sparse_or_is_refused(mount, flan_like):
    pruned = mount / "models/half"
    done = run_program("prune", flan_like, "--sparsity", 0.5, "--out", pruned, module="workflow")
    assert done.returncode == 0, done.stderr
    common = (
        "--mount",
        mount,
        "--model_init_name",
        "half",
        "--data_name",
        "toy",
        "--max_steps",
        2,
        "--max_new_tokens",
        4,
    )
    refused = run_program(*common, "--training_run_name", "no")
    assert refused.returncode == 2
    assert "--static_sparsity" in refused.stderr
    kept = run_program(*common, "--training_run_name", "yes", "--static_sparsity", "--lr", 1e-2)
    assert kept.returncode == 0, kept.stderr
    found = [line["sparsity"] for line in lines_without_times(mount / "models/yes") if "sparsity" in line]
    assert len(set(found)) == 1
    assert found[0] > 0.35
