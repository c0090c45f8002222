"""How many items a body's lists and objects have, counted before anything looks at each of them.

Knows nothing of what the items mean. Without this a body of two megabytes is a million items, each wrong in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workflow.errors import RequestError
from workflow.server.bounds import check_count
from workflow.server.settings import ServeSettings
from workflow.server.texts import check_length

ROWS = ("prompts", "prompt", "inputs", "items", "documents", "texts")
IDS = ("prompt", "query")
"""What may be a flat list of token ids."""


def check_sizes(body: Any, settings: ServeSettings) -> None:
    """Raises RequestError for more than the settings give, or than anybody means."""
    if not isinstance(body, dict):
        return
    bounds, longest = settings.bounds, settings.engine.max_prompt_tokens
    _check_fields(body, None, bounds.max_fields)
    for name, rows in _lists(body, *ROWS, "query"):
        if name in IDS and rows and isinstance(rows[0], int | float):
            check_length(len(rows), longest, 0, 1)
            continue
        check_count(len(rows), bounds.max_prompts, name, flag="max_prompts")
        for number, row in enumerate(rows):
            if isinstance(row, list):
                check_length(len(row), longest, number, len(rows))
            _check_fields(row, f"{name}.{number}", bounds.max_fields)
    _check_fields(body.get("input"), "input", bounds.max_fields)
    for name, labels in _lists(body, "labels", "label_token_ids", "rank_fields"):
        check_count(len(labels), bounds.max_labels, name, flag="max_labels")
    _check_fields(body.get("parameters"), "parameters", bounds.max_fields)
    for part in (body, body.get("parameters")):
        if isinstance(part, dict):
            for name, stops in _lists(part, "stop"):
                check_count(len(stops), bounds.max_stop, name, flag="max_stop")
    _check_fields(body.get("stream_options"), "stream_options", bounds.max_fields)
    if isinstance(biases := body.get("logit_bias"), dict):
        check_count(len(biases), bounds.max_logit_bias, "logit_bias", flag="max_logit_bias")


def _lists(body: dict[str, Any], *names: str) -> Iterator[tuple[str, list[Any]]]:
    for name in names:
        value = body.get(name)
        if isinstance(value, list):
            yield name, value


def _check_fields(value: object, name: str | None, most: int) -> None:
    if isinstance(value, dict) and len(value) > most:
        told = f"{name or 'the body'}: {len(value)} fields are more than this server's {most} (--max_fields)"
        raise RequestError(told, param=name)
