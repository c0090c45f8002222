"""Places in a run's queue: so many requests and so many tokens, whether running or waiting.

Knows nothing of engines; lives on the event loop. A place is taken before a request is tokenized, so that a burst
cannot slip in between the look and the leap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from workflow.errors import Draining, QueueFull, RequestError

LONGEST_WAIT_S = 30
WEIGHT = 0.2


class Queue:
    """Counts what is accepted and not yet answered."""

    def __init__(self, *, max_requests: int, max_tokens: int, draining: Callable[[], bool]) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.num_requests = 0
        self.num_tokens = 0
        self._draining = draining
        self._mean_s = 1.0

    def reserve(self, tokens: int) -> Place:
        """A place, for an estimate of its tokens, which may be too high. Raises Draining or QueueFull."""
        tokens = min(tokens, self.max_tokens)
        if self._draining():
            raise Draining("the server is shutting down; try again elsewhere, or in a moment")
        if (refusal := self.refusal(tokens)) is not None:
            raise refusal
        self.num_requests += 1
        self.num_tokens += tokens
        return Place(self, tokens)

    def full(self, tokens: int = 1) -> bool:
        """Whether there is no room for a request of so many tokens; by default, for any request."""
        return bool(self.num_requests) and (
            self.num_requests >= self.max_requests or self.num_tokens + tokens > self.max_tokens
        )

    def refusal(self, tokens: int = 1) -> QueueFull | None:
        """What a request of so many tokens is told; None where there is room. By default, what every request is told."""
        if not self.full(tokens):
            return None
        return QueueFull(
            f"{self.num_requests} requests with {self.num_tokens} tokens are running and waiting; try again in a moment",
            retry_after_s=self.retry_after_s,
        )

    @property
    def retry_after_s(self) -> int:
        """About how long a request takes now."""
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._mean_s)))

    def note_duration(self, seconds: float) -> None:
        """Keeps a moving mean of how long requests take."""
        self._mean_s += WEIGHT * (seconds - self._mean_s)


class Place:
    """One request's place, given back once: when everything of it has left the engine, however it ended."""

    def __init__(self, queue: Queue, tokens: int) -> None:
        self._queue = queue
        self._tokens = tokens
        self._since = time.monotonic()
        self._held = True

    def correct(self, tokens: int) -> None:
        """Puts the number of tokens in the place of the estimate. Raises QueueFull where that is too much now, and
        RequestError where it always is."""
        if tokens > self._queue.max_tokens:
            raise RequestError(
                f"the request has {tokens} tokens to read and to generate, more than this server's "
                f"{self._queue.max_tokens} (--max_queued_tokens)",
                code="too_many_tokens",
            )
        others = self._queue.num_tokens - self._tokens
        if self._queue.num_requests > 1 and others + tokens > self._queue.max_tokens:
            raise QueueFull(
                f"{others} tokens are running and waiting, and {tokens} more are asked; try again in a moment",
                retry_after_s=self._queue.retry_after_s,
            )
        self._queue.num_tokens = others + tokens
        self._tokens = tokens

    def release(self) -> None:
        """Gives the place back; again does nothing."""
        if self._held:
            self._held = False
            self._queue.num_requests -= 1
            self._queue.num_tokens -= self._tokens
            self._queue.note_duration(time.monotonic() - self._since)
