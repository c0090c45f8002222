"""What clf.py refuses before it starts, and what it says at the end, on small models in this process."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fifo import Fifo
from workflow.cli import workflow
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.console import make_console
from workflow.data.examples import ScoredRows, load_examples
from workflow.data.scoring import Scoring
from workflow.data.sources import find_source
from workflow.data.targets import Targets
from workflow.data.texts import Texts
from workflow.errors import ConfigError, DataError, ModelError
from workflow.evaluation.report import Report, result_table
from workflow.files import write_json
from workflow.paths import RunPaths
from workflow.recipe.clf_task import ClfTask
from workflow.recipe.place import Place
from workflow.recipe.settling import what_is_read
from workflow.recipe.train import run_task
from workflow.recipe.trained import load_to_train
from workflow.runtime import Ranks
from workflow.training.checkpoint import TrainState


def make_task(mount, model, *flags):
    argv = ["--data_name", "scored", "--model_init_path", str(model), *map(str, flags)]
    resolved = parse(ClfSettings, argv, prog="clf.py", example="")
    return ClfTask(resolved, Place(Ranks(), "cpu", mount, make_console()))


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
    told = capsys.readouterr().out
    assert f"note  eval: {cut.rows} rows lose {cut.tokens} tokens of their input to the length limit" in told
    assert "token_types" not in told


def test_what_is_odd_about_the_data_is_told_without_training(mount, scorer, tmp_path, capsys, monkeypatch):
    """The notes that training gives, and what was cut beside the predictions, where `workflow evaluate` finds it."""
    monkeypatch.chdir(tmp_path)
    task = make_task(mount, scorer, "--no_train", "--max_length", 8)
    run_task(task)
    told = capsys.readouterr().out
    warnings = task.data_warnings()[1]
    assert len(warnings) == 2
    for warning in warnings:
        assert f"note  {warning}" in told
    preds = task.predictions_alone()
    cut = task.data.eval.truncation("input")
    truncated = json.loads(preds.with_name("metrics.json").read_text())["truncated"]
    assert truncated == {"input": {"rows": cut.rows, "tokens": cut.tokens}}
    workflow(["evaluate", str(preds)])
    assert f"note: {preds}: {cut.rows} rows lose {cut.tokens} tokens" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["fifo", "link"])
def test_predictions_go_through_what_is_no_regular_file(mount, scorer, tmp_path, out):
    fifo = Fifo(tmp_path / "fifo") if out == "fifo" else None
    (tmp_path / "link").symlink_to("real.jsonl")
    run_task(make_task(mount, scorer, "--no_train", "--pred_save_path", tmp_path / out, "--max_length", 32))
    text = fifo.text() if fifo else (tmp_path / "real.jsonl").read_text()
    assert len(re.findall("pred_score", text)) == 11
    assert (tmp_path / "link").is_symlink()


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


def test_a_model_without_a_run_refuses_rows_of_another_kind(mount, scorer, tmp_path):
    write_json(scorer / "scoring.json", Scoring(max_length=32, reads="pairs").as_json())
    task = make_task(mount, scorer, "--no_train", "--pred_save_path", tmp_path / "out.json", "--max_length", 32)
    with pytest.raises(DataError, match="the second text: this run reads pairs"):
        run_task(task)
    assert not (tmp_path / "out.json").exists()


SINGLE, PAIR = {"input": "a", "target": 1}, {"input": "a", "input_pair": "", "target": 1}


@pytest.mark.parametrize(
    ("train", "held_out", "reads", "note"),
    [
        ([SINGLE, SINGLE], [SINGLE], "texts", None),
        ([PAIR, PAIR], [PAIR], "pairs", None),
        (
            [PAIR, PAIR, SINGLE],
            [SINGLE, PAIR],
            None,
            "1 of 3 training rows are single texts beside pairs, first train[2]",
        ),
        (
            [{**SINGLE, "input_pear": "b"}],
            [SINGLE],
            "texts",
            'the rows are single texts: they have no "input_pair"; did you mean "input_pear"?',
        ),
    ],
)
def test_a_run_records_whether_it_reads_pairs(mount, tmp_path, train, held_out, reads, note):
    (mount / "data/kinds.json").write_text(json.dumps({"train": train, "eval": held_out}))
    examples = load_examples(find_source("kinds", mount), ScoredRows(Texts(), Targets()), tmp_path / "cache")
    assert what_is_read(examples) == (reads, [note] if note else [])


def test_eval_rows_of_another_kind_than_the_training_rows_are_refused(mount, tmp_path):
    (mount / "data/kinds.json").write_text(json.dumps({"train": [PAIR], "eval": [PAIR, SINGLE]}))
    examples = load_examples(find_source("kinds", mount), ScoredRows(Texts(), Targets()), tmp_path / "cache")
    with pytest.raises(DataError, match=r'eval\[1\] is not like the training rows: missing "input_pair"'):
        what_is_read(examples)
