"""Locks, with flock and where a file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from tests.test_run_folder import settings
from workflow import locks
from workflow.errors import RunExistsError
from workflow.jobs.holding import driving
from workflow.locks import acquire, held_here, holder, release, stand_of, this_process
from workflow.run_folder import claim

OTHER = "import sys; from workflow import locks; from pathlib import Path; {} print(locks.acquire(Path(sys.argv[1])) is not None)"
WITHOUT = "import fcntl, os; fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(37, 'No locks available'));"


@pytest.fixture(params=[None, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def flock(request, monkeypatch):
    """Flock as it is, or that fails with one of the errors of file systems that have none."""
    if request.param is not None:

        def fail(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(locks, "_told", set())
    return request.param


def in_another_process(file, flock) -> bool:
    code = OTHER.format(WITHOUT if flock else "")
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_one_holds_and_then_another(tmp_path, flock):
    file = tmp_path / "run.lock"
    descriptor = acquire(file)
    assert descriptor is not None
    assert acquire(file) is None
    assert held_here(file)
    assert this_process() in holder(file)
    release(descriptor)
    again = acquire(file)
    assert again is not None
    release(again)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("flock", [None, errno.ENOLCK], indirect=True)
def test_another_process_is_kept_out_and_its_end_frees_the_lock(tmp_path, flock):
    file = tmp_path / "run.lock"
    descriptor = acquire(file)
    assert not in_another_process(file, flock)
    release(descriptor)
    assert in_another_process(file, flock)  # which ends without a release
    again = acquire(file)
    assert again is not None
    release(again)


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(locks, "_told", set())
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))


def test_what_a_killed_process_left_is_taken_over(tmp_path, without):
    file = tmp_path / "run.lock"
    host = this_process().partition(" on ")[2]
    stand_of(file).write_text(f"process {os.getppid()} on {host}, started 1")  # its number is another process's by now
    descriptor = acquire(file)
    assert descriptor is not None
    release(descriptor)


def test_of_another_machine_nothing_is_known(tmp_path, without):
    file = tmp_path / "run.lock"
    stand_of(file).write_text("process 4242 on elsewhere, started 1")
    assert acquire(file) is None
    assert holder(file) == (
        f"process 4242 on elsewhere (as {stand_of(file)} says; remove that file if the process is gone)"
    )
    stand_of(file).unlink()
    descriptor = acquire(file)
    assert descriptor is not None
    release(descriptor)


def test_that_a_file_stands_for_a_lock_is_told_once(tmp_path, without, capsys):
    for name in ("a", "b"):
        release(acquire(tmp_path / name))
    told = capsys.readouterr().err
    assert told.count("no locks on this file system (flock: ENOLCK: No locks available)") == 1


def test_runs_and_drivers_without_flock(tmp_path, without):
    """The last holder that a lock's file names is not taken for one that holds it."""
    root = tmp_path / "models" / "run"
    root.mkdir(parents=True)
    (root / "run.lock").write_text("process 4242 on oldhost\n")
    held = claim(root, settings(), data_hash="h", overwrite=False)
    with pytest.raises(RunExistsError, match=f"held by process {os.getpid()}"):
        claim(root, settings(), data_hash="h", overwrite=False)
    release(held.lock)
    release(claim(root, settings(), data_hash="h", overwrite=True).lock)
    with driving(tmp_path / "jobs"), pytest.raises(RunExistsError, match="driven by process"):
        driving(tmp_path / "jobs").__enter__()
    with driving(tmp_path / "jobs"):
        pass


def test_only_one_place_locks_files():
    from tests.test_structure import MODULES

    assert [path.name for path in MODULES if "fcntl" in path.read_text(encoding="utf-8")] == ["locks.py"]
