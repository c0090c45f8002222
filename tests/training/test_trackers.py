"""Trackers are told what they should be, hear no secrets, and can neither end a run nor draw its random numbers."""

from __future__ import annotations

import json
import random
import socket
import sys
import types
import urllib.request

import numpy as np
import pytest
import torch

from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError
from workflow.training.exporter import Exporter
from workflow.training.trackers import (
    TrackedRun,
    Trackers,
    check_installed,
    plain_numbers,
    start_trackers,
    without_secrets,
)


class Recorder(types.ModuleType):
    """A module whose every attribute can be called, gives a recorder of itself, and notes how."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Recorder(f"{self.__name__}.{name}", self.calls)

    def __call__(self, *arguments, **named):
        self.calls.append((self.__name__, arguments, named))
        return Recorder(f"{self.__name__}()", self.calls)


def fake(monkeypatch, name) -> list:
    calls: list = []
    module = Recorder(name, calls)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, f"{name}.entities", Recorder(f"{name}.entities", calls))
    return calls


def run_in(folder, **more) -> TrackedRun:
    return TrackedRun("my run", "my project", folder, {"lr": 0.1, "data_name": "toy"}, **more)


def tell(folder, name, **more) -> list[str]:
    said: list[str] = []
    told = Trackers(start_trackers([name], run_in(folder, **more), said.append), said.append)
    told.log(
        3, {"step": 3, "loss": 0.5, "reason": "text", "lrs": {"a": 1.0}, "none": None, "odd": float("nan")}, "train"
    )
    told.log(3, {"step": 3, "auc": 0.75}, "eval")
    told.log(3, {}, "checkpoint")
    told.close(finished=True)
    return said


def of(calls, name):
    return [(arguments, named) for called, arguments, named in calls if called == name]


def test_weights_and_biases(monkeypatch, tmp_path):
    calls = fake(monkeypatch, "wandb")
    assert tell(tmp_path, "wandb") == []
    ((_, started),) = of(calls, "wandb.init")
    assert (started["project"], started["name"], started["dir"]) == ("my project", "my run", str(tmp_path))
    assert started["config"] == {"lr": 0.1, "data_name": "toy"}
    assert "key" not in str(started)
    assert of(calls, "wandb.init().log") == [
        (({"train/loss": 0.5, "train/lrs/a": 1.0},), {"step": 3}),
        (({"eval/auc": 0.75},), {"step": 3}),
    ]
    assert of(calls, "wandb.init().finish") == [((), {"exit_code": 0})]
    tell(tmp_path, "wandb", continue_from=3)
    again = of(calls, "wandb.init")[1][1]
    assert (again["id"], again["resume"]) == (started["id"], "allow")


def test_mlflow(monkeypatch, tmp_path):
    calls = fake(monkeypatch, "mlflow")
    monkeypatch.setattr("workflow.training.trackers._remember_id", lambda *_: None)
    assert tell(tmp_path, "mlflow") == []
    assert of(calls, "mlflow.MlflowClient().create_run")[0][1] == {"run_name": "my run"}
    assert [given for given, _ in of(calls, "mlflow.entities.Param")] == [("lr", "0.1"), ("data_name", "toy")]
    metrics = [(name, value, step) for (name, value, _, step), _ in of(calls, "mlflow.entities.Metric")]
    assert metrics == [("train/loss", 0.5, 3), ("train/lrs/a", 1.0, 3), ("eval/auc", 0.75, 3)]
    assert of(calls, "mlflow.MlflowClient().set_terminated")[0][1] == {"status": "FINISHED"}


def test_trackio(monkeypatch, tmp_path):
    calls = fake(monkeypatch, "trackio")
    assert tell(tmp_path, "trackio", continue_from=2) == []
    ((_, started),) = of(calls, "trackio.init")
    assert started == {
        "project": "my project",
        "name": "my run",
        "config": {"lr": 0.1, "data_name": "toy"},
        "resume": "allow",
    }
    assert of(calls, "trackio.init().log")[1] == (({"eval/auc": 0.75},), {"step": 3})
    assert len(of(calls, "trackio.finish")) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_real_ones_offline(name, tmp_path, monkeypatch):
    """Skipped where they are not installed. Their own warnings are their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert tell(tmp_path, name) == []
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (before[0], before[2])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "tensorboard" not in str(path)]


