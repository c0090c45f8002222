"""A small training run as a process of its own, for tests that signal, stop and kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT, metrics_lines
from workflow.evaluation.report import Report

SETTINGS = {
    "training_run_name": "run",
    "data": "toy",
    "max_steps": 30,
    "eval_steps": 10,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "dropout": 0.1,
    "lr": "1e-2",
}


class Training:
    """`with Training(mount, model, max_steps=9) as run:` starts it and makes sure that nothing of it is left."""

    def __init__(self, mount: Path, model: Path, *, environment: dict | None = None, **settings: object) -> None:
        self.folder = mount / "models/run"
        flags = {"mount": mount, "model_init_path": model, **SETTINGS, **settings}
        self.command = [sys.executable, str(ROOT / "seq2seq.py")]
        for name, value in flags.items():
            self.command += [f"--{name}", str(value)]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.output = ""

    def __enter__(self) -> Training:
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.ranks().values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def send(self, number: int, *, rank: int | None = None) -> None:
        """A signal to the process that was started, or to one of its ranks."""
        os.kill(self.process.pid if rank is None else self.ranks()[rank], number)

    def ends(self, code: int, timeout: float = 120) -> str:
        """What it printed; it must end with this code."""
        self.output, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == code, self.output
        assert "Traceback" not in self.output, self.output
        return self.output

    def ranks(self) -> dict[int, int]:
        """Rank -> process, of the ranks that our launcher started."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if f"WORKFLOW_LAUNCHER_PID={self.process.pid}".encode() in environment:
                    rank = next(part for part in environment if part.startswith(b"RANK="))
                    found[int(rank[5:])] = int(folder.name)
        return found

    def step(self) -> int:
        """The last update that metrics.jsonl knows."""
        with contextlib.suppress(OSError, ValueError):
            return max((line["step"] for line in metrics_lines(self.folder) if "loss" in line), default=0)
        return 0

    def reaches(self, step: int) -> None:
        self.waits_for(lambda: self.step() >= step)

    def waits_for(self, condition, timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, "timed out"
            time.sleep(0.02)

    def report(self) -> Report:
        return Report.model_validate_json((self.folder / "report.json").read_text())


def finished(mount: Path, model: Path, **settings: object) -> Training:
    """A run that was left alone until its end."""
    with Training(mount, model, **settings) as run:
        run.ends(0)
    return run
