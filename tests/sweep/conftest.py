"""Studies whose runs are a made-up program."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.sweep.fake_driver import made_up
from workflow.jobs.local import LocalExecutor
from workflow.sweep.driver import Needs
from workflow.sweep.start import Options

BASE = {"model_init_path": "m", "data_name": "d", "save_best_metric": "accuracy"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a mount and base settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "base.json").write_text(json.dumps(BASE))
    return tmp_path


def options(place, folder, *, at_once=2, submit=True, retry_failed=False, **more):
    executor = LocalExecutor(folder, command=made_up, gpu_ids=(), grace_s=10)
    return Options(executor, Needs(mount=place / "mount"), at_once, submit, retry_failed, **more)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def starts(place) -> list[str]:
    """The names of runs in the order in which the made-up program was started for them."""
    log = place / "mount" / "models" / "starts.log"
    return log.read_text().split() if log.exists() else []


def command(*arguments, seconds: float = 0.05):
    """The `workflow` command in a process of its own, its local jobs made up."""
    environment = {**os.environ, "FAKE_S": str(seconds)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.fake_driver", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, *, timeout=120) -> str:
    text, _ = process.communicate(timeout=timeout)
    return text
