"""What an engine is to those who drive one: its interface, its limits, and how ranks that share weights drive it together.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from workflow.inference.requests import Job
from workflow.models.t5_weights import Gather


@dataclass(frozen=True)
class Together:
    """How ranks that hold shares of the weights (ZeRO-3) make the same steps; both are collective calls.

    `gather` makes weights whole, `agree` tells which of some kinds of work any rank has.
    """

    gather: Gather
    agree: Callable[[Sequence[bool]], Sequence[bool]]


@dataclass(frozen=True)
class EngineLimits:
    """`max_rows` answers decode at once; a step encodes at most `max_encode_tokens` tokens, so no prompt is longer.

    `max_cache_tokens` bounds the prompt and answer tokens whose keys and values the running answers may come to hold.
    """

    max_rows: int = 64
    max_encode_tokens: int = 16384
    max_cache_tokens: int = 1 << 17

    @classmethod
    def at_least(cls, *, rows: int, tokens: int) -> EngineLimits:
        """Limits for `rows` answers at once and prompts of `tokens` tokens, whatever memory that takes."""
        return cls(rows, max(tokens, cls.max_encode_tokens), 1 << 62)


class Cancelled(Exception):  # noqa: N818
    """The job was cancelled."""


class Engine(Protocol):
    """What everybody who generates or scores needs of an engine."""

    limits: EngineLimits
    can_generate: bool
    can_score: bool

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that can never run."""

    def cancel(self, job: Job) -> None:
        """Ends a job with `Cancelled`; its rows are free from the next step on. Jobs that are over are no error."""

    def step(self) -> bool:
        """Admits and encodes what fits, decodes one position of all answers; False where there was nothing to do."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
