"""How many connections the limit of open files allows, and what is said when it is reached."""

from __future__ import annotations

import asyncio
import errno
import resource
import time
from typing import Any

from workflow.server.error_table import logger

RESERVED = 256
"""Open files for everything but connections: weights, tokenizers, the log."""
BACKLOG = 2048
NO_MORE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
TELL_S = 60.0


def raise_open_file_limit() -> None:
    """Raises the soft limit to the hard one, as each process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # some systems name a hard limit that they do not give
        logger.debug("the limit of open files stays as it is")


def open_file_limit() -> int:
    """The soft limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def max_connections(wanted: int, open_files: int) -> int:
    """How many of the wanted connections leave room for other files."""
    return max(1, min(wanted, open_files - min(RESERVED, open_files // 2)))


def backlog(connections: int, open_files: int) -> int:
    """How many connections are taken at once: they are counted only after that, and must not use up what is reserved."""
    return max(16, min(BACKLOG, (open_files - connections) // 2))


class QuietAccept:
    """Says once a minute that connections cannot be taken; asyncio would write a traceback for each, a thousand a second."""

    def __init__(self) -> None:
        self._told_s = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Hears what nobody caught."""
        error = context.get("exception")
        if not (
            isinstance(error, OSError) and error.errno in NO_MORE and "socket.accept" in context.get("message", "")
        ):
            loop.default_exception_handler(context)
        elif time.monotonic() > self._told_s + TELL_S:
            self._told_s = time.monotonic()
            logger.error(
                "no connection can be taken for now: %s; raise `ulimit -n`, or lower --max_connections", error.strerror
            )
