"""uvicorn's HTTP protocol with what it lacks: time limits for a request's head and for clients that do not read, a limit
of connections, one shape of errors, and an answer at the door for requests whose run's queue is full.

Knows nothing of the app, nor of why the door turns somebody away.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from workflow.server.door import Door
from workflow.server.error_table import HTTP, INVALID, encode, error_body
from workflow.server.half_closed import begun, watch
from workflow.server.heads import Plain, Reading, read_plain
from workflow.server.settings import BoundsSection


def protocol_class(bounds: BoundsSection, at_door: Door) -> type[H11Protocol]:
    """The protocol with these bounds and this door."""

    class BoundProtocol(PatientProtocol):
        """With the server's bounds."""

        head_timeout_s = bounds.body_timeout_s
        write_timeout_s = bounds.write_timeout_s
        max_connections = bounds.max_connections
        door = at_door

    return BoundProtocol


LINGER_S = 1.0
HOLD_S = 0.05
"""How long the door waits for a body that comes after its head, as most clients send them."""


class PatientProtocol(H11Protocol):
    """Waits for a request's head, and for a client that does not read, so long and no longer."""

    head_timeout_s = 15.0
    write_timeout_s = 60.0
    max_connections = 1024
    door: Door
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _refused = False
    _paused = False
    _half_closed = False
    _num_resumed = 0
    _held = b""
    _hold_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuses one connection too many, where no other is idle and can be closed in its place."""
        super().connection_made(transport)
        self._watch_writing(None)
        if len(self.connections) > self.max_connections and not self._close_an_idle_one():
            self._refuse(503, "too many connections; try again in a moment")
        else:
            self._watch_head()

    def _close_an_idle_one(self) -> bool:
        """Closes the connection that has waited longest for a next request."""
        waiting = [
            (other.timeout_keep_alive_task.when(), other.timeout_keep_alive_handler)
            for other in self.connections
            if isinstance(other, PatientProtocol)
            and other.timeout_keep_alive_task is not None
            and other._between_requests
        ]
        if waiting:
            min(waiting, key=lambda entry: entry[0])[1]()
        return bool(waiting)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's says None
        """Keeps the connection of a client that has sent a whole request until it is answered."""
        if self._refused or self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        if not self._half_closed:
            self._half_closed, cycle = True, self.cycle
            if not cycle.response_started:
                cycle.transport = begun(self.transport)
            watch(self.transport, lambda: cycle.response_complete)
        return True

    def on_response_complete(self) -> None:
        """Closes the connection of a client that sends nothing more."""
        super().on_response_complete()
        if self._half_closed and self._between_requests:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._stop_watching()
        for timer in (self._write_timer, self._hold_timer):
            if timer is not None:
                timer.cancel()
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
        if not self._refused and (data := self._past_door(data)):
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

    def _past_door(self, data: bytes) -> bytes:
        """What goes on to the app: everything, or nothing while the door answers or waits for the rest of a body."""
        if not (self._held or (self.door.crowded and self._between_requests)):
            return data
        data, self._held = self._held + data, b""
        found = read_plain(data)
        if found is Reading.INCOMPLETE:
            self._hold(data)
            return b""
        self._end_hold()
        answer = self.door.answer(found, self.server_state.default_headers) if isinstance(found, Plain) else None
        if answer is None:
            return data
        self._stop_watching()
        self._unset_keepalive_if_required()
        self.transport.write(answer)
        self.server_state.total_requests += 1
        if isinstance(found, Plain) and found.closes:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        return b""

    @property
    def _between_requests(self) -> bool:
        """Whether what comes now is the beginning of a request, and its answer can be written at once."""
        idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        return idle and not self._paused and not self.transport.is_closing()

    def _hold(self, data: bytes) -> None:
        self._held = data
        self._unset_keepalive_if_required()
        if self._hold_timer is None:
            self._hold_timer = self.loop.call_later(HOLD_S, self._let_in)

    def _end_hold(self) -> None:
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None

    def _let_in(self) -> None:
        """The body takes longer: the common way has the patience for it."""
        self._hold_timer = None
        data, self._held = self._held, b""
        if not self.transport.is_closing():
            super().data_received(data)

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
