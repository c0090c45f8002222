"""What happens to runs, happens to these: kill -9 in a save, full disks, flipped bits, mounts that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest

from tests.conftest import ROOT, losses, metrics_lines, run_program, write_data
from tests.test_program import SMALL_RUN, start, wait_for

pytestmark = pytest.mark.slow

FAILING = """
import errno, os, sys
if any("seq2seq" in part for part in sys.orig_argv) and "FAIL_AT" in os.environ:
    import workflow.training.saving as saving

    inner = saving.save_file

    def save_file(tensors, path, **more):
        inner(tensors, path, **more)
        inner_steps.append(path)
        if str(len(inner_steps)) in os.environ["FAIL_AT"].split():
            raise OSError(errno.ENOSPC, "No space left on device")

    inner_steps = []
    saving.save_file = save_file
"""
"""The n-th file of optimizer state that a process writes finds the disk full; the model's files are there by then."""

SLOW = """
import os, sys, time
if any("seq2seq" in part for part in sys.orig_argv) and "SLOW" in os.environ:
    import workflow.training.saving as saving

    inner = saving.save_file

    def save_file(tensors, path, **more):
        inner(tensors, path, **more)
        os.truncate(path, path.stat().st_size // 2)  # half of it is written
        time.sleep(600)

    saving.save_file = save_file
"""


@pytest.fixture
def patched(tmp_path):
    """A function that makes the environment in which a process starts with this code."""

    def environment(code, **more):
        (tmp_path / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), **more}

    return environment


def train(mount, model, *more, **options):
    return run_program(
        "--mount", mount, "--model_init_path", model, "--data", "toy", "--training_run_name", "run", *SMALL_RUN, *more, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flan_like):
    """The mount of a finished run that nothing happened to (read only)."""
    mount = tmp_path_factory.mktemp("alone") / "mount"
    write_data(mount, "toy")
    done = train(mount, flan_like)
    assert done.returncode == 0, done.stderr
    return mount


@pytest.fixture
def unfinished(alone, tmp_path):
    """A copy of it that was not finished: checkpoints 2, 4 and 5, and no report."""
    mount = tmp_path / "mount"
    shutil.copytree(alone, mount)
    (mount / "models/run/report.json").unlink()
    return mount


