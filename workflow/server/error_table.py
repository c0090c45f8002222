"""The one place where errors become HTTP statuses, all in one shape.

Knows nothing of routes. What a client sent is shown back only in parts, and as text that can always be encoded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from workflow import errors
from workflow.errors import did_you_mean
from workflow.server.elsewhere import told_of_route

logger = logging.getLogger("workflow.server")


@dataclass(frozen=True)
class Status:
    """How a kind of error is told."""

    status: int
    type: str
    code: str


INVALID = Status(400, "invalid_request_error", "invalid_request")
TABLE: dict[type[BaseException], Status] = {
    errors.UnknownModel: Status(404, "not_found_error", "model_not_found"),
    errors.PromptTooLong: Status(413, "invalid_request_error", "prompt_too_long"),
    errors.QueueFull: Status(429, "rate_limit_error", "queue_full"),
    errors.RequestCancelled: Status(499, "client_closed_request", "cancelled"),
    errors.EngineFailed: Status(500, "server_error", "engine_failed"),
    errors.ModelUnavailable: Status(503, "unavailable_error", "model_unavailable"),
    errors.Draining: Status(503, "unavailable_error", "draining"),
    errors.RequestTimeout: Status(504, "timeout_error", "deadline_exceeded"),
    errors.RequestError: INVALID,
    errors.ConfigError: INVALID,
    errors.DataError: INVALID,
    errors.DamagedModel: Status(500, "server_error", "not_finite"),
    errors.ModelError: Status(400, "invalid_request_error", "model_unfit"),
}
FAULT = Status(500, "server_error", "internal_error")
HTTP = {
    401: Status(401, "authentication_error", "invalid_api_key"),
    404: Status(404, "not_found_error", "not_found"),
    405: Status(405, "invalid_request_error", "method_not_allowed"),
    408: Status(408, "timeout_error", "body_timeout"),
    413: Status(413, "invalid_request_error", "body_too_large"),
    415: Status(415, "invalid_request_error", "unsupported_media_type"),
    503: Status(503, "unavailable_error", "too_many_connections"),
}
RETRY_AFTER = "retry-after"


def status_of(error: BaseException) -> Status:
    """The row of an error's class or the nearest class above it."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), FAULT)


def error_body(status: Status, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The shape of all errors."""
    return {"error": {"message": message, "type": status.type, "param": param, "code": code or status.code}}


def encode(value: Any) -> bytes:
    """JSON in ASCII, which no half character can break."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_of(error: BaseException) -> tuple[Status, dict[str, Any]]:
    """What a client is told of an error; of a fault of ours, only that it happened."""
    status = status_of(error)
    if status is FAULT:
        return status, error_body(status, "an error in the server; its log says more")
    return status, error_body(
        status, str(error), param=getattr(error, "param", None), code=getattr(error, "code", None)
    )


def error_response(error: BaseException) -> Response:
    """The response to an error."""
    status, body = error_of(error)
    if status is FAULT:
        logger.error("unexpected error", exc_info=error)
    headers = {RETRY_AFTER: str(error.retry_after_s)} if isinstance(error, errors.RetryLater) else {}
    return Response(encode(body), status.status, headers, media_type="application/json")


def http_error_response(code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response for an error that HTTP itself knows."""
    status = HTTP.get(code, Status(code, "invalid_request_error" if code < 500 else "server_error", f"http_{code}"))
    return Response(encode(error_body(status, message)), code, dict(headers or {}), media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Makes the app answer every error in the one shape."""

    async def known(_: Request, error: Exception) -> Response:
        return error_response(error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return http_error_response(error.status_code, _told(request, error), error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = explain(error.errors(), error.body, _known_fields(request))
        return Response(encode(error_body(INVALID, message, param=param)), 400, media_type="application/json")

    app.add_exception_handler(errors.WorkflowError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _told(request: Request, error: HTTPException) -> str:
    """A sentence about an error that HTTP itself knows: of a route or a method that is not here, what to use instead."""
    path = request.url.path
    if error.status_code == 404:
        return told_of_route(path, request.app.openapi()["paths"])
    if error.status_code == 405 and (allowed := (error.headers or {}).get("Allow")):
        return f"{request.method} is no method of {path[:100]!a}; use {allowed}"
    return str(error.detail)


def explain(problems: Any, body: Any, known: Iterable[str] = ()) -> tuple[str, str | None]:
    """The most telling of pydantic's problems as a sentence, and the field at fault."""
    # A union tells of every member; the deepest knows best, and what is unknown to one member helps least.
    first = min(problems, key=lambda problem: (-len(problem["loc"]), problem["type"] == "extra_forbidden"))
    place = _place(first, body)
    param = ".".join(place)[:200] or None
    if first["type"] == "extra_forbidden":
        return f"{param}: unknown field{did_you_mean(place[-1], known)}", param
    message = first["msg"].removeprefix("Value error, ")
    if param is None:  # of fields that do not fit together; the sentence begins with the one at fault
        first_word = message.partition(" ")[0].rstrip(":")
        return message, first_word if first_word in known else None
    return f"{param}: {message}", param


def _place(problem: Any, body: Any) -> list[str]:
    """The path to the value at fault, without the names that pydantic gives to a union's members."""
    source, *parts = problem["loc"]
    if source != "body":
        return [str(part) for part in parts]
    found, value = [], body
    for number, part in enumerate(parts, start=1):
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            found.append(str(part))
            value = value[part]
        elif problem["type"] == "missing" and number == len(parts):
            found.append(str(part))
    return found


def _known_fields(request: Request) -> set[str]:
    field = getattr(request.scope.get("route"), "body_field", None)
    return _fields_of(field.field_info.annotation) if field is not None else set()


def _fields_of(annotation: Any) -> set[str]:
    """The field names of the models in an annotation, and of those within them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = (field.annotation for field in annotation.model_fields.values())
        return set(annotation.model_fields).union(*map(_fields_of, inner))
    return set().union(*map(_fields_of, get_args(annotation)))
