"""The calls as bytes, and their answers as objects: what both clients share of the server's routes.

Knows nothing of sockets, waiting or keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from workflow.client.answers import (
    GenerateAnswer,
    GenerateAnswers,
    Health,
    Info,
    Models,
    Piece,
    RerankAnswer,
    ScoreAnswer,
    ScoreAnswers,
)
from workflow.client.failures import ClientError, NoAnswer, error_in_stream

T = TypeVar("T")

Input = str | Mapping[str, str | int | float]
"""A text, or an object with the keys that a run's template reads."""
EVENT = b"data:"
DONE = b"[DONE]"
REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


class Sampling(TypedDict, total=False):
    """How to decode; what is left out is the server's to choose."""

    max_new_tokens: int | None
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    n: int
    num_beams: int
    seed: int | None
    stop: str | list[str] | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read. One that is not `retried` reads errors' responses too."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: bytes | None = None
    retried: bool = True

    @property
    def headers(self) -> dict[str, str]:
        """What the body needs said."""
        return {} if self.content is None else {"Content-Type": "application/json"}


# ---- calls


def generate_call(prompt: str, *, model: str | None, truncate: bool | int, sampling: Sampling) -> Call[GenerateAnswer]:
    """One prompt."""
    return _post("/generate", GenerateAnswer, {"prompt": prompt}, model, truncate, sampling)


def generate_many_call(
    prompts: Sequence[str], *, model: str | None, truncate: bool | int, sampling: Sampling
) -> Call[GenerateAnswers]:
    """Several prompts."""
    return _post("/generate", GenerateAnswers, {"prompts": [*prompts]}, model, truncate, sampling)


def stream_call(prompt: str, *, model: str | None, truncate: bool | int, sampling: Sampling) -> Call[None]:
    """One prompt, token by token; the answer's events are read by `Events`."""
    return _post("/generate_stream", type(None), {"prompt": prompt}, model, truncate, sampling)


def score_call(
    given: Input, *, model: str | None, labels: Sequence[str] | None, template: str | None, truncate: bool | int
) -> Call[ScoreAnswer]:
    """One input."""
    return _post("/score", ScoreAnswer, {"input": given, **_how(labels, template)}, model, truncate)


def score_many_call(
    given: Sequence[Input],
    *,
    model: str | None,
    labels: Sequence[str] | None,
    template: str | None,
    truncate: bool | int,
) -> Call[ScoreAnswers]:
    """Several inputs."""
    return _post("/score", ScoreAnswers, {"inputs": [*given], **_how(labels, template)}, model, truncate)


def rerank_call(
    query: str,
    documents: Sequence[str],
    *,
    model: str | None,
    top_n: int | None,
    return_documents: bool,
    truncate: bool | int,
) -> Call[RerankAnswer]:
    """Documents for a query."""
    body = {"query": query, "documents": [*documents], "top_n": top_n, "return_documents": return_documents}
    return _post("/rerank", RerankAnswer, body, model, truncate)


def models_call() -> Call[Models]:
    """The runs."""
    return Call("GET", "/v1/models", _reader(Models))


def info_call() -> Call[Info]:
    """The table of runs."""
    return Call("GET", "/info", _reader(Info))


def health_call(path: str) -> Call[Health]:
    """Whether the server lives, or is ready: to be told that it is not is an answer, too."""
    return Call("GET", path, _read_health, retried=False)


def _how(labels: Sequence[str] | None, template: str | None) -> dict[str, Any]:
    return {"labels": None if labels is None else [*labels], "template": template}


def _post(
    path: str,
    kind: type[T],
    fields: Mapping[str, Any],
    model: str | None,
    truncate: bool | int,
    sampling: Sampling | None = None,
) -> Call[T]:
    body = {"model": model, **fields, "truncate": truncate or None, **(sampling or {})}
    if biases := body.get("logit_bias"):
        body["logit_bias"] = {str(token): bias for token, bias in biases.items()}
    given = {name: value for name, value in body.items() if value is not None}
    try:
        content = json.dumps(given, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise ClientError(f"the request cannot be written as JSON: {error}") from None
    return Call("POST", path, _reader(kind), content)


# ---- answers

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _reader(kind: type[T]) -> Callable[[httpx.Response], T]:
    def read(response: httpx.Response) -> T:
        try:
            answer: T = _adapter(kind).validate_json(response.content)
        except ValidationError as error:
            raise NoAnswer(f"the answer is not one of this server's: {error.errors()[0]['msg']}") from None
        return answer

    return read


def _read_health(response: httpx.Response) -> Health:
    try:
        return Health(ok=response.is_success, status=str(response.json()["status"]))
    except (ValueError, KeyError, TypeError):
        return Health(ok=False, status=f"HTTP {response.status_code}")


class Events:
    """Reads a stream's bytes. Raises the error that the server ends a stream with, and NoAnswer where the end is missing.

    Lines end in a line feed alone: what else Python, or httpx, takes for a line's end may stand within a text.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._request_id = response.headers.get("x-request-id")
        self._held = b""
        self._complete = False

    def pieces(self, data: bytes) -> Iterator[Piece]:
        """What these bytes complete."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            text = line.removeprefix(EVENT).strip()
            if line.startswith(EVENT) and text != DONE:
                yield self._piece(text)

    def end(self) -> None:
        """To be called where the stream ends."""
        if not self._complete:
            raise NoAnswer("the stream broke off before the answer was complete")

    def _piece(self, text: bytes) -> Piece:
        try:
            event = json.loads(text)
            told = event.get("error")
            made = _piece(event) if told is None else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoAnswer(f"an event of the stream is not one of this server's: {error!r}") from None
        if made is None:
            raise error_in_stream(told, self._request_id)
        self._complete = made.finish_reason is not None
        return made


def _piece(event: Mapping[str, Any]) -> Piece:
    token, details = event["token"], event.get("details") or {}
    reason = details.get("finish_reason")
    return Piece(
        text=token["text"],
        token_id=token["id"],
        logprob=token["logprob"],
        finish_reason=None if reason is None else REASONS.get(str(reason), str(reason)),
        num_tokens=details.get("generated_tokens"),
        prompt_tokens=details.get("input_length"),
        seed=details.get("seed"),
    )