def check_same(mount, alone):
    """The run has ended with the numbers and files of the one left alone."""
    runs = [folder / "models/run" for folder in (mount, alone)]
    assert losses(runs[0]) == losses(runs[1])
    assert [line["step"] for line in metrics_lines(runs[0])] == [line["step"] for line in metrics_lines(runs[1])]
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    for name in ("initial", "best", "final"):
        assert reports[0][name] == reports[1][name]
    for name in ("checkpoint-5", "checkpoint-best-ckpt"):
        file = f"{name}/model.safetensors"
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    assert not list(runs[0].glob(".tmp-*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_costs_a_checkpoint_and_no_numbers(unfinished, alone, flan_like):
    run = unfinished / "models/run"
    flip(run / "checkpoint-5/model.safetensors")
    done = train(unfinished, flan_like)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "run/checkpoint-5 is not used: model.safetensors: not what was written" in said
    assert "continued after step 4" in said
    assert (run / "damaged-checkpoint-5").is_dir()
    check_same(unfinished, alone)


def test_two_ranks_go_round_damage_together(unfinished, alone, flan_like):
    """The first rank looks, all go on from the same checkpoint; on other ranks and another stage than wrote it."""
    run = unfinished / "models/run"
    flip(run / "checkpoint-5/training_state/state.json")
    done = train(unfinished, flan_like, "--nproc", 2, "--deepspeed", "zero3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("it is now damaged-checkpoint-5") == 1
    for step, figures in losses(alone / "models/run").items():
        assert losses(run)[step] == pytest.approx(figures, rel=1e-4)


def test_only_the_report_is_missing(unfinished, alone, flan_like):
    done = train(unfinished, flan_like)
    assert done.returncode == 0, done.stderr
    check_same(unfinished, alone)


def test_nothing_good_left_is_an_error(unfinished, flan_like):
    run = unfinished / "models/run"
    for name in ("checkpoint-5", "checkpoint-4"):
        flip(run / name / "training_state/optimizer-00001.safetensors")
    done = train(unfinished, flan_like)
    assert done.returncode == 1
    assert "checkpoint-5: training_state/optimizer-00001.safetensors: not what was written" in done.stderr
    assert "--overwrite_output_dir" in done.stderr
    assert "Traceback" not in done.stderr
    named = train(unfinished, flan_like, "--resume", run / "checkpoint-5")
    assert named.returncode == 1
    assert "checkpoint-5: damaged: training_state/optimizer-00001" in named.stderr


@pytest.mark.parametrize("more", [(), ("--save_in_background",)])
def test_kill_9_in_a_save(unfinished, alone, flan_like, patched, monkeypatch, more):
    run = unfinished / "models/run"
    shutil.rmtree(run / "checkpoint-5")
    for name, value in patched(SLOW, SLOW="1").items():
        monkeypatch.setenv(name, value)
    process = start(unfinished, flan_like, *more)
    wait_for(lambda: list(run.glob(".tmp-*/training_state/optimizer-*")))
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert not (run / "checkpoint-5").exists()
    assert list(run.glob(".tmp-*"))
    done = train(unfinished, flan_like, env={"SLOW": "", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "continued after step 4" in " ".join(done.stdout.split())
    check_same(unfinished, alone)


@pytest.mark.parametrize(
    ("nproc", "stage", "more"),
    [
        (1, "zero0", ()),
        (2, "zero2", ()),
        (2, "zero3", ()),
        (1, "zero0", ("--save_in_background",)),
        (2, "zero3", ("--save_in_background",)),
    ],
)
def test_a_full_disk_costs_one_save(mount, alone, flan_like, patched, nproc, stage, more):
    """The save of step 2 fails, on all ranks alike; training goes on, and the save of step 4 is there."""
    done = train(mount, flan_like, "--nproc", nproc, "--deepspeed", stage, *more, env=patched(FAILING, FAIL_AT="1"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "checkpoint-2: could not be saved: [Errno 28] No space left on device" in said
    assert said.count("training goes on, and the next save is tried") == 1
    run = mount / "models/run"
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5", "checkpoint-best-ckpt"}
    assert not list(run.glob(".tmp-*"))
    for step, figures in losses(alone / "models/run").items():
        assert losses(run)[step] == pytest.approx(figures, rel=1e-4)
    best = json.loads((run / "report.json").read_text())["best"]["step"]
    assert (run / "checkpoint-best-ckpt/model.safetensors").samefile(run / f"checkpoint-{best}/model.safetensors")


def test_changed_data_needs_to_be_allowed(unfinished, flan_like):
    run = unfinished / "models/run"
    shutil.rmtree(run / "checkpoint-5")
    write_data(unfinished, "toy", seed=1)
    refused = train(unfinished, flan_like)
    assert refused.returncode == 2
    assert "data_hash" in refused.stderr
    assert "--allow_changed_data" in refused.stderr
    done = train(unfinished, flan_like, "--allow_changed_data", "--logging_steps", 2)
    assert done.returncode == 0, done.stderr
    assert "the data changed since this run began" in done.stdout
    assert ["logging_steps", "1", "2"] in [line.split() for line in done.stdout.splitlines()]
    record = json.loads((run / "training_args.json").read_text())
    assert len(record["changes"]) == 1
    assert json.loads((run / "report.json").read_text())["best"]["step"] == 5, "no figures of other rows"


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small file system of its own; skips where that is not permitted."""
    folders = []

    def mount_it(options):
        folder = tmp_path / "small"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount_it
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_disk_that_holds_no_checkpoint(mounted, flan_like):
    mount = mounted("size=3m")
    write_data(mount, "toy")
    done = train(mount, flan_like)
    assert done.returncode == 1
    assert "not even one checkpoint fits" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_disk_that_fills_up(mounted, alone, flan_like):
    """Room for two checkpoints: the next two saves are left out, the last one ends the run, which goes on with more room."""
    mount = mounted("size=6m")
    write_data(mount, "toy")
    done = train(mount, flan_like, "--save_steps", 1)
    assert done.returncode == 1
    assert "note disk space: the checkpoints that are kept without" in " ".join(done.stdout.split())
    assert done.stdout.count("training goes on, and the next save is tried") == 2
    assert "checkpoint-5: could not be saved: about 4.8 MB are needed" in done.stderr
    assert "free some space there" in done.stderr
    run = mount / "models/run"
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2", "checkpoint-best-ckpt"}
    assert (run / "checkpoint-best-ckpt/model.safetensors").samefile(run / "checkpoint-2/model.safetensors")
    assert not list(run.glob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
    again = train(mount, flan_like, "--save_steps", 1)
    assert again.returncode == 0, again.stderr
    assert "continued after step 2" in " ".join(again.stdout.split())
    check_same(mount, alone)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_mount_that_cannot_be_written(mounted, alone, flan_like):
    folder = mounted("size=64m")
    shutil.copytree(alone, folder, dirs_exist_ok=True)
    (folder / "models/run/report.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for more in ((), ("--overwrite_output_dir",)):
        done = train(folder, flan_like, *more)
        assert done.returncode == 2, done.stderr
        assert "cannot write here: Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