class Failing:
    name = "failing"
    calls = 0

    def log(self, step, values, group):
        self.calls += 1
        raise OSError("the server\nis gone")

    def close(self, *, finished):
        self.calls += 1


def test_one_that_fails_is_told_of_once_and_left_out(tmp_path):
    said, failing, good = [], Failing(), Failing()
    good.log = lambda step, values, group: heard.append(step)
    heard: list[int] = []
    told = Trackers([failing, good], said.append)
    for step in (1, 2):
        told.log(step, {"loss": 1.0}, "train")
    told.close(finished=False)
    assert failing.calls == 1
    assert heard == [1, 2]
    assert said == ["failing failed and is told nothing more of this run: OSError: the server is gone"]


def test_one_that_cannot_start_is_left_out(monkeypatch, tmp_path):
    module = types.ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    said = tell(tmp_path, "wandb")
    assert len(said) == 1
    assert said[0].startswith("wandb cannot start")
    assert list((tmp_path / "tensorboard").iterdir())


def test_secrets_and_other_values_stay_here():
    given = {"wandb_api_key": "k", "hf_token": "t", "password": "p", "tokenizer": "gpt2", "keep_source": "end"}
    assert without_secrets({**given, "url": "https://me:pass@host/x"}) == {
        "tokenizer": "gpt2",
        "keep_source": "end",
        "url": "https://host/x",
    }
    assert plain_numbers({"step": 1, "a": True, "b": "x", "c": float("inf"), "d": 2}) == {"a": 1.0, "d": 2.0}


def test_one_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[wandb\]'"):
        check_installed(("wandb",))


def settings(*given):
    return parse(
        Seq2SeqSettings, ["--model_init_path", "m", "--data", "d", *given], prog="x", example="x"
    ).settings.tracking


def test_settings():
    assert settings("--trackers", "wandb", "mlflow", "wandb").trackers == ("wandb", "mlflow")
    assert settings().trackers == ()
    with pytest.raises(ConfigError, match="wandb"):
        settings("--trackers", "wandbb")
    with pytest.raises(ConfigError, match="needs --metrics_port"):
        settings("--metrics_host", "0.0.0.0")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_figures_for_prometheus():
    port = free_port()
    exporter = Exporter(port, "127.0.0.1", {"run": 'a "run"', "task": "clf"})
    try:
        exporter.log(5, {"loss": 0.25, "lr": 1e-3, "tokens_per_s": 9.0, "unknown": 1.0}, "train")
        exporter.log(5, {"auc": 0.5}, "eval")
        exporter.log(5, {}, "checkpoint")
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        with pytest.raises(ConfigError, match=f"--metrics_port {port}: cannot listen"):
            Exporter(port, "127.0.0.1", {})
    finally:
        exporter.close(finished=True)
    run = json.dumps('a "run"')
    for line in (
        f"workflow_training_step{{run={run}}} 5.0",
        f"workflow_training_loss{{run={run}}} 0.25",
        f"workflow_training_learning_rate{{run={run}}} 0.001",
        f'workflow_training_eval{{metric="auc",run={run}}} 0.5',
        f"workflow_training_checkpoint_step{{run={run}}} 5.0",
        f"workflow_training_checkpoints_total{{run={run}}} 1.0",
        f'workflow_training_info{{run={run},task="clf"}} 1.0',
    ):
        assert line in text.splitlines(), line
    assert "python_info" not in text
    Exporter(port, "127.0.0.1", {}).close(finished=True)
