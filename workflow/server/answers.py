"""What several families of routes say alike: which errors may come, how tokens are shown, ids of answers.

Knows nothing of requests' way.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from workflow.inference.requests import Generation
from workflow.server.schemas import ErrorAnswer, ShownToken, TokenLogprobs
from workflow.server.texts import ModelTexts
from workflow.server.token_texts import TokenPlaces, written

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "the request is wrong"},
    401: {"model": ErrorAnswer, "description": "no key, or a wrong one"},
    404: {"model": ErrorAnswer, "description": "no such run"},
    408: {"model": ErrorAnswer, "description": "the body did not arrive in time"},
    413: {"model": ErrorAnswer, "description": "the body, or a prompt, is too long"},
    415: {"model": ErrorAnswer, "description": "the body is not JSON"},
    429: {"model": ErrorAnswer, "description": "the queue is full; Retry-After says when to try again"},
    500: {"model": ErrorAnswer, "description": "the engine failed"},
    503: {"model": ErrorAnswer, "description": "shutting down, or the run cannot be loaded now"},
    504: {"model": ErrorAnswer, "description": "not answered within the deadline"},
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": EVENT}}


def fresh_id(prefix: str) -> str:
    """An id for an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now_s() -> int:
    """Unix time."""
    return int(time.time())


def shown_tokens(texts: ModelTexts, made: Generation) -> list[TokenLogprobs]:
    """An answer's tokens with their log-probabilities, in our own shape; what is no part of the text is written empty."""
    table = texts.token_bytes
    return [
        TokenLogprobs(
            id=placed.token.token_id,
            token=written(placed.data),
            logprob=placed.token.logprob,
            top=[
                ShownToken(id=other, token=table.shown(other, at_start=placed.offset == 0), logprob=value)
                for other, value in placed.token.top
            ],
        )
        for placed in TokenPlaces(table).add(made.logprobs, made.text, is_last=True)
    ]


def ended_in_eos(made: Generation) -> bool:
    """Whether an answer that stopped did so by itself, not at a stop string: its end was generated too."""
    return made.finish_reason == "stop" and made.num_tokens > len(made.token_ids)
