"""Room in memory: what a trial finds, and what happens when there is less than that."""

from __future__ import annotations

import json
import os

import pytest

from tests.conftest import ROOT, losses, metrics_lines, run_program, write_data
from tests.training.rank_worker import run_group
from tests.training.test_ranks import STAGES

RUN = (
    "--max_steps",
    4,
    "--eval_steps",
    2,
    "--save_steps",
    1,
    "--train_batch_size",
    8,
    "--logging_steps",
    1,
    "--lr",
    "1e-2",
)

NARROW = """
import os, sys
if any("seq2seq" in part for part in sys.orig_argv) and "ROOM" in os.environ:
    import torch
    from workflow.training.objectives import CompletionLoss

    passes, inner = [], CompletionLoss.loss_sum

    def loss_sum(self, model, rows, **more):
        tokens = sum(int(self.source_lengths[row] + self.target_lengths[row]) for row in rows)
        passes.append(tokens)
        if len(passes) > 2 and tokens > int(os.environ["ROOM"]):
            raise torch.OutOfMemoryError("pretended")
        return inner(self, model, rows, **more)

    CompletionLoss.loss_sum = loss_sum
"""
"""From its third pass on, a process has room for so many tokens only."""


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_trial_finds_the_least_room_and_leaves_no_trace(flan_like, shared_mount, tmp_path, world_size):
    base = {"do": "trial", "model": str(flan_like), "mount": str(shared_mount), "dropout": 0.2, "max_steps": 3}
    jobs = [{**base, "deepspeed": stage, "tries": tries} for stage in STAGES for tries in (False, True)]
    found = run_group(world_size, jobs, tmp_path)
    room = 80_000 if world_size == 2 else 90_000
    for plain, tried in zip(found[::2], found[1::2], strict=True):
        assert tried["tokens"] == int((room * 0.88 - 1000) / 10) // 256 * 256
        assert tried["losses"] == plain["losses"]


@pytest.fixture
def narrow(tmp_path, tmp_path_factory, flan_like):
    """(train with that much room, the folder of a run)."""
    (tmp_path / "sitecustomize.py").write_text(NARROW)
    mount = tmp_path_factory.mktemp("mount")
    write_data(mount, "toy")

    def train(room, *more, name="run"):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        environment = {"PYTHONPATH": path} | ({"ROOM": str(room)} if room else {})
        return run_program(
            "--mount", mount, "--model_init_path", flan_like, "--data", "toy", "--training_run_name", name, "--dropout", 0,
            *RUN, *more, env=environment,
        )  # fmt: skip

    return train, lambda name="run": mount / "models" / name


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_goes_on_with_smaller_micro_batches(narrow, nproc):
    """The same losses as with room enough; no step of the curve is missing or there twice."""
    train, folder = narrow
    assert train(None, name="wide").returncode == 0
    done = train(60, "--nproc", nproc)
    assert done.returncode == 0, done.stderr
    assert "notice: " in done.stderr
    assert "out of memory in a micro-batch" in done.stderr
    assert "Traceback" not in done.stderr
    narrowed, wide = losses(folder()), losses(folder("wide"))
    assert list(narrowed) == list(wide) == [1, 2, 3, 4]
    for step, figures in wide.items():
        assert narrowed[step] == pytest.approx(figures, rel=1e-5)
    found = json.loads((folder() / "micro_batches.json").read_text())
    assert found["lowered"]
    assert f"at most {found['tokens']} tokens in a forward pass of a rank: memory ran out" in " ".join(
        done.stdout.split()
    )
    steps = [line["step"] for line in metrics_lines(folder()) if "loss" in line]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_one_example_that_does_not_fit(narrow):
    train, _ = narrow
    done = train(3)
    assert done.returncode == 1
    assert "out of memory on a single example" in done.stderr
    assert "--gradient_checkpointing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ranks_that_others_started_say_that_the_same_command_goes_on(narrow, monkeypatch):
    train, _ = narrow
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = train(60)
    assert done.returncode == 75
    assert "notice: " in done.stderr
