"""API keys, several of them, compared in constant time.

Knows nothing of HTTP but the header's form. Keys are kept as digests.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from workflow.errors import ConfigError

BEARER = "bearer"


class Keys:
    """What a server accepts; without keys, everything."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def accept(self, header: str | None) -> bool:
        """Whether an `Authorization` header holds one of the keys. Takes as long whichever key it is, or none."""
        if not self._digests:
            return True
        scheme, _, key = (header or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == BEARER and any(matches)


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, one a line; empty lines and lines with # are none. Raises ConfigError."""
    if file is None:
        return Keys([])
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api_key_file {file}: cannot be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api_key_file {file}: holds no key; write one a line")
    return Keys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
