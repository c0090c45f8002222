"""One JSON object a line on stderr. Prompts and answers are in it only where that was asked for.

Knows nothing of how requests are answered.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

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
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except ValueError:  # what JSON has no word for: NaN, or a thing within itself
            return json.dumps({key: str(value) for key, value in line.items()})


class LoggedText(io.TextIOBase):
    """Stands in the place of stderr: what is written there becomes records, a line each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""

    def write(self, text: str) -> int:
        """Takes text; a line is a record once it ends. What a progress bar overwrites is none."""
        *lines, self._held = (self._held + text).split("\n")
        for line in lines:
            if last := line.rpartition("\r")[2].rstrip():
                logger.warning("%s", last)
        return len(text)

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """Of stderr, for programs that are started."""
        return self._stream.fileno()


def set_up_logs() -> None:
    """Sends all that is logged, warned of or written to stderr, by whatever library, there as JSON, one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for log in logging.root.manager.loggerDict.values():
        if isinstance(log, logging.Logger):
            log.handlers, log.propagate = [], True
    logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _uncaught(kind, error, trace)
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    logging.raiseExceptions = False  # what cannot be logged would be told on stderr, and so be logged
    sys.stderr = LoggedText(sys.stderr)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    logger.critical("an error that nobody caught", exc_info=(kind, error or kind(), trace))


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
