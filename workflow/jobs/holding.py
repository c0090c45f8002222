"""Locks that die with their holder: who drives a folder of jobs, and who runs a job.

Knows nothing of how jobs are run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from workflow.errors import RunExistsError


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Inside the block nobody else drives the jobs of this folder. Raises RunExistsError that names who does."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "driver.lock"
    descriptor = hold(file)
    if descriptor is None:
        raise RunExistsError(f"{folder}: driven by {holder(file)}; wait for it, or stop it: this command then goes on")
    try:
        yield
    finally:
        os.close(descriptor)


def hold(file: Path) -> int | None:
    """Locks a file until the descriptor is closed, or this process ends; None where another holds it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_this_process()}\n".encode(), 0)
    return descriptor


def holder(file: Path) -> str:
    """Who wrote itself into a lock."""
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return "another process"


def held_here(file: Path) -> bool:
    """Whether the last to lock the file was this process."""
    return holder(file) == _this_process()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
