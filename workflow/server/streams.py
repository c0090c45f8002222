"""Server-sent events whose source ends as soon as the client goes away or the deadline passes.

Knows nothing of the events' content. An error after the first byte becomes a last event in the shape of all errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workflow.errors import Draining, RequestCancelled, WorkflowError
from workflow.server.calls import Call, deadline, while_wanted
from workflow.server.desk import ServerState, answered, state_of
from workflow.server.error_table import FAULT, encode, error_of, logger
from workflow.server.generating import Prepared, Prompts, streamed

DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(Response):
    """Sends each object as an event. `stack` holds what must be ended with the stream, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[BaseModel, None], stack: AsyncExitStack, state: ServerState, *, last: bytes = b""
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._stack = stack
        self._state = state
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything, and closes the stack."""
        async with self._stack:
            try:
                await while_wanted(receive, self._state.given_up, self._send_all(scope, send))
            except RequestCancelled:
                scope["workflow.gone"] = True
            except Draining as error:
                await _piece(send, self._told(scope, error), more=False)

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = self._last
        try:
            async with deadline(self._state.settings.queue.timeout_s), aclosing(self._events) as events:
                async for event in events:
                    await _piece(send, _as_event(event.model_dump_json()))
        except Exception as error:
            last = self._told(scope, error)
        await _piece(send, last, more=False)

    def _told(self, scope: Scope, error: Exception) -> bytes:
        status, body = error_of(error)
        if status is FAULT or not isinstance(error, WorkflowError):
            logger.error("a stream failed", exc_info=error)
        scope["workflow.status"] = status.status
        return _as_event(encode(body).decode("ascii"))


async def started(
    request: Request,
    wanted: Prompts,
    events: Callable[[Prepared, Call], AsyncGenerator[BaseModel, None]],
    *,
    last: bytes = b"",
) -> EventStream:
    """A stream of what is wanted, once nothing can refuse it any more. Raises what refuses it."""
    stack = AsyncExitStack()
    try:
        ready, call = await answered(request, stack.enter_async_context(streamed(request, wanted)))
    except BaseException:
        await stack.aclose()  # the place may be taken already
        raise
    return EventStream(events(ready, call), stack, state_of(request), last=last)


def _as_event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


async def _piece(send: Send, body: bytes, *, more: bool = True) -> None:
    message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": more}
    await send(message)
