"""Who need not come in: requests for a run whose queue is full are told so before routing, schemas and tasks.

Knows nothing of connections. A refusal on the common way costs a millisecond of the interpreter that the engine's thread
waits for too, so ten times as many requests as a server can answer took a quarter of its engine away. Only what
could get nothing but 429 is answered here: whoever has no key, names no run, or sends what is no JSON goes the common
way. Fields are not looked at; wrong ones are told of once there is room.
"""

from __future__ import annotations

import uuid
from collections.abc import Set as AbstractSet
from typing import Any

from workflow.errors import QueueFull
from workflow.server.access import Keys
from workflow.server.desk import Note, ServerState
from workflow.server.error_table import encode, error_of
from workflow.server.heads import Plain
from workflow.server.logs import log_request
from workflow.server.middleware import GOOD_ID, REQUEST_ID
from workflow.server.strict_json import parse
from workflow.server.strict_route import JSON_TYPE, media_type

ID_HEADER = REQUEST_ID.encode()


class Door:
    """Answers what only a full queue has an answer for."""

    def __init__(self, state: ServerState, keys: Keys, paths: AbstractSet[str]) -> None:
        self.state = state
        self.keys = keys
        self.paths = paths
        """Of the POST routes whose requests go to the queue of a run that their body names."""

    @property
    def crowded(self) -> bool:
        """Whether any run's queue is full."""
        shut = self.state.draining or self.state.settings.server.log_prompts  # prompts are read on the common way
        return not shut and any(lane.queue.full() for lane in self.state.registry.lanes.values())

    def answer(self, asked: Plain, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """The whole response, with further headers of the server's; None for what may come in."""
        headers_in = asked.headers
        if (
            asked.path not in self.paths
            or len(asked.body) > self.state.settings.bounds.max_body_bytes
            or media_type(headers_in.get(b"content-type", b"").decode("ascii")) != JSON_TYPE
            or not self.keys.accept(headers_in.get(b"authorization", b"").decode("ascii"))
        ):
            return None
        note = Note()
        refusal = self._refusal(asked.body, note)
        if refusal is None:
            return None
        status, body = error_of(refusal)
        given = headers_in.get(ID_HEADER, b"").decode("ascii")
        request_id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        self._record(asked.path, request_id, note, status.status)
        return _response(refusal, encode(body), request_id, headers, closes=asked.closes)

    def _refusal(self, raw: bytes, note: Note) -> QueueFull | None:
        try:
            body: Any = parse(raw)
        except ValueError:
            return None
        name = body.get("model") if isinstance(body, dict) else 0
        lane = self.state.registry.lane_at_hand(name) if name is None or isinstance(name, str) else None
        if lane is None:
            return None
        note.model = lane.name
        return lane.queue.refusal()

    def _record(self, route: str, request_id: str, note: Note, status: int) -> None:
        metrics, scope = self.state.metrics, {"workflow.request_id": request_id, "method": "POST"}
        metrics.responses.labels(route, status).inc()
        if note.model is not None:
            metrics.ended(note.model, status, note.age_s)
        log_request(scope, note, route, status, texts=False)


def _response(
    refusal: QueueFull, body: bytes, request_id: str, headers: list[tuple[bytes, bytes]], *, closes: bool
) -> bytes:
    shared = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"".join(
        (
            b"HTTP/1.1 429 Too Many Requests\r\n",
            shared,
            b"retry-after: %d\r\n" % refusal.retry_after_s,
            b"content-length: %d\r\ncontent-type: application/json\r\n" % len(body),
            b"%b: %b\r\n" % (ID_HEADER, request_id.encode()),
            b"connection: close\r\n\r\n" if closes else b"\r\n",
            body,
        )
    )
