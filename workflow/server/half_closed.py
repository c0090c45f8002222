"""Clients that have closed their sending side: those that still read are answered, those that are gone are noticed.

TCP shows both as the same end of what is read. Only writing tells them apart, so what every response begins with is written
early: a client that is gone resets the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

BEGINNING = b"HTTP/1.1 "
"""h11 begins every response with it, whatever the client speaks."""
FIRST_LOOK_S = 0.001
LAST_LOOK_S = 0.25


class Begun:
    """A transport on which `BEGINNING` has been written: it is left out of what comes first."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._owed = len(BEGINNING)

    def write(self, data: bytes) -> None:
        """Writes what is not written yet."""
        self._transport.write(data[self._owed :])
        self._owed = max(0, self._owed - len(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def begun(transport: asyncio.Transport) -> asyncio.Transport:
    """Writes the beginning of the response, and returns the transport for the rest."""
    transport.write(BEGINNING)
    return cast("asyncio.Transport", Begun(transport))


def watch(transport: asyncio.Transport, is_over: Callable[[], bool]) -> None:
    """Aborts the connection when the client resets it, until the answer is over: nothing is read any more that would tell."""
    loop = asyncio.get_running_loop()

    def look(wait_s: float) -> None:
        if is_over() or transport.is_closing():
            return
        if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()
        else:
            loop.call_later(wait_s, look, min(2 * wait_s, LAST_LOOK_S))

    loop.call_later(FIRST_LOOK_S, look, FIRST_LOOK_S)
