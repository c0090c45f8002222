"""Routes whose bodies are JSON by the standard, told so by their content type, and not too many things, before anything
looks into them.

Knows nothing of the bodies' fields (`sizes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from workflow.errors import RequestError
from workflow.server.desk import state_of
from workflow.server.sizes import check_sizes
from workflow.server.strict_json import parse

JSON_TYPE = "application/json"
LARGE_BYTES = 65_536
"""Bodies above this are parsed away from the event loop."""


class StrictRequest(Request):
    """A request whose JSON has been parsed already."""

    value: Any = None

    async def json(self) -> Any:
        """The parsed body."""
        return self.value


class StrictRoute(APIRoute):
    """Parses bodies strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind a strict parser."""
        inner = super().get_route_handler()
        has_body = self.body_field is not None

        async def handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if has_body:
                strict.value = await _parsed(strict)
                check_sizes(strict.value, state_of(request).settings)
            return await inner(strict)

        return handle


def media_type(header: str) -> str:
    """What a `Content-Type` says, without its parameters."""
    return header.partition(";")[0].strip().lower()


async def _parsed(request: Request) -> Any:
    if media_type(request.headers.get("content-type", "")) != JSON_TYPE:
        raise HTTPException(415, "the body must be JSON, with `Content-Type: application/json`")
    raw = await request.body()
    if not raw:
        raise RequestError("the body is empty")
    try:
        return await asyncio.to_thread(parse, raw) if len(raw) > LARGE_BYTES else parse(raw)
    except ValueError as error:
        raise RequestError(str(error), code="invalid_json") from None
