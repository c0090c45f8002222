"""Seq2seq tasks in this process: what an evaluation without training tells of rows that it cuts."""

from __future__ import annotations

import json

from tests.conftest import write_data
from workflow.cli import workflow
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.console import make_console
from workflow.files import write_json
from workflow.recipe.place import Place
from workflow.recipe.seq2seq_task import Seq2SeqTask
from workflow.recipe.train import run_task
from workflow.runtime import Ranks


def make_task(mount, model, *flags):
    argv = ["--data_name", "toy", "--model_init_path", str(model), *map(str, flags)]
    resolved = parse(Seq2SeqSettings, argv, prog="seq2seq.py", example="")
    return Seq2SeqTask(resolved, Place(Ranks(), "cpu", mount, make_console()))


def test_what_is_cut_is_told_without_training(mount, flan_like, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limits = ("--max_source_length", 8, "--max_target_length", 5, "--max_new_tokens", 2)
    task = make_task(mount, flan_like, "--no_train", "--pred_dir", "cut", *limits)
    run_task(task)
    told = capsys.readouterr().out
    truncated = json.loads((tmp_path / "preds/cut/metrics.json").read_text())["truncated"]
    assert set(truncated) == {"prompt", "completion"}
    for key, cut in truncated.items():
        assert cut["rows"] > 0
        assert f"note  eval: {cut['rows']} rows lose {cut['tokens']} tokens of their {key} to the length limit" in told
    for warning in task.data_warnings()[1]:
        assert f"note  {warning}" in told


def test_prompts_longer_than_a_run_was_trained_to_read_are_told(flan_like, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint-best-ckpt").symlink_to(flan_like)
    write_json(run / "training_args.json", {"settings": {"max_source_length": 5}})
    rows = json.loads(write_data(tmp_path, "rows").read_text())["eval"]
    prompts = [row["prompt"] for row in rows]
    workflow(["generate", str(run), "red", *prompts, "--max_new_tokens", "2"])
    told = capsys.readouterr().err
    assert "have more than the 5 tokens that this run was trained to read (--max_source_length)" in told
    workflow(["generate", str(flan_like), *prompts, "--max_new_tokens", "2"])
    assert "trained to read" not in capsys.readouterr().err
