"""Benchmarks still run: what they import is there, their flags are told, those of training on CPUs measure something."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, score_rows, shared

pytestmark = pytest.mark.slow
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text())


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    assert "usage:" in run(script, "--help")


TINY = ("--like", "tiny", "--batch", 4, "--updates", 1, "--rounds", 1)


def test_training():
    told = json.loads(run("training.py", *TINY, "--contenders", "padded", "ragged").splitlines()[-1])
    assert told["gates"]["passed"]
    assert min(told["seconds"]["ragged"]["min"], told["seconds"]["padded"]["min"]) > 0


def test_training_of_scores(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"train": score_rows(40), "eval": score_rows(5, seed=1)}))
    out = run("score_training.py", tmp_path / "rows.json", "--tokenizer", shared("bert-tokenizer"), *TINY)
    told = json.loads(out.splitlines()[-1])
    assert told["gates"]["passed"]
    assert set(told["seconds"]) == {"padded", "padded, 4 at a time", "packed"}
