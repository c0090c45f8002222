"""A run with a tracker, a metrics port and its report, as users start it; and `workflow lr-find`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request

import pytest

from tests.conftest import metrics_lines, run_program
from tests.training.test_trackers import free_port
from tests.training_program import Training, finished
from workflow.models.manifest import read_manifest

pytestmark = pytest.mark.slow

TRACKER = """
import json, os, random, numpy, torch
class _Run:
    def log(self, values, step):
        random.random(), numpy.random.rand(), torch.rand(3)  # draws that must change nothing
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps({"step": step, **values}) + chr(10))
        if step == 12:
            raise RuntimeError("the tracker's server is gone")
def init(**given):
    return _Run()
def finish():
    raise AssertionError("it was left out before")
"""
SHORT = {"max_steps": 15, "eval_steps": 5, "nproc": 1}


def figures(run) -> list[dict]:
    """Without the speed, which is never the same twice."""
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in metrics_lines(run.folder)]


def test_a_tracker_that_draws_and_fails_changes_no_number(tmp_path, mount, flan_like):
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes/trackio.py").write_text(TRACKER)
    plain = figures(finished(mount, flan_like, **SHORT))
    port = free_port()
    (mount / "models/run").rename(mount / "models/plain")
    environment = {"PYTHONPATH": str(tmp_path / "fakes"), "TOLD": str(tmp_path / "told")}
    settings = {**SHORT, "trackers": "trackio", "metrics_port": port}
    with Training(mount, flan_like, environment=environment, **settings) as run:
        text = ""
        while run.process.poll() is None:
            with contextlib.suppress(OSError):
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode() or text
            time.sleep(0.05)
        output = run.ends(0)
    assert figures(run) == plain
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [line["step"] for line in told if "train/loss" in line] == list(range(1, 13))
    assert [line["train/loss"] for line in told if "train/loss" in line] == [x["loss"] for x in plain if "loss" in x][
        :12
    ]
    assert output.count("trackio failed") == 1
    assert "workflow_training_info{model=" in text
    page = (run.folder / "report.html").read_text()
    assert "finished, 15 steps" in page
    assert (run.folder / "report.html").stat().st_mtime <= (run.folder / "report.json").stat().st_mtime
    best = run.folder / "checkpoint-best-ckpt"
    assert "README.md" in read_manifest(best).files
    report = json.loads((run.folder / "report.json").read_text())
    value = report["best"]["metrics"]["exact_match"]["value"]
    assert f"| **exact_match** | {value:.3f} |" in (best / "README.md").read_text()


def test_a_range_test_is_the_same_on_two_ranks_and_makes_no_run(tmp_path, mount, flan_like):
    found = []
    before = sorted((mount / "models").iterdir()) if (mount / "models").exists() else []
    for ranks in (1, 2):
        out = tmp_path / f"out{ranks}"
        done: subprocess.CompletedProcess = run_program(
            *("lr-find", "--mount", mount, "--model_init_path", flan_like, "--data", "toy", "--nproc", ranks),
            *("--lr_find_steps", 12, "--lr_min", 1e-5, "--lr_max", 1e-1, "--dropout", 0, "--out", out),
            module="workflow",
        )
        assert done.returncode == 0, done.stderr
        assert "suggestion: --lr" in done.stdout
        found.append(json.loads((out / "lr_find.json").read_text()))
    one, two = found
    assert [point["lr"] for point in one["points"]] == pytest.approx([1e-5 * 10 ** (4 * n / 11) for n in range(12)])
    for name in ("lr", "loss", "smoothed"):
        assert [point[name] for point in two["points"]] == pytest.approx(
            [point[name] for point in one["points"]], rel=2e-4
        )
    assert (sorted((mount / "models").iterdir()) if (mount / "models").exists() else []) == before
    assert {path.name for path in (tmp_path / "out1").iterdir()} >= {
        f"lr_find.{kind}" for kind in ("json", "csv", "png", "svg")
    }


def test_strategies_that_set_rates_over_a_run_leave_a_range_test_alone(tmp_path, mount, bert_like):
    out = tmp_path / "out"
    done = run_program(
        *("lr-find", "clf", "--mount", mount, "--model_init_path", bert_like, "--data_name", "scored", "--out", out),
        *("--lr_find_steps", 10, "--lr_min", 1e-7, "--lr_max", 1e-5, "--max_length", 32, "--layerwise_lrd"),
        *("--freeze.head", 0.1, "--swa.lr", 1e-4, "--swa.start", 500, "--ema"),
        module="workflow",
    )
    assert done.returncode == 0, done.stderr
    assert "left out of the range test, being about whole runs: --freeze, --swa, --ema" in done.stdout
    points = json.loads((out / "lr_find.json").read_text())["points"]
    assert [point["lr"] for point in points] == pytest.approx([1e-7 * 10 ** (2 * n / 9) for n in range(10)])
