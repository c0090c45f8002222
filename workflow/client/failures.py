"""What can go wrong between a client and a server, as one small tree.

Knows nothing of how requests are sent.

    ClientError
    |- NoAnswer            refused, broken off, or too late: whether the server did the work is not known
    `- ServiceError        the server answered with an error: message, status, type, param, code
       |- KeyRefused       401
       |- NotFound         404: no such run
       |- Busy             429, 503: the same may succeed later; raised once patience is at its end
       |- RequestRefused   any other 4xx: the request is wrong
       `- ServerFailed     any other 5xx
"""

from __future__ import annotations

import json
from typing import Any

from workflow.errors import WorkflowError


class ClientError(WorkflowError):
    """Base of everything that a client raises."""


class NoAnswer(ClientError):
    """The server was not reached, did not answer in time, or the connection broke."""


class ServiceError(ClientError):
    """The server's own words. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class KeyRefused(ServiceError):
    """No API key, or a wrong one."""


class NotFound(ServiceError):
    """No such run."""


class Busy(ServiceError):
    """The server has too much to do, is shutting down, or cannot load the run now."""


class RequestRefused(ServiceError):
    """The request is wrong."""


class ServerFailed(ServiceError):
    """The server could not answer a good request."""


BY_STATUS = {401: KeyRefused, 404: NotFound, 429: Busy, 503: Busy}
BY_TYPE = {
    "authentication_error": KeyRefused,
    "not_found_error": NotFound,
    "rate_limit_error": Busy,
    "unavailable_error": Busy,
    "invalid_request_error": RequestRefused,
}
SHOWN_CHARS = 200


def error_of(
    status: int, content: bytes, *, request_id: str | None = None, retry_after_s: float | None = None
) -> ServiceError:
    """The error in a response; of one that is none of our server's, its beginning."""
    text = content.decode("utf-8", "replace")
    try:
        told = json.loads(text)["error"]
        told = {**told, "message": str(told["message"])}
    except (ValueError, KeyError, TypeError):
        told = {"message": f"HTTP {status}: {' '.join(text.split())[:SHOWN_CHARS]}".rstrip(": ")}
    return _made(status, told, request_id=request_id, retry_after_s=retry_after_s)


def error_in_stream(told: dict[str, Any], request_id: str | None) -> ServiceError:
    """The error that ends a stream; its response had begun well."""
    return _made(200, told, request_id=request_id, retry_after_s=None)


def _made(status: int, told: dict[str, Any], *, request_id: str | None, retry_after_s: float | None) -> ServiceError:
    return _kind(status, told.get("type"))(
        str(told.get("message", "an error without a message")),
        status=status,
        type=told.get("type"),
        param=told.get("param"),
        code=told.get("code"),
        request_id=request_id,
        retry_after_s=retry_after_s,
    )


def _kind(status: int, type_: object) -> type[ServiceError]:
    if status < 400:
        return BY_TYPE.get(str(type_), ServerFailed)
    return BY_STATUS.get(status, RequestRefused if status < 500 else ServerFailed)
