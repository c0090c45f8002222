"""One JSON object a line on stderr. Prompts and answers are in it only where that was asked for.

Knows nothing of how requests are answered.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

from workflow.server.desk import Note

logger = logging.getLogger("workflow.server")

PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in PLAIN and value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs() -> None:
    """Sends our log, and uvicorn's, to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("workflow.server", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel(logging.INFO if name == "workflow.server" else logging.WARNING)


def log_request(scope: Scope, note: Note, route: str, status: int, *, texts: bool) -> None:
    """The line of a request that has ended."""
    fields: dict[str, Any] = {
        "request_id": scope["workflow.request_id"],
        "method": scope["method"],
        "route": route,
        "status": status,
        "duration_ms": round(1000 * note.age_s, 1),
        "model": note.model,
        "num_prompts": note.num_prompts,
        "prompt_tokens": note.prompt_tokens,
        "generated_tokens": note.generated_tokens,
    }
    if texts:
        fields |= {"prompts": note.texts, "answers": note.answers}
    quiet = route in ("/health", "/ready", "/metrics") and status == 200
    logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=fields)
