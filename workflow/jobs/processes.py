"""Processes of this machine that outlive who started them: told apart by more than a number, signalled with their group.

Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path


def identity(pid: int) -> str | None:
    """`host:pid:when`, which no later process shares; None where there is no such process, or only what is left of it."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return f"{socket.gethostname()}:{pid}:0" if _answers(pid) else None  # not Linux: the number has to do
    state, started = after_name[0], after_name[19]
    return None if state in "ZX" else f"{socket.gethostname()}:{pid}:{_boot()}{started}"


def is_alive(who: str | None) -> bool:
    """Whether the process of this identity lives on this machine. Of other machines nothing can be told: no."""
    return who is not None and identity(_pid(who)) == who


def send(who: str, number: int) -> None:
    """Sends a signal to the whole group that the process leads, if it lives."""
    if is_alive(who):
        send_group(_pid(who), number)


def send_group(pid: int, number: int) -> None:
    """Sends a signal to a process group; it may be gone by now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_group(pid: int) -> None:
    """Ends what is left of a process group."""
    send_group(pid, signal.SIGKILL)


def _pid(who: str) -> int:
    return int(who.split(":")[-2])


def _boot() -> str:
    """Start times count from the boot of the machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").split("-")[0] + "-"
    return ""


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
