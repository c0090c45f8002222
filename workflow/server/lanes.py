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

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Work with the run's texts, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.tokenizing, work)

    def retire(self) -> None:
        """Ends the threads once nobody uses them."""
        self.retired = True
        if not self.users:
            self.worker.stop()
            self.tokenizing.shutdown(wait=False)


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

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return self.live is not None and not self.live.users and not self.queue.num_requests and self.loading is None
