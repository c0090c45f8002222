"""Ranks that die, hang and come back at moments that nobody chose: the run ends with a word for it, or with its own numbers.

`WORKFLOW_CHAOS_KILLS=20 pytest tests/test_chaos.py` kills more often than the usual five times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess

import pytest

from tests.conftest import lines_without_times, losses, write_data
from tests.training_program import Training, finished

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("WORKFLOW_CHAOS_KILLS", "5"))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, flan_like):
    mount = tmp_path_factory.mktemp("long") / "mount"
    write_data(mount, "toy")
    return finished(mount, flan_like, **LONG)


MOST_LINES = 12
"""Updates, at the most, between a start and its kill: a run has twice as many, so that a slow machine's kills strike it too."""
LONG = {"max_steps": 2 * MOST_LINES * max(KILLS, 5), "eval_steps": 30, "save_steps": 9}


def test_killed_at_random_moments_a_run_ends_with_its_own_numbers(mount, flan_like, long_run):
    rng, struck = random.Random(0), 0
    for _ in range(KILLS):
        with Training(mount, flan_like, **LONG) as run:
            if rng.random() < 0.8:
                until = run.step() + rng.randint(1, MOST_LINES)
                run.waits_for(lambda run=run, until=until: run.step() >= until or run.process.poll() is not None)
            with contextlib.suppress(subprocess.TimeoutExpired):  # somewhere in an update or a save, or while it loads
                run.process.wait(rng.uniform(0, 0.1))
            run.process.kill()
            run.process.wait()
            struck += not (run.folder / "report.json").exists()
    assert struck >= 0.8 * KILLS, "most kills must come before the end"
    run = finished(mount, flan_like, **LONG)
    assert lines_without_times(run.folder) == lines_without_times(long_run.folder)
    one, two = run.report(), long_run.report()
    assert (one.final, one.best, one.final_train_loss) == (two.final, two.best, two.final_train_loss)


def test_a_killed_rank_is_named_and_started_again_as_often_as_allowed(mount, flan_like):
    settings = {"nproc": 2, "max_restarts": 1, "max_steps": 100000, "eval_steps": 100000, "save_steps": 10}
    with Training(mount, flan_like, **settings) as run:
        run.reaches(12)
        first = run.ranks()
        run.send(signal.SIGKILL, rank=1)
        run.waits_for(lambda: len(again := run.ranks()) == 2 and not set(again.values()) & set(first.values()))
        reached = run.step()
        run.waits_for(lambda: run.step() > reached)
        run.send(signal.SIGKILL, rank=0)
        told = run.ends(1)
    assert "notice: rank 1 was killed by SIGKILL" in told
    assert "starting the ranks again (1 of 1)" in told
    assert "continued after step" in told
    assert "error: rank 0 was killed by SIGKILL" in told
    assert "error: rank 1 is silent: killed, stopped" in told or "rank 1: rank 0 is silent" in told, told
    steps = [line["step"] for line in lines_without_times(run.folder) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1)), "no line twice, none missing"


def test_wrong_input_starts_nothing_again(mount, flan_like):
    with Training(mount, flan_like, nproc=2, max_restarts=3, data="toi") as run:
        told = run.ends(2)
    assert told.count("error:") == 1
    assert "starting" not in told


def test_stopped_on_two_ranks_continued_on_one(mount, flan_like, tmp_path):
    """ZeRO-3 on two, then ZeRO-1 on one: one curve. (Dropout differs between numbers of ranks.)"""
    settings = {"dropout": 0, "eval_steps": 30, "no_eval_at_start": True}
    with Training(mount, flan_like, nproc=2, deepspeed="zero3", **settings) as run:
        run.reaches(4)
        run.send(signal.SIGTERM, rank=1)
        run.ends(75)
        stopped_at = run.step()
    assert stopped_at < 30
    run = finished(mount, flan_like, deepspeed="zero1", **settings)
    write_data(tmp_path / "alone", "toy")
    alone = losses(finished(tmp_path / "alone", flan_like, **settings).folder)
    assert losses(run.folder).keys() == alone.keys()
    for step, (loss, norm) in losses(run.folder).items():
        assert (loss, norm) == (pytest.approx(alone[step][0], rel=1e-5), pytest.approx(alone[step][1], rel=1e-4))


def test_a_hung_rank_is_named(mount, flan_like):
    settings = {"nproc": 2, "rank_timeout_s": 6, "max_steps": 100000, "eval_steps": 100000, "deepspeed": "zero3"}
    with Training(mount, flan_like, **settings) as run:
        run.reaches(2)
        run.send(signal.SIGSTOP, rank=1)
        told = run.ends(1, timeout=60)
        assert not run.ranks()
    assert "rank 1 is silent" in told
