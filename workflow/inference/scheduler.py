"""Which waiting requests are admitted at the next step: pure bookkeeping of places and tokens.

Knows nothing of tensors, texts or clocks. Generations are first in, first out among themselves, scores likewise; the
two kinds take turns at the step's token budget, so neither starves. An exclusive job (beam search) waits until all
that came before it are done, runs alone or with neighbours of its group, and holds back what came after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Kind = Literal["generate", "score", "exclusive"]


@dataclass(frozen=True)
class Demand(Generic[T]):
    """What a job asks for: `tokens` to encode, and decode `rows` (0 for a score) until it is finished.

    Exclusive jobs of the same `group` that stand next to each other start together.
    """

    item: T
    kind: Kind
    tokens: int
    rows: int = 0
    group: Hashable = None


@dataclass(frozen=True)
class Limits:
    """`max_rows` answers decode at once; a step encodes at most `max_tokens` source tokens."""

    max_rows: int
    max_tokens: int


class Scheduler(Generic[T]):
    """Waiting and running jobs. Raises ValueError for a demand that could never be met."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: dict[Kind, deque[tuple[int, Demand[T]]]] = {"generate": deque(), "score": deque()}
        self._exclusive: deque[tuple[int, Demand[T]]] = deque()
        self._running: dict[int, Demand[T]] = {}
        self._count = 0
        self._scores_first = False

    @property
    def num_waiting(self) -> int:
        """Jobs that are not admitted yet."""
        return len(self._exclusive) + sum(map(len, self._waiting.values()))

    @property
    def rows_in_use(self) -> int:
        """Decode rows of the running jobs."""
        return sum(demand.rows for demand in self._running.values())

    def add(self, demand: Demand[T]) -> None:
        """Queues a job."""
        if not 0 < demand.tokens <= self.limits.max_tokens or not 0 <= demand.rows <= self.limits.max_rows:
            raise ValueError(f"a job of {demand.tokens} tokens and {demand.rows} rows exceeds {self.limits}")
        self._count += 1
        queue = self._exclusive if demand.kind == "exclusive" else self._waiting[demand.kind]
        queue.append((self._count, demand))

    def drop(self, item: T) -> None:
        """Forgets a job, waiting or running; unknown ones are no error (it may have ended just now)."""
        for queue in (self._exclusive, *self._waiting.values()):
            for entry in queue:
                if entry[1].item is item:
                    queue.remove(entry)
                    return
        self.done(item)

    def done(self, item: T) -> None:
        """Frees a running job's rows."""
        for number, demand in self._running.items():
            if demand.item is item:
                del self._running[number]
                return

    def admit(self) -> list[Demand[T]]:
        """Chooses what starts now. Scores need no rows and are over after the step; the others run until `done`."""
        if any(demand.kind == "exclusive" for demand in self._running.values()):
            return []
        barrier = self._exclusive[0][0] if self._exclusive else None
        if barrier is not None and not self._running and not self._before(barrier):
            return self._start(self._exclusive_group())
        return self._start(self._choose(barrier))

    def _before(self, barrier: int) -> bool:
        return any(queue and queue[0][0] < barrier for queue in self._waiting.values())

    def _exclusive_group(self) -> list[tuple[int, Demand[T]]]:
        last = min((queue[0][0] for queue in self._waiting.values() if queue), default=self._count + 1)
        group, tokens = self._exclusive[0][1].group, self.limits.max_tokens
        chosen = []
        while self._exclusive and self._exclusive[0][0] < last:
            demand = self._exclusive[0][1]
            if demand.group != group or demand.tokens > tokens:
                break
            tokens -= demand.tokens
            chosen.append(self._exclusive.popleft())
        return chosen

    def _choose(self, barrier: int | None) -> list[tuple[int, Demand[T]]]:
        order: tuple[Kind, Kind] = ("score", "generate") if self._scores_first else ("generate", "score")
        self._scores_first = not self._scores_first
        tokens, rows = self.limits.max_tokens, self.limits.max_rows - self.rows_in_use
        chosen = []
        for kind in order:
            queue = self._waiting[kind]
            while queue and (barrier is None or queue[0][0] < barrier):
                demand = queue[0][1]
                if demand.tokens > tokens or demand.rows > rows:
                    break
                tokens, rows = tokens - demand.tokens, rows - demand.rows
                chosen.append(queue.popleft())
        return chosen

    def _start(self, chosen: Iterable[tuple[int, Demand[T]]]) -> list[Demand[T]]:
        chosen = list(chosen)
        self._running.update({number: demand for number, demand in chosen if demand.kind != "score"})
        return [demand for _, demand in chosen]
