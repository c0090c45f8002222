"""What stands around the app: request ids and log lines, API keys, and bodies that are limited in size and time.

Knows nothing of routes' meaning. Plain ASGI throughout: frameworks' helpers for it hide a client's going away.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflow.server.access import Keys
from workflow.server.desk import Note, ServerState
from workflow.server.error_table import error_response, http_error_response
from workflow.server.inflating import ENCODINGS, UnknownEncoding, inflate
from workflow.server.logs import log_request
from workflow.server.settings import BoundsSection

REQUEST_ID = "x-request-id"
GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
FREE = {"/health", "/ready", "/metrics", "/docs", "/openapi.json"}
LINGER_S = 2.0


class Envelope:
    """Gives each request an id, counts it while it is open, writes its line, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = scope["workflow.note"] = Note()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = scope["workflow.request_id"] = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        self.state.num_open += 1
        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            if not status:
                await error_response(error)(scope, receive, sent)
            else:
                raise
        finally:
            self.state.num_open -= 1
            self._finish(scope, note, status)

    def _finish(self, scope: Scope, note: Note, status: int) -> None:
        status = scope.get("workflow.status", 499 if scope.get("workflow.gone") or not status else status)
        route = getattr(scope.get("route"), "path", "unknown")
        self.state.metrics.responses.labels(route, status).inc()
        if note.model is not None:
            self.state.metrics.ended(note.model, status, note.age_s)
        log_request(scope, note, route, status, texts=self.state.settings.server.log_prompts)


class Access:
    """Asks for a key, but where nothing is given away."""

    def __init__(self, app: ASGIApp, keys: Keys, *, protect_all: bool) -> None:
        self.app = app
        self.keys = keys
        self.protect_all = protect_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers 401."""
        if scope["type"] != "http" or self._free(scope) or self.keys.accept(Headers(scope=scope).get("authorization")):
            await self.app(scope, receive, send)
            return
        response = http_error_response(
            401, "this server asks for a key: `Authorization: Bearer KEY`", {"www-authenticate": "Bearer"}
        )
        await refuse(response, scope, receive, send)

    def _free(self, scope: Scope) -> bool:
        if self.protect_all:
            return False
        reads = scope["method"] in ("GET", "HEAD")
        return reads and (scope["path"] in FREE or scope["path"] == "/")


class BodyGate:
    """Takes in a whole body before anything else sees the request: up to so many bytes, within so many seconds."""

    def __init__(self, app: ASGIApp, bounds: BoundsSection) -> None:
        self.app = app
        self.bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its body, or answers 408 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.bounds.body_timeout_s):
                body = await self._body(scope, receive)
        except TimeoutError:
            response = http_error_response(
                408, f"the body did not arrive within {self.bounds.body_timeout_s:g} s", {"connection": "close"}
            )
            await refuse(response, scope, receive, send)
            return
        if body is None:
            response = http_error_response(
                413, f"the body has more than {self.bounds.max_body_bytes} bytes", {"connection": "close"}
            )
            await refuse(response, scope, receive, send)
            return
        if isinstance(body, bytes):
            await self._pass(body, scope, receive, send)

    async def _pass(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its body inflated, or answers 400, 413 or 415."""
        most = self.bounds.max_body_bytes
        try:
            inflated = inflate(body, Headers(scope=scope).get("content-encoding", ""), most)
        except UnknownEncoding as error:
            await http_error_response(415, str(error), {"accept-encoding": ", ".join(ENCODINGS)})(scope, receive, send)
        except ValueError as error:
            await http_error_response(400, str(error))(scope, receive, send)
        else:
            if inflated is None:
                response = http_error_response(413, f"the body has more than {most} bytes once it is inflated")
                await response(scope, receive, send)
            else:
                await self.app(scope, _replayed(inflated, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | bool | None:
        """The body; None where it is too long; False where the client went away."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self.bounds.max_body_bytes):
            return None
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            parts += message.get("body", b"")
            if len(parts) > self.bounds.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before the body is read: what still comes is thrown away for a moment, else a client that is still
    writing would see a broken connection instead of the answer."""
    held: list[Message] = []

    async def kept(message: Message) -> None:
        if message["type"] == "http.response.body":
            held.append({**message, "body": b"", "more_body": False})
            message = {**message, "more_body": True}
        await send(message)

    await response(scope, receive, kept)
    await _drained(receive)
    for message in held:
        await send(message)


async def _drained(receive: Callable[[], Awaitable[Any]]) -> None:
    until = time.monotonic() + LINGER_S
    try:
        async with asyncio.timeout(LINGER_S):
            while time.monotonic() < until:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
