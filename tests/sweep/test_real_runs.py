"""A sweep of real trainings from end to end: flags, reports, table, and settings that the program takes."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_program, write_scores

pytestmark = pytest.mark.slow


def test_two_points_of_a_tiny_bert(tmp_path, bert_like):
    write_scores(tmp_path / "mount", "scored", train=16, evaluation=9)
    base = {
        "model_init_path": str(bert_like),
        "data_name": "scored",
        "max_steps": 2,
        "save_best_metric": "spearman",
        "no_eval_at_start": True,
        "labels": ["no", "yes"],
        "warmup_steps": 0,
    }
    (tmp_path / "base.json").write_text(json.dumps(base))
    (tmp_path / "grid.json").write_text('{"parameters": {"learning_rate": [1e-3, 1e-4], "batch_size": 8}} // two')
    command = (
        "sweep",
        "grid.json",
        "--entry",
        "clf",
        "--config",
        "base.json",
        "--out",
        "tried",
        "--submit",
        "--jobs",
        "2",
    )
    done = run_program(*command, module="workflow", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs are finished" in done.stdout
    (report,) = (tmp_path / "mount" / "models").glob("tried-lr-0.001-*/report.json")
    found = json.loads(report.read_text())
    value = found["best"]["metrics"]["spearman"]["value"]
    assert found["settings"]["lr"] == 1e-3
    table = (tmp_path / "tried" / "table.csv").read_text().splitlines()
    assert [line.split(",")[0].strip('"') for line in table[1:]] == ["lr=0.001", "lr=0.0001"]
    assert f"{100 * value:.2f}" in table[1]
    best = run_program("config", "show", "clf", "--config", "tried/best.json", module="workflow", cwd=tmp_path)
    assert best.returncode == 0, best.stderr
    assert "train_batch_size             8" in best.stdout
