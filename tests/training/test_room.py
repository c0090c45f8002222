"""What checkpoints will take of the disk is known before, to the size of what is written."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch

from workflow.errors import CheckpointError
from workflow.paths import RunPaths
from workflow.training import room
from workflow.training.optim import make_optimizer, parameter_groups
from workflow.training.room import CheckpointSize, check_before_run, check_before_save, checkpoint_size, kept_at_most

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_state_has_the_size_that_is_estimated(name):
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.LayerNorm(200), torch.nn.Linear(200, 50))
    model[2].weight.requires_grad_(False)
    optimizer = make_optimizer(name, parameter_groups(model, lr=1e-3, weight_decay=0.0))
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    size = checkpoint_size(model, name)
    assert size.model - room.MARGIN_BYTES == sum(weight.nbytes for weight in model.parameters())
    assert size.state == pytest.approx(sum(tensor.nbytes for tensor in tensors if tensor.ndim), rel=0.01)


@pytest.mark.parametrize(
    ("num_saves", "limit", "models", "states"),
    [(1, None, 1, 1), (10, None, 10, 3), (10, 1, 3, 2), (10, 3, 5, 3), (2, 5, 2, 2)],
)
def test_what_is_kept_at_the_worst_moment(num_saves, limit, models, states):
    size = CheckpointSize(1000, 1)
    assert kept_at_most(size, num_saves=num_saves, limit=limit, num_states=2) == 1000 * models + states


def test_before_a_run(tmp_path, monkeypatch):
    paths, free = RunPaths(tmp_path / "models/run"), 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))

    def check(limit=None, **more):
        size = CheckpointSize(1_000_000, 2_000_000)
        return check_before_run(paths, size, num_saves=4, limit=limit, num_states=2, **more)

    with pytest.raises(
        CheckpointError, match=r"not even one checkpoint fits: about 3\.0 MB are needed.*0\.0 MB are free"
    ):
        check()
    free = 3_000_000
    assert "will take about 10.0 MB more, 3.0 MB are free" in check()
    assert "that --save_total_limit 1 keeps will take about 7.0 MB more" in check(limit=1)
    free = 7_000_000
    assert check(limit=1) is None
    assert "will take about 9.0 MB more" in check(limit=1, num_averages=2)
    paths.checkpoint(1).mkdir(parents=True)
    (paths.checkpoint(1) / "model.safetensors").write_bytes(bytes(2_000_000))
    free = 5_000_000
    assert check(limit=1) is None, "what is there will be dropped"


def test_before_a_save(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 999))
    check_before_save(tmp_path / "checkpoint-1", 999)
    with pytest.raises(CheckpointError, match=r"checkpoint-1: could not be saved: about 2\.0 MB are needed"):
        check_before_save(tmp_path / "checkpoint-1", 2_000_000)
