"""A run's lane through the server: its queue, and what is loaded of it.

Knows nothing of HTTP or of how a run is loaded. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from workflow.server.admission import Queue
from workflow.server.checkpoints import Checkpoint
from workflow.server.service import Service
from workflow.server.worker import Worker

T = TypeVar("T")


@dataclass(eq=False)
class Live:
    """A loaded run with its engine's thread, and one thread for its tokenizer, which two must not share."""

    service: Service
    checkpoint: Checkpoint
    worker: Worker
    tokenizing: ThreadPoolExecutor
    users: int = 0
    retired: bool = False
    loaded_s: float = field(default_factory=time.monotonic)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Work with the run's texts, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.tokenizing, work)

    def leave(self) -> None:
        """One user less."""
        self.users -= 1
        if self.retired:
            self.retire()

    def retire(self) -> None:
        """Ends the threads once nobody uses them."""
        self.retired = True
        if not self.users:
            self.worker.stop()
            self.tokenizing.shutdown(wait=False)


@dataclass(eq=False)
class Seat:
    """A request that waits for a run to be loaded, and what it gets: a user of it from the moment that it is there."""

    live: Live | None = None


@dataclass(eq=False)
class Lane:
    """A run's queue, which is there before the run is loaded, and what is loaded of it."""

    name: str
    queue: Queue
    live: Live | None = None
    loading: asyncio.Task[Live] | None = None
    failure: tuple[Checkpoint, float, Exception] | None = None
    coming_bytes: int = 0
    """Of the weights that are being loaded."""
    used_s: float = field(default_factory=time.monotonic)
    giving_way: bool = False
    """Whether another run waits for this one's memory: new requests wait for the next turn."""
    seats: list[Seat] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether a request can use what is loaded at once."""
        return self.live is not None and not self.giving_way

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        if self.live is None or self.live.users:
            return False
        return self.giving_way or (not self.queue.num_requests and self.loading is None)

    def seat(self, live: Live) -> None:
        """Makes all who wait users of what is loaded."""
        live.users += len(self.seats)
        for seat in self.seats:
            seat.live = live
        self.seats.clear()
