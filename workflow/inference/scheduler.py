"""Which waiting requests are admitted at the next step: pure bookkeeping of places and tokens.

Knows nothing of tensors, texts or clocks. Generations are first in, first out among themselves, scores likewise; the
two kinds take turns at the step's token budget, so neither starves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Kind = Literal["generate", "score"]


@dataclass(frozen=True)
class Demand(Generic[T]):
    """What a job asks for: `tokens` to encode, and decode `rows` (0 for a score) until it is finished, which come to hold
    the keys and values of up to `held` tokens.
    """

    item: T
    kind: Kind
    tokens: int
    rows: int = 0
    held: int = 0


@dataclass(frozen=True)
class Limits:
    """`max_rows` answers decode at once, holding at most `max_held` tokens; a step encodes at most `max_tokens`."""

    max_rows: int
    max_tokens: int
    max_held: int = 1 << 62


class Scheduler(Generic[T]):
    """Waiting and running jobs. Raises ValueError for a demand that could never be met."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: dict[Kind, OrderedDict[int, Demand[T]]] = {"generate": OrderedDict(), "score": OrderedDict()}
        self._running: dict[int, Demand[T]] = {}
        self._numbers: dict[int, int] = {}
        """The item's identity -> its place in the order of arrival, while it waits or runs."""
        self._count = 0
        self._scores_first = False

    @property
    def num_waiting(self) -> int:
        """Jobs that are not admitted yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def rows_in_use(self) -> int:
        """Decode rows of the running jobs."""
        return sum(demand.rows for demand in self._running.values())

    def add(self, demand: Demand[T]) -> None:
        """Queues a job."""
        limits = self.limits
        fits = 0 < demand.tokens <= limits.max_tokens and 0 <= demand.rows <= limits.max_rows
        if not fits or demand.held > limits.max_held:
            raise ValueError(
                f"a job of {demand.tokens} tokens to read, {demand.rows} rows and {demand.held} tokens to hold exceeds {limits}"
            )
        self._count += 1
        self._numbers[id(demand.item)] = self._count
        self._waiting[demand.kind][self._count] = demand

    def drop(self, item: T) -> None:
        """Forgets a job, waiting or running; unknown ones are no error (it may have ended just now)."""
        number = self._numbers.pop(id(item), None)
        if number is not None:
            for found in (self._running, *self._waiting.values()):
                found.pop(number, None)

    def admit(self) -> list[Demand[T]]:
        """Chooses what starts now. Scores need no rows and are over after the step; the others run until `drop`."""
        order: tuple[Kind, Kind] = ("score", "generate") if self._scores_first else ("generate", "score")
        self._scores_first = not self._scores_first
        tokens, rows = self.limits.max_tokens, self.limits.max_rows - self.rows_in_use
        held = self.limits.max_held - sum(demand.held for demand in self._running.values())
        chosen = []
        for kind in order:
            for number, demand in self._waiting[kind].items():
                if demand.tokens > tokens or demand.rows > rows or demand.held > held:
                    break
                tokens, rows, held = tokens - demand.tokens, rows - demand.rows, held - demand.held
                chosen.append(number)
        return self._start(chosen)

    def _start(self, chosen: Sequence[int]) -> list[Demand[T]]:
        found = []
        for number in chosen:
            (demand,) = [queue.pop(number) for queue in self._waiting.values() if number in queue]
            found.append(demand)
            if demand.kind == "score":
                del self._numbers[id(demand.item)]
            else:
                self._running[number] = demand
        return found
