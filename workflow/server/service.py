"""A loaded run as the server sees it: an engine, its texts, and what can be said of it.

Knows nothing of HTTP, nor of how a run is loaded (`loading`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workflow.inference.interface import Engine
from workflow.server.texts import ModelTexts


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
