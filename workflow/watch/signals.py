"""Signals that ask a run to stop: heard at once, obeyed where it can stop.

SIGTERM, SIGUSR1 and SIGINT are heard by a thread of their own (Python writes a signal's number into a socket before
anything else happens), because the main thread may stand in a collective call for long, and because nothing is torn
that way: no exception comes up in the middle of a file. The main thread asks `asked()` where it can stop.

Signals belong to the process, so this module's state does too. Where nobody called `handled`, as in the server, no signal
is handled here and `asked()` is 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from workflow.errors import Stopped
from workflow.runtime import note_for_launcher, own_ranks

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SIGNALLED = 128
"""What shells add to a signal's number to make an exit code."""
ECHO_S = 5.0
"""A repetition within this time is the same signal: a scheduler tells every process, and shells and launchers pass it on.

Only Ctrl-C outside ranks is pressed twice, by somebody who means it.
"""

Publish = Callable[[int], None]


class Watch:
    """Hears signals. The first of a kind is obeyed at once, or kept (`waits`); the second of its kind ends the process.

    With `relays` signals are only collected, for a launcher to `take`. Echoes are left out in both cases.
    """

    def __init__(self, *, relays: bool, is_rank: bool) -> None:
        self.relays, self.is_rank = relays, is_rank
        self.asked = 0
        self.waits = False
        self.publish: Publish | None = None
        self._heard: dict[int, float] = {}
        self._taken: list[int] = []
        self._lock = threading.Lock()

    def hear(self, number: int) -> None:
        """A signal has come."""
        with self._lock:
            self.asked = self.asked or number
            if not self.waits and not self.relays:
                self._end(Stopped(number).exit_code, f"notice: {Stopped(number)}")
            is_second = number in self._heard
            if is_second and self._is_echo(number):
                return
            self._heard.setdefault(number, time.monotonic())
            if self.relays:
                self._taken.append(number)
            elif is_second:
                self._end(SIGNALLED + number, f"stopped at once by a second {signal.Signals(number).name}")

    def _is_echo(self, number: int) -> bool:
        if number == signal.SIGINT and (self.relays or not self.is_rank):
            return False
        return time.monotonic() - self._heard[number] < ECHO_S

    def told(self, number: int) -> None:
        """Another rank was asked to stop."""
        with self._lock:
            self.asked = self.asked or number

    def take(self) -> list[int]:
        """The signals heard since the last call."""
        with self._lock:
            found, self._taken = self._taken, []
        return found

    def _end(self, code: int, why: str) -> None:
        """Ends the process from this thread: the main one may be anywhere. Files have their final names or none."""
        with contextlib.suppress(Exception):
            if self.publish is not None:
                self.publish(self.asked)
            ranks = own_ranks()
            if ranks is None or ranks.is_first:
                os.write(2, f"{why}\n".encode())
            note_for_launcher(str(code))
            sys.stdout.flush()
        os._exit(code)


_watch: Watch | None = None


@contextlib.contextmanager
def handled(*, relays: bool = False) -> Iterator[Watch]:
    """Inside the block, which must be the main thread's, signals are heard; afterwards they do what they did before.

    After a stop that all have agreed on, or a block that ended although one had come, they do nothing any more: an echo
    may reach a process that is just ending.
    """
    global _watch
    watch = Watch(relays=relays, is_rank=own_ranks() is not None)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_listen, args=(reader, watch), name="signals", daemon=True)
    before = {number: signal.signal(number, _nothing) for number in STOPPING}
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    outer, _watch = _watch, watch
    thread.start()
    try:
        yield watch
        if watch.asked:
            before = dict.fromkeys(STOPPING, signal.SIG_IGN)
    except Stopped:
        before = dict.fromkeys(STOPPING, signal.SIG_IGN)
        raise
    finally:
        _watch = outer
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            writer.send(b"\0")
        thread.join(timeout=5)
        reader.close()
        writer.close()


def _nothing(number: int, frame: object) -> None:
    """Only there so that the signal does not do what it does by default."""


def _listen(reader: socket.socket, watch: Watch) -> None:
    while numbers := reader.recv(64):
        for number in numbers:
            if number == 0:
                return
            if number in STOPPING:
                watch.hear(number)


def wait_for_a_boundary() -> None:
    """From now on the first signal ends nothing: who runs asks `asked()` and stops where it is safe."""
    if _watch is not None:
        _watch.waits = True


def asked() -> int:
    """The signal by which this process, or another rank, was asked to stop; 0 where none was."""
    return _watch.asked if _watch is not None else 0


def tell(number: int) -> None:
    """Another rank was asked to stop by this signal."""
    if _watch is not None:
        _watch.told(number)


def publish_by(publish: Publish | None) -> None:
    """What tells the other ranks before this one ends at once."""
    if _watch is not None:
        _watch.publish = publish
