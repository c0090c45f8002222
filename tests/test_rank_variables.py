"""Variables of launchers: whose they are, what they leave open, and what is said of those that were left behind."""

from __future__ import annotations

import os
import socket
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest

from workflow import runtime
from workflow.entry import in_ranks
from workflow.errors import ConfigError, RankLost
from workflow.jobs.attempts import OF_RANKS
from workflow.rank_variables import LAUNCHERS, Ranks, find_ranks, meeting_place
from workflow.runtime import own_ranks

TORCHRUN, OPEN_MPI, SRUN, MPIEXEC = LAUNCHERS
OMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "12",
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (Ranks(), TORCHRUN)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **OMPI}, (Ranks(3, 4, 1), TORCHRUN)),
        (OMPI, (Ranks(1, 2, 1), OPEN_MPI)),
        ({**STEP, **OMPI}, (Ranks(1, 2, 1), OPEN_MPI)),
        ({**STEP, **PMI}, (Ranks(3, 4, 1), SRUN)),
        ({**PMI, "MPI_LOCALRANKID": "1"}, (Ranks(1, 2, 1), MPIEXEC)),
        ({**PMI, "PALS_LOCAL_RANKID": "0"}, (Ranks(1, 2, 0), MPIEXEC)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),  # an interactive shell of srun
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({**STEP, "SLURM_STEP_ID": "batch"}, None),
        ({"RANK": "0"}, None),
        ({"LOCAL_RANK": "0"}, None),
    ],
    ids=str,
)
def test_whose_variables_count(env, found):
    assert find_ranks(env) == found


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RANK": "", "WORLD_SIZE": ""}, "RANK='' is not a number; .*unset RANK WORLD_SIZE$"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": ""},
            "LOCAL_RANK='' is not a number.*unset RANK WORLD_SIZE LOCAL_RANK$",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks are numbered from 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is not a number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK.*unset WORLD_SIZE$"),
        ({"RANK": "1"}, "RANK=1 is set without WORLD_SIZE"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is set without SLURM_PROCID"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS='' is not a number"),
        ({**OMPI, "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE='' is not a number"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE is set without PMI_RANK"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK=0 and WORLD_SIZE=2 say .* MASTER_ADDR and MASTER_PORT, where they meet, are not set",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "MASTER_PORT, but these are 'n1' and None"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "http"}, "'n1' and 'http'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "99999"}, "'n1' and '99999'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"}, "'' and '1'"),
        (OMPI, "OMPI_COMM_WORLD_RANK=1 and OMPI_COMM_WORLD_SIZE=2 say .* are not set"),
        (STEP, "SLURM_PROCID=3 and SLURM_STEP_NUM_TASKS=4 say .* are not set"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(env, said, monkeypatch):
    monkeypatch.setattr(os, "environ", env)
    settings = SimpleNamespace(nproc=None, mount=None)
    with pytest.raises(ConfigError, match=said):
        in_ranks("workflow.seq2seq", [], settings, lambda place: pytest.fail("nothing may begin"))


def test_errors_are_told_whatever_the_variables_say(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RANK": "", "WORLD_SIZE": "2"})
    assert own_ranks() is None


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({**STEP, "SLURM_JOB_NODELIST": "localhost"}, ("localhost", 20012)),
        ({**STEP, "SLURM_JOB_NODELIST": "n[01-04,7],gpu1"}, ("n01", 20012)),
        ({**STEP, "SLURM_JOB_NODELIST": "a[2,5]b[1-3]x"}, ("a2b1x", 20012)),
        ({**STEP, "SLURM_JOB_NODELIST": "n1,n2", "SLURM_STEP_NODELIST": "n2"}, ("n2", 20012)),
        ({**STEP, "SLURM_JOB_NODELIST": "n1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, ("x", 1)),
        ({**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "7"}, ("127.0.0.1", 20007)),
        ({**PMI, "MPI_LOCALNRANKS": "2"}, ("127.0.0.1", 20099)),
    ],
    ids=str,
)
def test_where_ranks_meet(env, place, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # in containers there is no scontrol
    ranks, launcher = find_ranks(env)
    assert meeting_place(env, ranks, launcher, parent=99) == place


@pytest.fixture
def two(monkeypatch):
    """The environment of two ranks of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    monkeypatch.setattr(os, "environ", env)
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(("rank", "waits"), [(0, "waiting for 1 of 2 ranks"), (1, "waiting for an answer")])
def test_who_waits_says_for_whom_and_gives_up_in_a_sentence(two, rank, waits, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "UNTOLD_S", 0.0)
    with pytest.raises(RankLost, match=rf"the 2 ranks did not meet at {two}: .*unset RANK WORLD_SIZE"):
        runtime._meet(Ranks(rank, 2, rank), timedelta(seconds=0.5))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{waits} at {two} (RANK=" in said[0]


def test_ranks_meet(two):
    found = []
    other = threading.Thread(target=lambda: found.append(runtime._meet(Ranks(1, 2, 1), timedelta(seconds=60))))
    other.start()
    store = runtime._meet(Ranks(0, 2, 0), timedelta(seconds=60))
    other.join()
    store.set("said", "hello")
    assert found[0].get("said") == b"hello"


def test_jobs_of_a_driver_that_is_a_rank_are_none():
    assert {"RANK", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"} <= {*OF_RANKS}
