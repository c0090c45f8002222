"""Signs of life between ranks: who has fallen silent, who is behind, and who was asked to stop.

A thread of each rank writes a beat to the store through which the ranks met, and reads those of the others. So a rank that
is killed, stopped or cut off has a name even where a collective call only knows that it waited too long. A beat also
says how far its rank is, and carries a signal from the rank that got it to the others.

Knows nothing of models or training.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from workflow.errors import RankLost, Stopped
from workflow.runtime import RANK_LOST, Ranks, note_for_launcher
from workflow.watch import signals

INTERVAL_S = 1.0
SILENT_BEATS = 3
"""Missed beats after which a rank that a collective call gave up on counts as silent."""
STORE_GRACE_S = 10.0
"""How long the main thread has to end by itself where the store, and so the rank that holds it, is gone."""
LOST_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "socket")


@dataclass(frozen=True)
class Beat:
    """What a rank last said: a number that grows, how far it is, the signal that it got (0: none), whether it has left."""

    count: int = 0
    mark: int = 0
    signal: int = 0
    left: bool = False

    def encoded(self) -> str:
        """For the store."""
        return f"{self.count} {self.mark} {self.signal} {int(self.left)}"

    @classmethod
    def decoded(cls, text: str) -> Beat:
        """The other way round."""
        count, mark, number, left = map(int, text.split())
        return cls(count, mark, number, bool(left))


class Heartbeat:
    """This rank's thread. `store` is a connection of its own to the ranks' store."""

    def __init__(self, ranks: Ranks, store: Any, *, timeout: timedelta, interval_s: float = INTERVAL_S) -> None:
        self.ranks, self.store, self.timeout_s = ranks, store, timeout.total_seconds()
        self.interval_s = interval_s * max(1.0, ranks.world_size / 32)  # every rank reads all: not too often
        self.mark = 0
        self._count = 0
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self._last: dict[int, tuple[Beat, float]] = {}
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begins to beat."""
        signals.publish_by(lambda number: self._say(signal=number))
        self._thread.start()

    def leave(self) -> None:
        """The last beat: from now on nobody waits for this rank."""
        self._ends.set()
        signals.publish_by(None)
        with contextlib.suppress(RuntimeError):
            self._say(signal=signals.asked(), left=True)

    def _run(self) -> None:
        try:
            while not self._ends.is_set():
                self._say(signal=signals.asked())
                self._listen()
                self._refuse_silence()
                self._ends.wait(self.interval_s)
        except RuntimeError:
            if not self._ends.wait(STORE_GRACE_S):
                self._end(RankLost("the ranks' store does not answer: the rank or launcher that holds it is gone"))

    def _say(self, *, signal: int, left: bool = False) -> None:
        with self._lock:
            self._count += 1
            self.store.set(f"beat/{self.ranks.rank}", Beat(self._count, self.mark, signal, left).encoded())

    def _listen(self) -> None:
        now = time.monotonic()
        for rank in self._others:
            with self._lock:
                key = f"beat/{rank}"
                beat = Beat.decoded(self.store.get(key).decode()) if self.store.check([key]) else Beat()
            if rank not in self._last or self._last[rank][0].count != beat.count:
                self._last[rank] = (beat, now)
            if beat.signal:
                signals.tell(beat.signal)

    def _refuse_silence(self) -> None:
        silent = self._silent(self.timeout_s)
        if silent:
            self._end(RankLost(f"{_named(silent)} silent for {self.timeout_s:.0f} s (--rank_timeout_s)"))

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [rank for rank, (beat, heard) in self._last.items() if now - heard > seconds and not beat.left]

    def _end(self, error: RankLost) -> None:
        """The main thread may wait in a collective call that never ends."""
        os.write(2, f"error: rank {self.ranks.rank}: {error}\n".encode())
        note_for_launcher(RANK_LOST)
        os._exit(error.exit_code)

    def explain(self, error: BaseException) -> RankLost | Stopped:
        """What a failed collective call was about, as far as the others' beats tell; takes some seconds."""
        time.sleep((SILENT_BEATS + 1) * self.interval_s)
        if number := signals.asked():
            return Stopped(number)
        silent = self._silent(SILENT_BEATS * self.interval_s)
        cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if silent:
            return RankLost(f"{_named(silent)} silent: killed, stopped, or on a machine that is gone ({cause})")
        left = [rank for rank, (beat, _) in self._last.items() if beat.left]
        if left:
            return RankLost(f"{_named(left)} gone after an error of its own ({cause})")
        marks = {rank: beat.mark for rank, (beat, _) in self._last.items()}
        behind = [rank for rank, mark in marks.items() if mark < self.mark]
        if behind:
            return RankLost(f"{_named(behind)} behind this rank, perhaps hanging ({cause})")
        return RankLost(f"the ranks no longer answer each other, though all are alive ({cause})")


def _named(ranks: list[int]) -> str:
    listed = ", ".join(map(str, sorted(ranks)))
    return f"rank {listed} is" if len(ranks) == 1 else f"ranks {listed} are"


_beating: Heartbeat | None = None


@contextlib.contextmanager
def beating(ranks: Ranks, *, timeout: timedelta) -> Iterator[None]:
    """Inside the block this rank beats, and a collective call that fails because of another rank says which one.

    Raises RankLost, or Stopped where the other rank ended because it was asked to.
    """
    global _beating
    if ranks.world_size == 1:
        yield
        return
    from torch.distributed.distributed_c10d import _get_default_store

    store: Any = _get_default_store()
    store = store.clone()  # a connection of its own: the main thread may wait on the other one
    store.set_timeout(timedelta(seconds=STORE_GRACE_S))
    _beating = Heartbeat(ranks, store, timeout=timeout)
    _beating.start()
    try:
        yield
    except RuntimeError as error:
        if not _is_of_ranks(error):
            raise
        raise _beating.explain(error) from error
    finally:
        _beating.leave()
        _beating = None


def _is_of_ranks(error: RuntimeError) -> bool:
    """Whether a collective call failed, by its type or, for gloo's plain RuntimeErrors, its text."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in LOST_WORDS)


def reached(mark: int) -> None:
    """This rank has come so far; marks only grow."""
    if _beating is not None:
        _beating.mark = mark
