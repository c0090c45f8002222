"""Several nodes: launchers that start a few ranks each, here all on one machine, as separate as they would be there."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, losses, metrics_lines, run_program, write_data
from tests.training.rank_worker import run_group
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings

pytestmark = pytest.mark.slow

RUN = ("--data", "toy", "--training_run_name", "run", "--train_batch_size", 4, "--logging_steps", 1, "--dropout", 0.1)
STEPS = ("--max_steps", 30, "--eval_steps", 10, "--lr", "1e-2")


def arguments(mount, model, *more):
    return [*map(str, ("--mount", mount, "--model_init_path", model, *RUN, *STEPS, *more))]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def by_torchrun(node: int, port: int) -> list[str]:
    given = ("--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}", "--rdzv_backend=c10d", "--rdzv_id=run")
    return [sys.executable, "-m", "torch.distributed.run", *given, f"--rdzv_endpoint=127.0.0.1:{port}"]


def by_deepspeed(node: int, port: int) -> list[str]:
    """What the deepspeed launcher runs on each node of a hostfile, by pdsh or ssh."""
    world = base64.urlsafe_b64encode(json.dumps({"one": [0], "two": [0]}).encode()).decode()
    given = (f"--world_info={world}", f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}")
    return [sys.executable, "-m", "deepspeed.launcher.launch", *given]


class Nodes:
    """The same command on two nodes, with their output in files."""

    def __init__(self, launchers, command, folder: Path, env=None) -> None:
        folder.mkdir()
        self.logs = [folder / f"node{node}.log" for node in range(2)]
        self.processes = []
        for node, log in enumerate(self.logs):
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env(node) if env else {})}
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*launchers(node), *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def codes(self, timeout=240) -> list[int]:
        end = time.monotonic() + timeout
        return [process.wait(max(1, end - time.monotonic())) for process in self.processes]


def wait_for(condition, nodes, timeout=150):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, nodes.said()
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flan_like):
    """The losses of two ranks on one node."""
    mount = tmp_path_factory.mktemp("alone") / "mount"
    write_data(mount, "toy")
    done = run_program(*arguments(mount, flan_like, "--nproc", 2, "--deepspeed", "zero2"))
    assert done.returncode == 0, done.stderr
    return losses(mount / "models/run")


def same(run: Path, expected, rel: float) -> None:
    found = losses(run)
    assert found.keys() == expected.keys()
    for step, pair in expected.items():
        assert found[step] == pytest.approx(pair, rel=rel), step


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks die with a launcher on Linux alone")
def test_a_killed_node_and_the_same_command_again(mount, flan_like, alone, tmp_path):
    """torchrun with a c10d rendezvous: kill -9 of one node's launcher ends its rank, that ends the others, nothing is lost."""
    run, port = mount / "models/run", free_port()
    command = [str(ROOT / "seq2seq.py"), *arguments(mount, flan_like, "--deepspeed", "zero2")]
    with Nodes(lambda node: by_torchrun(node, port), command, tmp_path / "first") as nodes:
        wait_for((run / "checkpoint-10").is_dir, nodes)
        ranks = [rank for process in nodes.processes for rank in children(process.pid)]
        assert len(ranks) == 2
        nodes.processes[1].send_signal(signal.SIGKILL)
        assert nodes.codes(timeout=90)[0] != 0
        wait_for(lambda: not any(map(is_alive, ranks)), nodes, timeout=20)
    assert not (run / "report.json").exists()
    port = free_port()
    with Nodes(lambda node: by_torchrun(node, port), command, tmp_path / "again") as nodes:
        assert nodes.codes() == [0, 0], nodes.said()
        assert "continued after step" in nodes.logs[0].read_text() + nodes.logs[1].read_text()
    same(run, alone, rel=1e-6)
    assert len(metrics_lines(run)) == len({(line["step"], "loss" in line) for line in metrics_lines(run)})
    assert json.loads((run / "report.json").read_text())["backend"]["ranks"] == 2


def test_the_deepspeed_launcher_on_two_nodes(mount, flan_like, alone, tmp_path):
    """ZeRO-3; the launcher adds --local_rank, and both nodes have a local rank 0."""
    port = free_port()
    command = [str(ROOT / "seq2seq.py"), *arguments(mount, flan_like, "--deepspeed", "zero3")]
    with Nodes(lambda node: by_deepspeed(node, port), command, tmp_path / "nodes") as nodes:
        assert nodes.codes() == [0, 0], nodes.said()
    same(mount / "models/run", alone, rel=1e-4)


def test_srun_on_two_nodes(mount, flan_like, alone, tmp_path):
    """Tasks with Slurm's variables and no launcher; `scontrol`, which names the first host, is a stand-in."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "127.0.0.1\\n127.0.0.2\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)

    def env(node: int) -> dict[str, str]:
        step = {"SLURM_JOB_ID": str(free_of_both), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        place = {"SLURM_PROCID": str(node), "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}
        return {**step, **place, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}

    free_of_both = 20000 + os.getpid() % 10000
    command = [str(ROOT / "seq2seq.py"), *arguments(mount, flan_like, "--deepspeed", "zero3")]
    with Nodes(lambda node: [sys.executable], command, tmp_path / "nodes", env) as nodes:
        assert nodes.codes() == [0, 0], nodes.said()
    same(mount / "models/run", alone, rel=1e-4)


def test_hierarchical_shares_change_no_number(flan_like, shared_mount, tmp_path):
    """ZeRO++'s second set of shares, in two groups of two ranks."""
    shipped = json.loads((ROOT / "ds_configs/zero3_multinode.json").read_text())
    shipped["zero_optimization"]["zero_hpz_partition_size"] = 2
    (tmp_path / "hpz.json").write_text(json.dumps(shipped))
    job = {"model": str(flan_like), "mount": str(shared_mount), "max_steps": 3}
    plain = {**job, "deepspeed": "zero3"}
    # Groups are made once a process, so the plain one is first.
    found = run_group(4, [plain, {**job, "deepspeed": str(tmp_path / "hpz.json")}], tmp_path / "ranks")
    assert found[1] == found[0]


def test_the_documented_commands_hold_together():
    """Every command's flags are understood."""
    text = (ROOT / "docs/many_nodes.md").read_text(encoding="utf-8")
    (train,) = re.findall(r"^seq2seq\.py .*$", text, re.MULTILINE)[:1]
    parse(Seq2SeqSettings, shlex.split(train)[1:], prog="seq2seq.py", example="x")
