"""uvicorn's HTTP protocol with what it lacks: time limits for a request's head and for clients that do not read, a limit
of connections, one shape of errors.

Knows nothing of the app.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from workflow.server.error_table import HTTP, INVALID, encode, error_body
from workflow.server.settings import BoundsSection


def protocol_class(bounds: BoundsSection) -> type[H11Protocol]:
    """The protocol with these bounds."""

    class BoundProtocol(PatientProtocol):
        """With the server's bounds."""

        head_timeout_s = bounds.body_timeout_s
        write_timeout_s = bounds.write_timeout_s
        max_connections = bounds.max_connections

    return BoundProtocol


LINGER_S = 1.0


class PatientProtocol(H11Protocol):
    """Waits for a request's head, and for a client that does not read, so long and no longer."""

    head_timeout_s = 15.0
    write_timeout_s = 60.0
    max_connections = 1024
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _refused = False
    _paused = False
    _num_resumed = 0

    def connection_made(self, transport: Any) -> None:
        """Refuses one connection too many."""
        super().connection_made(transport)
        self._watch_writing(None)
        if len(self.connections) > self.max_connections:
            self._refuse(503, "too many connections; try again in a moment")
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._stop_watching()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has not read what was written."""
        self._paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads."""
        self._paused = False
        self._num_resumed += 1
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """What still comes from a client that was refused is thrown away."""
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Waits for a head exactly while there is none."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP is answered in the shape of all errors."""
        self._refuse(400, msg)

    def _watch_writing(self, before: tuple[bool, int] | None) -> None:
        """Cuts off a client for which writing, or the last bytes before closing, has waited since the last look."""
        closing = self.transport.is_closing()
        now = (closing, self._num_resumed) if closing or self._paused else None
        if now is not None and now == before:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.write_timeout_s, self._watch_writing, now)

    def _watch_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_late)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"the request's head did not arrive within {self.head_timeout_s:g} s")

    def _refuse(self, code: int, message: str) -> None:
        """Answers without the app, and closes the connection: later, since closing it while a client still writes would
        take the answer from it."""
        self._stop_watching()
        self._refused = True
        body = encode(error_body(HTTP.get(code, INVALID), message))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=code, headers=headers, reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
