"""By what a run is the same run in another place: its name, its data, and the settings that are not about a place.

Pure functions; knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from workflow.config.affects import names_that_affect

OF_PLACE = names_that_affect("place", "command")
"""Settings about where and how a run is held, by flat name: they change no number."""


def placeless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings (flat name -> value) that are not about the run's place."""
    return {name: value for name, value in settings.items() if name not in OF_PLACE}


def hash_of(value: Any) -> str:
    """64 hex digits, equal for equal JSON values whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(name: str, data_hash: str | None, settings: Mapping[str, Any], *, part: str | None = None) -> str:
    """A run's identity: of its name, the hash of its data and its settings; `part` is a slice of its eval rows."""
    return hash_of([name, data_hash, placeless(settings), part])
