"""Sweeps: written and shown, run only when asked, resumed by content, failures told and retried on demand."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweep.conftest import command, finished, options, starts, write
from tests.sweep.fake import accuracy
from workflow.commands.sweeping import sweep as sweep_command
from workflow.config.cascade import FLAGS, Layer, read_settings_file
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.errors import ConfigError, WorkflowError
from workflow.sweep.entries import ENTRIES
from workflow.sweep.grid import parse_grid
from workflow.sweep.study import read_study
from workflow.sweep.sweep import Sweep, run_sweep

CLF = ENTRIES["clf"]
LRS, BATCHES, SEEDS = [1e-3, 5e-4], [16, 32], [0, 1, 2]


def sweep(place, *, folder="study", base=None, max_points=100, metric=None, **raw):
    layers = [Layer("base.json", {**read_settings_file(Path("base.json")), **(base or {})})]
    grid = parse_grid(raw, CLF, name="grid.json")
    return Sweep(CLF, grid, layers, place / folder, place / "mount", metric, max_points)


def run(planned, place, **more):
    given = {"n_trials": None, "timeout_s": None, "storage": None}
    given |= {name: more.pop(name) for name in list(more) if name in given}
    return run_sweep(planned, options(place, planned.folder, **more), **given)


def test_without_submit_nothing_runs(place, capsys):
    planned = sweep(place, parameters={"lr": LRS, "batch_size": BATCHES, "epochs": 3})
    assert run(planned, place, submit=False) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "4 points"
    assert "--lr 0.001" in shown
    assert "nothing was run" in shown
    assert not (place / "mount").exists()
    study = read_study(place / "study")
    assert study.points[0].labels["setting"] == "lr=0.001,batch_size=16"
    assert {path.name for path in study.point_folder(study.points[0]).iterdir()} >= {
        "settings.json",
        "job.sh",
        "job.json",
    }
    assert (
        "missing" in (place / "study" / "table.md").read_text()
        or "written" in (place / "study" / "table.md").read_text()
    )


def test_a_point_s_settings_file_is_the_point(place):
    planned = sweep(place, parameters={"lr": [1e-3]})
    run(planned, place, submit=False)
    (point,) = read_study(place / "study").points
    file = place / "study" / "points" / point.name / "settings.json"
    flat = parse(ClfSettings, ["--config", str(file)], prog="clf.py", example="").flat()
    assert flat["lr"] == 1e-3
    assert flat["training_run_name"] == point.run


def test_counts_and_metrics_are_checked_first(place):
    with pytest.raises(ConfigError, match=r"4 points, more than --max_points 3"):
        run(sweep(place, parameters={"lr": LRS, "batch_size": BATCHES}, max_points=3), place)
    with pytest.raises(ConfigError, match=r"'acuracy' is not measured here; did you mean \"accuracy\""):
        run(sweep(place, parameters={"lr": LRS}, metric="acuracy"), place)
    assert not (place / "study").exists()


RATES = {"layerwise_lrd": {"top_lr": 1e-5}}


def test_a_grid_wins_over_the_rivals_below_it(place):
    models = sweep(place, parameters={"model_init_name": ["a", "b", "c"]})
    assert {
        point.settings["model_init_name"] for point in models.points([{"model_init_name": n} for n in "abc"])
    } == set("abc")
    epochs = sweep(place, parameters={"epochs": [1, 2]}, base={"max_steps": 5, "warmup_ratio": 0.1})
    for point in epochs.points([{"num_epochs": 1}, {"num_epochs": 2}]):
        assert "max_steps" not in point.settings
        assert point.settings["warmup_ratio"] == 0.1


@pytest.mark.parametrize(
    ("base", "parameters", "told"),
    [
        ({}, {"epochs": [1, 2], "max_steps": 5}, r'grid\.json: "max_steps" and grid\.json: "num_epochs" cannot both count'),
        (RATES, {"lr": [1e-3, 1e-4]}, r"grid\.json: lr varies, but base\.json sets layerwise_lrd\.top_lr"),
        ({"grouped_layerwise_lrd": {"base_lr": 1e-5}}, {"lr": [1e-3, 1e-4]}, "lr varies, but base"),
        ({}, {"model_pretrain_name": ["a", "b"], "model_init_path": "c"}, "model_pretrain_name varies, but model_init_path is set"),
        ({"lr_scheduler": "cosine"}, {"strategy": ["linear_scheduler"], "lr": 1e-3}, "strategy varies, but lr_scheduler is set"),
        ({}, {"r_drop": [True, False], "r_drop.alpha": [0.1, 1.0]}, "r_drop.alpha varies, but r_drop is off"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, "random", "tpe"])
def test_what_varies_must_have_a_say(place, base, parameters, told, kind):
    search = {"search": {"kind": kind}} if kind else {}
    with pytest.raises(ConfigError, match=told):
        run(sweep(place, base=base, parameters=parameters, **search), place)
    assert not (place / "study").exists()


def test_a_grid_does_not_unset_what_the_command_line_says(place):
    planned = sweep(place, parameters={"epochs": [1, 2]})
    planned = replace(planned, base=[*planned.base, Layer(FLAGS, {"max_steps": "5"})])
    with pytest.raises(ConfigError, match=r"num_epochs would unset --max_steps of the command line"):
        run(planned, place)


@pytest.mark.parametrize(
    ("executor", "told"), [("slurm", r"none\.sh"), ("local", "--template: jobs run here need no script")]
)
def test_a_template_by_its_short_flag(place, executor, told):
    write(place / "grid.json", {"parameters": {"lr": LRS}})
    with pytest.raises(WorkflowError, match=told):
        sweep_command(["grid.json", "--entry", "clf", "--out", "study", "--executor", executor, "-t", "none.sh"])


def test_a_preset_s_rates_scale_with_a_rate_that_varies(place):
    (point,) = sweep(place, base={"strategy": "layerwise_lrd"}, parameters={"lr": [1e-3]}).points([{"lr": 1e-3}])
    assert point.resolved.settings.strategies.layerwise_lrd.top_lr is None


def test_the_same_folder_takes_no_other_study(place):
    run(sweep(place, parameters={"lr": [1e-3]}), place, submit=False)
    run(sweep(place, parameters={"lr": [1e-3]}, base={"nproc": 1}), place, submit=False)
    with pytest.raises(ConfigError, match=r"holds another study(.|\n)*no longer: lr-0.001(.|\n)*new: lr-0.002"):
        run(sweep(place, parameters={"lr": [2e-3]}), place, submit=False)


@pytest.mark.slow
def test_runs_are_skipped_by_content_and_the_best_is_a_mean(place, capsys):
    planned = sweep(place, parameters={"lr": LRS, "seed": SEEDS})
    assert run(planned, place) == 0
    assert len(starts(place)) == 6
    best = place / "study" / "best.json"
    assert parse(ClfSettings, ["--config", str(best), "--seed", "7"], prog="clf.py", example="").flat()["lr"] == 1e-3
    assert "seed" not in json.loads(best.read_text())
    why = json.loads((place / "study" / "best-why.json").read_text())["d"]
    assert why["mean"] == pytest.approx(sum(accuracy(1e-3, 32, seed) for seed in SEEDS) / 3)
    assert why["n"] == 3
    assert "[6/6]" in capsys.readouterr().out
    assert run(planned, place) == 0
    assert len(starts(place)) == 6
    assert "6 of 6 runs are finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_failures_are_told_left_alone_and_retried_on_demand(place, capsys):
    planned = sweep(place, parameters={"lr": [1e-3], "seed": [0, 1]}, base={"template": "fails"})
    assert run(planned, place) == 1
    shown = capsys.readouterr().out
    assert "failed: lr-0.001-seed-1-" in shown
    assert "error: the made-up failure (log:" in shown
    table = (place / "study" / "table.md").read_text()
    assert "the made-up failure" in table
    assert run(planned, place) == 1
    assert len(starts(place)) == 2
    (place / "mount" / "models" / "mended").touch()
    assert run(planned, place, retry_failed=True) == 0
    assert len(starts(place)) == 3
    assert (place / "study" / "points" / starts(place)[2].removeprefix("study-") / "log.txt").read_text().count(
        "==="
    ) == 2


@pytest.mark.slow
def test_interrupted_twice_it_ends_whole(place):
    write(place / "grid.json", {"parameters": {"lr": LRS, "batch_size": BATCHES, "seed": SEEDS}})
    arguments = (
        "sweep",
        "grid.json",
        "--entry",
        "clf",
        "--config",
        "base.json",
        "--out",
        "study",
        "--submit",
        "--jobs",
        "2",
    )
    for number in (signal.SIGKILL, signal.SIGINT):
        process = command(*arguments, seconds=0.5)
        ended = len(list(place.glob("mount/models/*/report.json")))
        while process.poll() is None and len(list(place.glob("mount/models/*/report.json"))) < ended + 2:
            time.sleep(0.05)
        process.send_signal(number)
        finished(process)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
        assert not (place / "study" / "table.md").exists() or "|" in (place / "study" / "table.md").read_text()
    process = command(*arguments)
    assert "12 of 12 runs are finished" in finished(process)
    assert process.returncode == 0
    rows = (place / "study" / "table.csv").read_text().splitlines()
    assert len(rows) == 5
    assert all(row.split(",")[-1] == "3" for row in rows[1:]), rows
    best = json.loads((place / "study" / "best.json").read_text())
    assert (best["lr"], best["train_batch_size"]) == (1e-3, 16)


@pytest.mark.slow
def test_two_drivers_share_a_study(place):
    write(place / "grid.json", {"parameters": {"lr": LRS, "batch_size": BATCHES, "seed": [0, 1]}})
    arguments = ("sweep", "grid.json", "--entry", "clf", "--config", "base.json", "--out", "study", "--submit")
    texts = [finished(process) for process in [command(*arguments, seconds=0.3), command(*arguments, seconds=0.3)]]
    assert sorted(starts(place)) == sorted(set(starts(place)))
    assert len(starts(place)) == 8
    assert all("8 of 8 runs are finished" in text for text in texts)


def test_flags_of_the_command(place):
    write(place / "grid.json", {"parameters": {"lr": LRS}})
    rest = ("sweep", "grid.json", "--entry", "clf", "--config", "base.json", "--out", "study")
    process = command(*rest, "--max_step", "5")
    assert 'unknown flag --max_step; did you mean "--max_steps"?' in finished(process)
    assert process.returncode == 2
    process = command(*rest, "--lr", "5")
    assert "2 points" in finished(process)
    process = command("sweep", "--entry", "clf", "--out", "study")
    assert "no grid file; expected one: workflow sweep GRID.json" in finished(process)
