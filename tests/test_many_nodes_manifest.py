"""Two "nodes" by the very words of the manifest for several nodes, with the variables that its operator sets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.manifests import only, resources, trainer
from tests.test_many_nodes import RUN, STEPS, Nodes, alone, children, free_port, is_alive, same, wait_for
from workflow.errors import BackendError, ConfigError, StartAgain

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by /proc")]
__all__ = ["alone"]


def words_of_the_manifest(mount, model) -> list[str]:
    """Model, data and lengths are the test's, everything else is the manifest's."""
    words = trainer("train-multinode")[2]
    given = [*map(str, ("--model_init_path", model, *RUN, "--gradient_accumulation_steps", 1, *STEPS))]
    ours = {
        name.lstrip("-").replace("data", "data_name") if name == "--data" else name.lstrip("-") for name in given[::2]
    }
    end = words.index("seq2seq.py") + 1
    kept = [word for word in words[end:] if word.lstrip("-").split("=")[0] not in ours]
    assert "--deepspeed=zero3" in kept
    return [sys.executable, *words[1:end], *kept, "--mount", str(mount), *given]


def operator(port: int):
    """What Kubeflow Trainer sets for a node; here each node has one rank."""
    nodes = str(only(resources("train-multinode"), "TrainJob")["spec"]["trainer"]["numNodes"])
    fixed = {
        "PET_NNODES": nodes,
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    return lambda node: {**fixed, "PET_NODE_RANK": str(node)}


def test_a_killed_node_a_stopped_node_and_the_same_words_again(mount, flan_like, alone, tmp_path):
    """kill -9 of one node: the other ends with 1. SIGTERM to one: both end with 75. Then the run ends as if alone."""
    run, command = mount / "models/run", words_of_the_manifest(mount, flan_like)

    def start(name: str) -> Nodes:
        return Nodes(lambda _: [], command, tmp_path / name, operator(free_port()))

    with start("killed") as nodes:
        wait_for((run / "checkpoint-10").is_dir, nodes)
        ranks = [rank for process in nodes.processes for rank in children(process.pid)]
        nodes.processes[1].send_signal(signal.SIGKILL)
        assert nodes.codes(timeout=90)[0] == BackendError("").exit_code, nodes.said()
        wait_for(lambda: not any(map(is_alive, ranks)), nodes, timeout=20)
    with start("stopped") as nodes:
        wait_for((run / "checkpoint-20").is_dir, nodes)
        nodes.processes[0].send_signal(signal.SIGTERM)
        assert nodes.codes(timeout=90) == [StartAgain("").exit_code] * 2, nodes.said()
    assert not (run / "report.json").exists()
    with start("again") as nodes:
        assert nodes.codes() == [0, 0], nodes.said()
        assert "continued after step" in "".join(log.read_text() for log in nodes.logs)
    same(run, alone, rel=1e-4)
    assert json.loads((run / "report.json").read_text())["backend"]["ranks"] == 2


def test_a_wrong_input_is_told_from_a_failure(mount):
    command = words_of_the_manifest(mount, mount / "nowhere")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **operator(free_port())(0), "PET_NNODES": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ConfigError("").exit_code, done.stderr
    assert "nowhere" in done.stderr
