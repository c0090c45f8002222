"""Threads by what the machine gives: the user's word first, then quota and affinity, then neighbours."""

from __future__ import annotations

import os
import sys

import pytest

from workflow import exits, threads
from workflow.threads import CHOSEN, SHORT_SPIN, SPIN, THREADS, choose, forget_chosen, settle, share_of_threads


@pytest.fixture(autouse=True)
def _four_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_quotas", list)


@pytest.mark.parametrize(
    ("env", "cpus", "free", "chosen"),
    [
        ({}, 4, 3.9, {}),  # idle: nothing is changed
        ({}, 4, None, {}),
        ({}, 4, 2.6, {THREADS: "3", SPIN: SHORT_SPIN}),
        ({}, 4, 0.0, {THREADS: "2", SPIN: SHORT_SPIN}),  # neighbours leave
        ({}, 2, 2.0, {THREADS: "2"}),  # of a quota, or a share of ranks
        ({}, 2, 0.1, {THREADS: "1", SPIN: SHORT_SPIN}),
        ({}, 1, 0.0, {THREADS: "1", SPIN: SHORT_SPIN}),
        ({THREADS: "4"}, 4, 0.0, {SPIN: SHORT_SPIN}),
        ({"MKL_NUM_THREADS": "4"}, 4, 0.0, {SPIN: SHORT_SPIN}),
        ({SPIN: "7"}, 4, 0.0, {THREADS: "2"}),
        ({"OMP_WAIT_POLICY": "active"}, 4, 0.0, {THREADS: "2"}),
        ({"KMP_BLOCKTIME": "0"}, 4, 0.0, {THREADS: "2"}),
    ],
    ids=str,
)
def test_what_is_chosen(env, cpus, free, chosen):
    assert choose(env, cpus=cpus, free=free) == chosen


def test_what_the_user_set_stays_and_nobody_looks(monkeypatch):
    monkeypatch.setattr(threads, "free_cpus", lambda most: pytest.fail("looked"))
    for env in ({THREADS: "4", SPIN: "7"}, {THREADS: "1"}, {"MKL_NUM_THREADS": "2", "KMP_BLOCKTIME": "0"}):
        before = {**env}
        settle(env)
        assert env == before


def test_a_child_chooses_anew_but_keeps_the_users_word(monkeypatch):
    monkeypatch.setattr(threads, "free_cpus", lambda most: 0.0)
    env = {SPIN: "7"}
    settle(env)
    assert env == {SPIN: "7", THREADS: "2", CHOSEN: THREADS}
    monkeypatch.setattr(threads, "free_cpus", lambda most: 4.0)
    settle(env)
    assert env == {SPIN: "7"}


@pytest.mark.parametrize(
    ("env", "chosen"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "2"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "1"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, "2"),
    ],
    ids=str,
)
def test_ranks_of_a_machine_share_it_and_are_no_neighbours(env, chosen, monkeypatch):
    monkeypatch.setattr(threads, "free_cpus", lambda most: pytest.fail("looked"))
    settle(env)
    assert env[THREADS] == chosen


def test_ranks_that_were_given_cpus_use_them(monkeypatch):
    """srun and mpirun bind ranks: what a rank may use is not shared."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "free_cpus", lambda most: 4.0)
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    settle(env)
    assert THREADS not in env


@pytest.mark.parametrize(
    ("env", "parts", "most", "share"),
    [
        ({}, 2, None, "2"),
        ({}, 8, None, "1"),
        ({}, 2, 3, "3"),
        ({THREADS: "7"}, 2, 3, "7"),
        ({THREADS: "2", CHOSEN: THREADS}, 2, None, "1"),
        ({THREADS: "2", CHOSEN: THREADS}, 1, 3, "3"),
    ],
    ids=str,
)
def test_processes_side_by_side_share_what_there_is(env, parts, most, share):
    assert share_of_threads(env, parts, most=most) == share


def test_the_quota_of_control_groups_counts(monkeypatch, tmp_path):
    for folder, quota in (("", "max 100000"), ("a", "250000 100000"), ("a/b", "max 100000")):
        (tmp_path / "two" / folder).mkdir(exist_ok=True, parents=True)
        (tmp_path / "two" / folder / "cpu.max").write_text(f"{quota}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    monkeypatch.undo()
    assert threads._quotas(tmp_path / "two", own) == [2.5]
    (tmp_path / "one/cpu").mkdir(parents=True)
    (tmp_path / "one/cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "one/cpu/cpu.cfs_period_us").write_text("100000\n")
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/\n")
    assert threads._quotas(tmp_path / "one", own) == [0.5]
    monkeypatch.setattr(threads, "_quotas", lambda: [2.5])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert threads.available_cpus() == 2
    monkeypatch.setattr(threads, "_quotas", lambda: [0.5])
    assert threads.available_cpus() == 1


def test_how_many_cpus_are_free(monkeypatch, tmp_path):
    """By their ticks, of those that this process may use; a short burst of others does not count."""
    looks = iter(
        [
            "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n",
            "cpu0 10 0 0 0 0 0 0 0 0 0\ncpu1 5 0 0 5 0 0 0 0 0 0\n",  # half of one
            "cpu0 10 0 0 0 0 0 0 0 0 0\ncpu1 5 0 0 5 0 0 0 0 0 0\n",
            "cpu0 10 0 0 8 2 0 0 0 0 0\ncpu1 5 0 0 15 0 0 0 0 0 0\n",  # both
        ]
    )
    stat = tmp_path / "stat"

    def look(path):
        stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\n" + next(looks) + "cpu9 1 1 1 1 1 1 1 1 1 1\nintr 5\n")
        return real(path)

    real = threads._ticks
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threads, "_ticks", look)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    assert threads.free_cpus(2, stat=stat) == pytest.approx(2.0)


@pytest.mark.parametrize(("argv", "settles"), [([], True), (["-h"], False), (["results", "--help"], False)])
def test_every_program_settles_first(argv, settles, monkeypatch):
    """All entries go through `run_main`."""
    order = []
    monkeypatch.setattr(exits, "settle_threads", lambda: order.append("threads"))
    with pytest.raises(SystemExit):
        exits.run_main(lambda given: order.append("program") or 0, argv)
    assert order == (["threads", "program"] if settles else ["program"])


def test_nothing_is_touched_once_torch_is_there(monkeypatch):
    monkeypatch.setattr(threads, "settle", lambda env: pytest.fail("too late"))
    monkeypatch.setitem(sys.modules, "torch", sys)
    threads.settle_threads()


def test_a_job_inherits_the_users_word_alone(monkeypatch):
    from workflow.jobs.attempts import _inherited

    monkeypatch.setattr(os, "environ", {THREADS: "2", SPIN: SHORT_SPIN, CHOSEN: f"{THREADS} {SPIN}", "HOME": "/"})
    assert _inherited() == {"HOME": "/"}
    forget_chosen(os.environ)
    assert os.environ == {"HOME": "/"}
