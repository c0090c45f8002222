"""Runs that are told to stop: one agreed boundary, a checkpoint, a code, and nothing of it in the finished run's numbers."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.conftest import lines_without_times, losses, write_data
from tests.training_program import Training, finished
from workflow.watch import signals

pytestmark = pytest.mark.slow

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flan_like):
    """Number of ranks -> a run that nobody disturbed."""
    made = {}

    def run(nproc: int) -> Training:
        if nproc not in made:
            mount = tmp_path_factory.mktemp("alone") / "mount"
            write_data(mount, "toy")
            made[nproc] = finished(mount, flan_like, nproc=nproc)
        return made[nproc]

    return run


def assert_same(run: Training, other: Training) -> None:
    """The same numbers, line by line, and the same report and final weights."""
    assert lines_without_times(run.folder) == lines_without_times(other.folder)
    one, two = run.report(), other.report()
    assert (one.initial, one.final, one.best) == (two.initial, two.final, two.best)
    names = [sorted(path.name for path in each.folder.glob("checkpoint-*")) for each in (run, other)]
    assert names[0] == names[1], "checkpoints of stops do not stay"
    weights = [(each.folder / "checkpoint-30/model.safetensors").read_bytes() for each in (run, other)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("nproc", "rank", "number", "code"),
    [(1, None, TERM, 75), (1, None, INT, 130), (2, 1, TERM, 75), (2, None, USR1, 75)],
)
def test_a_stopped_run_continues_bit_for_bit(mount, flan_like, alone, nproc, rank, number, code):
    """In a step, by a signal to the only rank, to the second of two, and to the launcher, which passes it on."""
    with Training(mount, flan_like, nproc=nproc) as run:
        run.reaches(3)
        run.send(number, rank=rank)
        told = run.ends(code)
        step = run.step()
    assert told.count(f"notice: stopped by {number.name} after step {step}; the same command continues") == 1, told
    assert (run.folder / f"checkpoint-{step}").is_dir()
    assert not (run.folder / "report.json").exists()
    assert f"continued after step {step}" in finished(mount, flan_like, nproc=nproc).output
    assert_same(run, alone(nproc))


SLOW = """
import sys, time

class Finder:
    \"\"\"Slows a function of a module down when that is imported.\"\"\"

    def find_spec(self, name, path=None, target=None):
        import importlib.util, os
        module, function, seconds = os.environ["TEST_SLOW"].split(":")
        if name != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(found):
            load(found)
            inner = getattr(found, function)
            def slow(*given, **more):
                open(os.environ["TEST_SLOW_FILE"], "a").close()
                time.sleep(float(seconds))
                return inner(*given, **more)
            setattr(found, function, slow)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def slowed(folder, what: str) -> dict[str, str]:
    """An environment in which `what` ("module:function:seconds") is slow, and TEST_SLOW_FILE appears when it is entered."""
    (folder / "sitecustomize.py").write_text(SLOW)
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    return {"PYTHONPATH": path, "TEST_SLOW": what, "TEST_SLOW_FILE": str(folder / "entered")}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_stop_within_an_evaluation(mount, flan_like, alone, tmp_path, stage):
    """Rank 1 alone gets the signal while both generate for step 10: the evaluation is left, and made after resuming."""
    environment = slowed(tmp_path, "workflow.inference.batch:_run:3")
    with Training(mount, flan_like, nproc=2, deepspeed=stage, environment=environment) as run:
        run.reaches(10)
        run.send(TERM, rank=1)
        assert "stopped by SIGTERM after step 10" in run.ends(75)
    assert [line["step"] for line in lines_without_times(run.folder) if "eval_loss" in line] == [0]
    again = finished(mount, flan_like, nproc=2, deepspeed=stage)
    if stage == "zero2":
        assert_same(again, alone(2))
    assert [line["step"] for line in lines_without_times(run.folder) if "eval_loss" in line] == [0, 10, 20, 30]


def test_a_stop_within_a_save(mount, flan_like, alone, tmp_path):
    """The save ends first, and no further update is made."""
    with Training(mount, flan_like, environment=slowed(tmp_path, "workflow.training.saving:save_file:2")) as run:
        run.waits_for(lambda: (tmp_path / "entered").exists())
        run.send(TERM)
        assert "after step 10" in run.ends(75)
    assert run.step() == 10
    finished(mount, flan_like)
    assert_same(run, alone(1))


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_stop_while_loading(mount, flan_like, tmp_path, nproc):
    environment = slowed(tmp_path, "workflow.data.features:load_features:60")
    with Training(mount, flan_like, nproc=nproc, environment=environment) as run:
        run.waits_for(lambda: (tmp_path / "entered").exists())
        run.send(TERM)
        told = run.ends(75, timeout=50)  # before the wait of a minute is over
    assert told.count("notice: stopped by SIGTERM before the first step") == 1, told


def test_a_second_signal_ends_at_once(mount, flan_like, tmp_path):
    with Training(mount, flan_like, environment=slowed(tmp_path, "workflow.training.saving:save_file:60")) as run:
        run.waits_for(lambda: (tmp_path / "entered").exists())
        run.send(INT)
        time.sleep(0.5)
        assert run.process.poll() is None
        run.send(INT)
        assert "at once by a second SIGINT" in run.ends(130, timeout=10)


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_signal_that_comes_twice_at_once_is_one(mount, flan_like, nproc):
    """A scheduler tells every process of a job, and the job's shell passes the signal on as well."""
    with Training(mount, flan_like, nproc=nproc) as run:
        run.reaches(3)
        run.send(TERM)
        time.sleep(0.05)
        run.send(TERM)
        told = run.ends(75)
        step = run.step()
    assert told.count("notice: stopped by SIGTERM after step") == 1, told
    assert (run.folder / f"checkpoint-{step}/training_state").is_dir()


def test_only_ctrl_c_counts_twice_within_a_moment(monkeypatch):
    watch = signals.Watch(relays=True, is_rank=False)
    for number in (TERM, TERM, USR1, USR1, INT, INT):
        watch.hear(number)
    assert watch.take() == [TERM, USR1, INT, INT]
    monkeypatch.setattr(signals, "ECHO_S", 0.0)
    watch.hear(TERM)
    assert watch.take() == [TERM]


def test_ranks_that_do_not_stop_are_killed_after_the_grace(mount, flan_like, tmp_path):
    environment = slowed(tmp_path, "workflow.training.saving:save_file:60")
    with Training(mount, flan_like, nproc=2, grace_s=2, environment=environment) as run:
        run.waits_for(lambda: (tmp_path / "entered").exists())
        run.send(TERM)
        assert "not stopped within --grace_s 2" in run.ends(128 + TERM, timeout=20)
        assert not run.ranks()


def test_patience_ends_training_as_the_last_step_does(mount, flan_like):
    """A rate of almost nothing: the first evaluation is the best there will be. Killed before its report, it only reports."""
    settings = {"patience": 2, "lr": "1e-12", "eval_steps": 2, "save_steps": 3, "best_metric": "exact_match"}
    run = finished(mount, flan_like, **settings)
    report = run.report()
    step = report.steps
    assert step < 30
    assert (report.final.step, report.best.step) == (step, step - 4)
    assert f"stopped at step {step} of 30: 2 evaluations without a better exact_match" in run.output
    assert any("without a better" in note for note in report.notes)
    assert (run.folder / f"checkpoint-{step}/training_state").is_dir()
    before = losses(run.folder)
    (run.folder / "report.json").unlink()
    again = finished(mount, flan_like, **settings)
    assert losses(run.folder) == before
    assert again.report().final == report.final
