"""Tables of results: their numbers computed a second way, their formats against golden files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.golden import assert_golden
from tests.results.made_up import (
    GLUE_METRICS,
    glue_value,
    point,
    report,
    write_glue,
    write_job,
    write_run,
    write_study,
)
from workflow.config.cascade import read_layers, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.errors import ConfigError
from workflow.results.formats import FORMATS, rich_table
from workflow.results.runs import read_results, read_study
from workflow.results.sheets import main_sheet, sheets_of
from workflow.results.study_files import write_study_tables
from workflow.results.tables import make_table

GOLDEN = Path(__file__).parent / "golden"
TASKS = ("CoLA", "MRPC", "STS-B")


@pytest.fixture
def suite(tmp_path):
    """Three tasks with all that may happen: a failed run, one that never ran, an undefined metric, one model with one seed."""
    left_out = [("t5_tiny", "CoLA", 1), ("t5_tiny", "STS-B", 0), ("t5_tiny", "STS-B", 1), ("t5_tiny", "STS-B", 2)]
    folder = write_glue(tmp_path, tasks=TASKS, left_out=left_out)
    write_job(folder, "t5_tiny-CoLA-1", "CUDA | out of_memory\n", status="failed", exit_code=1)
    write_run(
        tmp_path / "mount" / "models",
        "glue-t5_tiny-MRPC-2",
        {"accuracy": 0.5, "f1": None},
        data="MRPC",
        model="t5_tiny",
    )
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_formats(suite, name):
    table = make_table(read_study(suite))
    sheets = [main_sheet(table, spread=True)] if name == "csv" else sheets_of(table)
    assert_golden(FORMATS[name](sheets), GOLDEN / f"table.{name}")


def test_the_terminal(suite):
    file = io.StringIO()
    console = Console(file=file, width=140, color_system=None, markup=False)
    for sheet in sheets_of(make_table(read_study(suite))):
        console.print(rich_table(sheet))
    assert_golden(file.getvalue(), GOLDEN / "table.txt")


def test_means_deviations_and_intervals_computed_anew(tmp_path):
    table = make_table(read_study(write_glue(tmp_path, tasks=("MRPC",))))
    for model in ("bert-tiny", "t5_tiny"):
        cell = table.cells[(model,), ("MRPC",)]
        for summary in cell.summaries:
            values = [glue_value(model, "MRPC", summary.metric, seed) for seed in range(3)]
            mean = sum(values) / 3
            assert summary.mean == pytest.approx(mean)
            assert summary.std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
            assert (summary.n, summary.max) == (3, max(values))
            # All 27 draws of three runs, equally likely.
            means = sorted(
                np.mean([values[i], values[j], values[k]]) for i in range(3) for j in range(3) for k in range(3)
            )
            assert summary.low == pytest.approx(means[0], abs=1e-9)
            assert summary.high == pytest.approx(means[-1], abs=1e-9)


def test_one_run_has_the_interval_of_its_own_report(tmp_path):
    write_run(tmp_path, "one", {"mcc": 0.5})
    (summary,) = make_table(read_results([tmp_path])).cells[("tiny",), ("cola",)].summaries
    assert (summary.std, summary.low, summary.high, summary.n) == (None, 0.45, 0.55, 1)


def test_glue_averages_computed_anew(tmp_path):
    sheet = main_sheet(make_table(read_study(write_glue(tmp_path))))
    assert sheet.head[-2:] == ("GLUE", "GLUE without WNLI")

    def task(model, name):
        return np.mean([glue_value(model, name, metric, seed) for metric in GLUE_METRICS[name] for seed in range(3)])

    for row in sheet.rows:
        model = row[0]
        eight = [task(model, name) for name in ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE")]
        eight.append((task(model, "MNLI") + task(model, "MNLI-mm")) / 2)
        assert float(row[-1]) == pytest.approx(100 * np.mean(eight), abs=0.006)
        assert float(row[-2]) == pytest.approx(100 * np.mean([*eight, task(model, "WNLI")]), abs=0.006)


@pytest.mark.parametrize("metric", ["eval_loss", "bleu"])
def test_no_average_of_what_is_no_share(tmp_path, monkeypatch, metric):
    monkeypatch.setitem(GLUE_METRICS, "WNLI", (metric,))
    assert main_sheet(make_table(read_study(write_glue(tmp_path / "a")))).head[-2:] == ("WNLI", "GLUE without WNLI")
    monkeypatch.setitem(GLUE_METRICS, "CoLA", (metric,))
    assert "GLUE" not in " ".join(main_sheet(make_table(read_study(write_glue(tmp_path / "b")))).head)


def test_no_average_over_the_tasks_that_happen_to_be_there(tmp_path):
    left_out = [("t5_tiny", "RTE", seed) for seed in range(3)]
    sheet = main_sheet(make_table(read_study(write_glue(tmp_path, left_out=left_out))))
    averages = {row[0]: row[-2:] for row in sheet.rows}
    assert averages["t5_tiny"] == ("-", "-")
    assert "-" not in averages["bert-tiny"]
    tasks = tuple(task for task in GLUE_METRICS if task != "WNLI")
    assert main_sheet(make_table(read_study(write_glue(tmp_path / "b", tasks=tasks)))).head[-1] == "GLUE without WNLI"
    assert "GLUE" not in " ".join(main_sheet(make_table(read_study(write_glue(tmp_path / "c", tasks=TASKS)))).head)


@pytest.fixture
def transfer(tmp_path):
    """A transfer matrix of slices: one run a training language, measured on both."""
    points = []
    for train in ("en+es", "en", "es"):
        for seed in (0, 1):
            run = f"m-{train}-{seed}"
            values = {part: {"f1_macro": 0.9 if part in train else 0.4} for part in ("en", "es")}
            write_run(tmp_path / "models", run, {"f1_macro": 0.6}, slices=values, seed=seed)
            for part in ("en", "es"):
                labels = {"task": "sentiment", "model": "tiny", "seed": seed, "train": train, "eval": part}
                points.append(
                    point(f"{train}-{part}-{seed}", labels, metrics=["macro_f1"]) | {"run": run, "slice": part}
                )
    return write_study(tmp_path / "study", tmp_path, points, kind="transfer")


def test_a_transfer_matrix_has_train_by_eval(transfer):
    sheet = main_sheet(make_table(read_study(transfer)))
    assert sheet.head == ("train", "en", "es")
    assert [row[0] for row in sheet.rows] == ["en+es", "en", "es"]
    assert sheet.rows[1][1:] == ("90.00 \u00b1 0.00 (2)", "40.00 \u00b1 0.00 (2)")


def test_rows_and_columns_by_label(suite):
    sheet = main_sheet(make_table(read_study(suite), rows=["task"], columns=["seed"], metrics=["accuracy"]))
    assert sheet.head == ("task", "0", "1", "2")
    assert any("differ in model" in note for note in sheet.notes)
    seeds = main_sheet(make_table(read_study(suite), rows=["model", "seed"]))
    assert seeds.head == ("model", "seed", *TASKS)
    assert len(seeds.rows) == 6


def test_best_or_final(tmp_path):
    write_run(tmp_path, "one", {"mcc": 0.5}, final={"mcc": 0.2})
    results = read_results([tmp_path])
    assert main_sheet(make_table(results)).rows[0][1] == "50.00"
    assert main_sheet(make_table(results, which="final")).rows[0][1] == "20.00"


def test_losses_and_text_metrics_keep_their_scale(tmp_path):
    write_run(tmp_path, "one", {"eval_loss": 0.61234, "bleu": 31.234, "exact_match": 0.25}, entry="seq2seq")
    table = make_table(read_results([tmp_path]), metrics=["eval_loss", "bleu", "exact_match"])
    assert main_sheet(table).rows[0][1] == "0.6123/31.23/25.00"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rows": ["modle"]}, 'did you mean "model"'),
        ({"rows": ["task"], "columns": ["task"]}, "named twice"),
        ({"metrics": ["macro_f2"]}, "none of these runs measured it"),
    ],
)
def test_unknown_names_are_refused(suite, arguments, told):
    with pytest.raises(ConfigError, match=told):
        make_table(read_study(suite), **arguments)


def test_a_study_without_any_report_has_a_table(tmp_path):
    every = [(model, "CoLA", seed) for model in ("bert-tiny", "t5_tiny") for seed in range(3)]
    folder = write_glue(tmp_path, tasks=("CoLA",), left_out=every)
    write_study_tables(folder)
    assert "| bert-tiny | missing |" in (folder / "table.md").read_text()
    assert not (folder / "best.json").exists()


def sweep(tmp_path, values, *, metric="mcc", task="cola"):
    """A study over learning rates: {lr: its seeds' values, None for a failed run}."""
    points = []
    for lr, seeds in values.items():
        for seed, value in enumerate(seeds):
            settings = {"learning_rate": lr, "seed": seed, "data_name": task, "model_init_name": "tiny", "mount": "/x"}
            labels = {"task": task, "model": "tiny", "setting": f"lr={lr}", "seed": seed}
            points.append(point(f"{task}-{lr}-{seed}", labels, metrics=[metric], settings=settings))
            if value is not None:
                write_run(
                    tmp_path / "models", f"study-{task}-{lr}-{seed}", {metric: value}, data=task, lr=lr, seed=seed
                )
    return points


def test_the_best_setting_by_the_mean_over_seeds_is_a_settings_file(tmp_path):
    # 0.02 has the highest single run, 0.001 the highest mean of whole settings, 0.5 a higher one of what survived.
    folder = write_study(
        tmp_path / "study",
        tmp_path,
        sweep(tmp_path, {1e-3: [0.5, 0.6], 0.02: [0.1, 0.9], 0.5: [0.8, None]}),
        kind="sweep",
    )
    write_study_tables(folder)
    best = json.loads((folder / "best.json").read_text())
    assert best == {"model_init_name": "tiny", "data_name": "cola", "lr": 0.001}
    assert resolve(ClfSettings, read_layers([folder / "best.json"], {})).settings.optim.lr == 0.001
    why = json.loads((folder / "best-why.json").read_text())["cola"]
    assert (why["metric"], why["n"], why["runs"]) == ("mcc", 2, ["study-cola-0.001-0", "study-cola-0.001-1"])
    assert why["mean"] == pytest.approx(0.55)
    assert (why["settings_compared"], why["settings_left_out"]) == (2, 1)


def test_a_setting_that_wins_with_the_program_s_default_is_kept(tmp_path):
    default = ClfSettings().optim.weight_decay
    points = sweep(tmp_path, {1e-3: [0.5]})
    points[0]["settings"]["weight_decay"] = default
    folder = write_study(tmp_path / "study", tmp_path, points)
    write_study_tables(folder)
    (tmp_path / "base.json").write_text(json.dumps({"weight_decay": default + 0.1}))
    layers = read_layers([tmp_path / "base.json", folder / "best.json"], {})
    assert resolve(ClfSettings, layers).settings.optim.weight_decay == default


def test_the_best_is_the_lowest_where_low_is_good(tmp_path):
    points = sweep(tmp_path, {1e-3: [0.5], 1e-2: [0.2]}, metric="eval_loss")
    folder = write_study(tmp_path / "study", tmp_path, points)
    write_study_tables(folder)
    assert json.loads((folder / "best.json").read_text())["lr"] == 0.01


def test_several_tasks_have_a_best_setting_each_and_what_they_share(tmp_path):
    points = sweep(tmp_path, {1e-3: [0.5], 1e-2: [0.2]}) + sweep(tmp_path, {1e-3: [0.1], 1e-2: [0.2]}, task="rte")
    folder = write_study(tmp_path / "study", tmp_path, points)
    write_study_tables(folder)
    assert json.loads((folder / "best.json").read_text()) == {"model_init_name": "tiny"}
    lr = {task: json.loads((folder / f"best-{task}.json").read_text())["lr"] for task in ("cola", "rte")}
    assert lr == {"cola": 0.001, "rte": 0.01}


def test_table_csv_has_spread_and_is_made_again_the_same(suite):
    write_study_tables(suite)
    rows = list(csv.reader(io.StringIO((suite / "table.csv").read_text(encoding="utf-8"))))
    assert rows[0][:5] == ["model", "CoLA", "CoLA std", "CoLA max", "CoLA n"]
    assert {len(row) for row in rows} == {13}
    before = (suite / "table.md").read_bytes()
    write_study_tables(suite)
    assert (suite / "table.md").read_bytes() == before


def test_made_up_reports_are_reports(tmp_path):
    assert report("x", {"mcc": 0.5}).best.metrics["mcc"].low == 0.45
