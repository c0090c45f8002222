"""API keys, several of them, compared in constant time, and read again when their file changes.

Keys are kept as digests.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from workflow.errors import ConfigError

logger = logging.getLogger("workflow.server")

BEARER = "bearer"

Stamp = tuple[int, int, int, int]


class Keys:
    """What a server accepts; without a file, everything. Raises ConfigError for a file that holds no key at the start."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamp = _stamp(file) if file is not None else None
        self._digests = _digests(file) if file is not None else []
        self._told: Stamp | None = self._stamp
        """Of the file that could not be read, and whose fault is in the log."""

    def accept(self, header: str | None) -> bool:
        """Whether an `Authorization` header holds one of the keys. Takes as long whichever key it is, or none."""
        if self._file is None:
            return True
        self._look(self._file)
        scheme, _, key = (header or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == BEARER and any(matches)

    def _look(self, file: Path) -> None:
        """Reads a file that has changed; one that cannot be read, or holds no key, changes nothing, and is tried again.

        A file that is written in place may be read half: write another, and rename it over this one.
        """
        stamp = _stamp(file)
        if stamp == self._stamp:
            return
        try:
            self._digests = _digests(file)
        except ConfigError as error:
            if stamp != self._told:
                logger.error("the keys stay as they were: %s", error)  # the sentence says it all
            self._told = stamp
        else:
            self._stamp = self._told = stamp
            logger.info("%d keys read from %s", len(self._digests), file)


def _stamp(file: Path) -> Stamp | None:
    """What changes with a file's content, or with the file that a link leads to; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns  # the last one for chmod and chown


def _digests(file: Path) -> list[bytes]:
    """Of the keys of a file, one a line; empty lines and lines with # are none. Raises ConfigError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api_key_file {file}: cannot be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api_key_file {file}: holds no key; write one a line")
    return [_digest(key) for key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
