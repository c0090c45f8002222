"""Locks on files that die with their holder (flock), and files that stand for them where a file system has no flock.

A file that stands for a lock, `.NAME.held`, names its holder. It goes when the lock is released or the process ends; what a killed
process left is told by its number on the same machine, and otherwise to be removed by hand.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})
"""How flock says that another holds the lock; all else says that there are no locks."""
POLL_S = 0.05
SETTLE_S = 0.2
"""After which one of two processes that took over the same file sees that it lost."""


@dataclass(frozen=True)
class _Stand:
    """A file of this process that stands for a lock."""

    file: Path
    owner: str


_stands: dict[int, _Stand] = {}
_told: set[int] = set()


def acquire(file: Path, *, wait: bool = False) -> int | None:
    """Locks a file until `release`, or this process's end; None where another holds it, unless that is waited for."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        is_held = error.errno in HELD or not _stand_in(file, descriptor, error, wait=wait)
        if is_held:
            os.close(descriptor)
            return None
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{this_process()}\n".encode(), 0)
    return descriptor


def release(descriptor: int) -> None:
    """Gives a lock back."""
    stand = _stands.pop(descriptor, None)
    if stand is not None and _read(stand.file) == stand.owner:
        stand.file.unlink(missing_ok=True)
    os.close(descriptor)


def holder(file: Path) -> str:
    """Who holds a lock, or held it last, and what to do where only its file tells."""
    stand = stand_of(file)
    if found := _read(stand):
        return f"{found.partition(',')[0]} (as {stand} says; remove that file if the process is gone)"
    return _read(file) or "another process"


def this_process() -> str:
    """As a lock names it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def held_here(file: Path) -> bool:
    """Whether the last to lock the file was this process."""
    return _read(file) == this_process()


def stand_of(file: Path) -> Path:
    """The file that stands for a lock on another where there is no flock."""
    return file.with_name(f".{file.name}.held")


def _stand_in(file: Path, descriptor: int, error: OSError, *, wait: bool) -> bool:
    """Makes the file that stands for the lock, and says once that it does; False where another holds it."""
    stand = _Stand(stand_of(file), f"{this_process()}, started {_start_of(os.getpid())}")
    while not _taken(stand):
        if not wait:
            return False
        time.sleep(POLL_S)
    if not _stands:
        atexit.register(_release_all, os.getpid())
    _stands[descriptor] = stand
    if error.errno not in _told:
        _told.add(error.errno or 0)
        reason = f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}"
        print(
            f"note: {file.parent}: no locks on this file system (flock: {reason}); files named .*.held stand for them. A file system "
            "that can be mounted with locks (-o flock, local_lock) should be",
            file=sys.stderr,
        )
    return True


def _taken(stand: _Stand) -> bool:
    """Whether the file could be made, or taken over from a process that is gone."""
    try:
        descriptor = os.open(stand.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return not _is_alive(_read(stand.file), stand) and _taken_over(stand)
    with os.fdopen(descriptor, "w", encoding="utf-8") as made:
        made.write(stand.owner)
    return True


def _taken_over(stand: _Stand) -> bool:
    own = stand.file.with_name(f"{stand.file.name}-{os.getpid()}")
    own.write_text(stand.owner, encoding="utf-8")
    own.replace(stand.file)
    time.sleep(SETTLE_S)
    return _read(stand.file) == stand.owner


def _is_alive(owner: str, mine: _Stand) -> bool:
    """Whether the process that a file names may still run: of other machines nothing is known."""
    if owner == mine.owner:  # of this process, which holds it only while its descriptor is open
        return any(stand.file == mine.file and _is_open(number) for number, stand in _stands.items())
    who, _, started = owner.partition(", started ")
    number, _, host = who.removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not number.isdecimal():
        return True
    return started != "" and _start_of(int(number)) == started


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _start_of(number: int) -> str:
    """When a process began, in the kernel's ticks: its number may be another's by now. Empty where it is gone."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _release_all(owner: int) -> None:
    if os.getpid() != owner:  # a fork, whose parent holds them
        return
    for descriptor in [*_stands]:
        with contextlib.suppress(OSError):
            release(descriptor)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
