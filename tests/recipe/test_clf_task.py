"""What clf.py refuses before it starts, and what it says at the end, on small models in this process."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.errors import ConfigError, ModelError
from workflow.evaluation.report import Report, result_table
from workflow.paths import RunPaths
from workflow.recipe.clf_task import ClfTask
from workflow.recipe.place import Place
from workflow.recipe.train import run_task
from workflow.recipe.trained import load_to_train
from workflow.runtime import Ranks
from workflow.training.checkpoint import TrainState


def make_task(mount, model, *flags):
    argv = ["--data_name", "scored", "--model_init_path", str(model), *map(str, flags)]
    resolved = parse(ClfSettings, argv, prog="clf.py", example="")
    return ClfTask(resolved, Place(Ranks(), "cpu", mount, Console()))


@pytest.mark.parametrize(("place", "reason"), [("folder", "is a folder"), ("file/x.json", "is no folder")])
def test_predictions_must_have_a_place_before_training(mount, tmp_path, place, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"--pred_save_path .*{reason}; name a file"):
        run_task(make_task(mount, "m", "--pred_save_path", tmp_path / place))
    make_task(mount, "m", "--pred_save_path", tmp_path / "new/folder/x.json").check_settings()


def test_a_template_files_text_is_an_input(mount, tmp_path):
    (tmp_path / "template.txt").write_text("a {input}\n")
    assert make_task(mount, "m", "--template", tmp_path / "template.txt").inputs == {"template_text": "a {input}"}
    assert make_task(mount, "m").inputs == {}


def test_the_header_says_where_the_weights_come_from(mount, scorer):
    for flags, told in (((), False), (("--model_pretrain_name", "M"), True)):
        task = make_task(mount, scorer, "--max_length", 32, *flags)
        load_to_train(task, None)
        assert (f"weights from {scorer}, not from M" in task.header()) == told


@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_sparse_model_is_refused_also_where_it_is_the_checkpoint_of_another_run(mount, scorer, is_resumed):
    file = scorer / "model.safetensors"
    weights = load_file(file)
    save_file({name: torch.zeros_like(weight) for name, weight in weights.items()}, file, metadata={"format": "pt"})
    start_from = scorer if is_resumed else None
    with pytest.raises(ConfigError, match="pass --static_sparsity to keep them zero"):
        load_to_train(make_task(mount, scorer, "--max_length", 32), start_from)
    load_to_train(make_task(mount, scorer, "--max_length", 32, "--static_sparsity"), start_from)


def test_scores_that_are_no_numbers_are_told_without_a_run(mount, scorer, tmp_path):
    file = scorer / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] += torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    task = make_task(mount, scorer, "--no_train", "--pred_save_path", tmp_path / "out.json", "--max_length", 32)
    with pytest.raises(
        ModelError, match=r"scorer: its scores are NaN or infinite for 11 of 11 rows, first for eval\[0\]"
    ):
        run_task(task)
    assert not (tmp_path / "out.json").exists()


def test_cut_inputs_are_told_without_training(mount, scorer, tmp_path, capsys):
    task = make_task(mount, scorer, "--no_train", "--pred_save_path", tmp_path / "out.json", "--max_length", 8)
    run_task(task)
    cut = task.data.eval.truncation("input")
    assert cut.rows
    assert f"note: {cut.rows} rows lose {cut.tokens} tokens of their input" in capsys.readouterr().out


def test_why_nothing_was_calibrated_stands_below_the_table(mount, tmp_path):
    task, paths = make_task(mount, "m"), RunPaths(tmp_path / "run")
    assert task.result_notes(paths, TrainState(step=3)) == []
    paths.checkpoint(3).mkdir(parents=True)
    unfit = {
        "schema_version": 1,
        "problem": "binary",
        "method": "none",
        "num_rows": 5,
        "reason": "5 fitting rows",
        "thresholds": {"accuracy": 0.5, "f1_macro": 0.5, "mcc": 0.5},
        "thresholds_are_of": "scores",
    }
    (paths.checkpoint(3) / "calibration.json").write_text(json.dumps(unfit))
    notes = task.result_notes(paths, TrainState(step=3))
    assert notes == ["no calibration and no threshold were fitted: 5 fitting rows"]
    nothing = dict.fromkeys(("initial", "final", "best", "final_train_loss"))
    speed = {"tokens_per_s": 1, "examples_per_s": 1, "train_seconds": 1, "mfu": None}
    named = dict.fromkeys(("run", "task", "model", "data", "data_hash", "best_metric"), "x")
    counts = {"steps": 3, "examples": 1, "epochs": 1, "settings": {}, "backend": {}, "environment": {}}
    report = Report.model_validate({**named, **nothing, **counts, "speed": speed, "notes": notes})
    assert result_table(report).caption == notes[0]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_predictions_at_a_path_are_a_file_of_their_own_in_the_form_of_its_name(mount, tmp_path, suffix):
    file = tmp_path / f"out/preds{suffix}"
    task, paths = make_task(mount, "m", "--pred_save_path", file, "--problem", "regression"), RunPaths(tmp_path / "run")
    final = paths.step_scores(3)
    final.parent.mkdir(parents=True)
    records = [{"orig_d": {"input": "a"}, "pred_score": score} for score in (0.1, 1 / 3)]
    final.write_text(json.dumps(records))
    task.finish(paths, TrainState(step=3))
    text = file.read_text()
    assert (json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]) == records
    assert not file.samefile(final)
    assert paths.scores.samefile(final)
