"""What several families of routes say alike: which errors may come, how tokens are shown, ids of answers.

Knows nothing of requests' way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from workflow.inference.requests import Generation, TokenLogprob
from workflow.server.schemas import ErrorAnswer, ShownToken, TokenLogprobs
from workflow.server.texts import ModelTexts

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


def shown_tokens(texts: ModelTexts, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprobs]:
    """Tokens with their log-probabilities, in our own shape."""
    return [
        TokenLogprobs(
            id=token.token_id,
            token=texts.token(token.token_id),
            logprob=token.logprob,
            top=[ShownToken(id=other, token=texts.token(other), logprob=value) for other, value in token.top],
        )
        for token in logprobs
    ]


def ended_in_eos(made: Generation) -> bool:
    """Whether an answer that stopped did so by itself, not at a stop string: its end was generated too."""
    return made.finish_reason == "stop" and made.num_tokens > len(made.token_ids)
