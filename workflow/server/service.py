"""A loaded run as the server sees it: an engine, its texts, and what can be said of it.

Knows nothing of HTTP, nor of how a run is loaded (`loading`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workflow.inference.requests import Job
from workflow.server.texts import ModelTexts


class Limits(Protocol):
    """What an engine takes: rows decoded at once, and tokens encoded in one step, so that no prompt is longer."""

    @property
    def max_rows(self) -> int: ...  # noqa: D102

    @property
    def max_encode_tokens(self) -> int: ...  # noqa: D102


class Engine(Protocol):
    """The part of an inference engine that the server drives, always from one thread."""

    @property
    def can_generate(self) -> bool: ...  # noqa: D102

    @property
    def can_score(self) -> bool: ...  # noqa: D102

    @property
    def limits(self) -> Limits: ...  # noqa: D102

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""

    def submit(self, job: Job) -> None:
        """Takes a job. Raises ConfigError or ValueError for what can never run."""

    def cancel(self, job: Job) -> None:
        """Ends a job; its slots are free from the next step on."""

    def step(self) -> bool:
        """Admits, encodes, decodes, publishes; False when there was nothing to do."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Service:
    """One run, loaded. `release` gives memory back when nobody uses it any more."""

    name: str
    path: Path
    engine: Engine
    texts: ModelTexts
    default_new_tokens: int
    memory_bytes: int
    device: str
    precision: str
    release: Callable[[], None] = _nothing

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that the engine takes."""
        return self.engine.limits.max_encode_tokens


LoadService = Callable[[str, Path], Service]
"""Loads the run of a name from a checkpoint's folder. Raises ModelError and its kin with what to do."""
