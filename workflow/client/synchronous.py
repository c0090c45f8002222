"""The synchronous client.

Knows nothing of bodies and answers (`wire`), nor of when to try again (`patience`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, Unpack, overload

import httpx

from workflow.client import wire
from workflow.client.answers import (
    GenerateAnswer,
    GenerateAnswers,
    Health,
    Info,
    Model,
    Piece,
    RerankAnswer,
    ScoreAnswer,
    ScoreAnswers,
)
from workflow.client.patience import DEFAULT_URL, Options, Patience, Settings, failure, told
from workflow.client.wire import Call, Input, Sampling

T = TypeVar("T")


class Client:
    """A client of `workflow serve`; may be shared by threads. `model` may be left out where the server has one run, or a default.

    Answers with 429 and 503 are tried again after the time that the server says, `max_retries` times and for
    `max_wait_s` seconds in all; nothing else is. Raises ClientError's kin. `Options` tells what else may be set.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        transport: httpx.BaseTransport | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._settings = Settings(base_url, **options)
        self._sleep: Callable[[float], None] = time.sleep
        self._http = httpx.Client(
            base_url=base_url, headers=self._settings.headers(), timeout=self._settings.timeout, transport=transport
        )

    def __repr__(self) -> str:
        return f"Client({self._settings.base_url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    @overload
    def generate(
        self, prompt: str, *, model: str | None = None, truncate: bool | int = False, **sampling: Unpack[Sampling]
    ) -> GenerateAnswer: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        model: str | None = None,
        truncate: bool | int = False,
        **sampling: Unpack[Sampling],
    ) -> GenerateAnswers: ...

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        model: str | None = None,
        truncate: bool | int = False,
        **sampling: Unpack[Sampling],
    ) -> GenerateAnswer | GenerateAnswers:
        """Answers a prompt, or several in one request."""
        if isinstance(prompt, str):
            return self._ask(wire.generate_call(prompt, model=model, truncate=truncate, sampling=sampling))
        return self._ask(wire.generate_many_call(prompt, model=model, truncate=truncate, sampling=sampling))

    def generate_stream(
        self, prompt: str, *, model: str | None = None, truncate: bool | int = False, **sampling: Unpack[Sampling]
    ) -> Iterator[Piece]:
        """Answers a prompt token by token. Closing the iterator ends the work on the server, too.

        Once the first piece has come nothing is tried again.
        """
        call = wire.stream_call(prompt, model=model, truncate=truncate, sampling=sampling)
        with self._opened(call) as response:
            events = wire.Events(response)
            for data in response.iter_bytes():
                yield from events.pieces(data)
            events.end()

    @overload
    def score(
        self,
        given: Input,
        *,
        model: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        truncate: bool | int = False,
    ) -> ScoreAnswer: ...

    @overload
    def score(
        self,
        given: list[str] | list[Input] | tuple[Input, ...],
        *,
        model: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        truncate: bool | int = False,
    ) -> ScoreAnswers: ...

    def score(
        self,
        given: Input | list[str] | list[Input] | tuple[Input, ...],
        *,
        model: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        truncate: bool | int = False,
    ) -> ScoreAnswer | ScoreAnswers:
        """Scores an input, or several in one request; `labels` and `template` are for runs that have none of their own."""
        if isinstance(given, list | tuple):
            return self._ask(
                wire.score_many_call(given, model=model, labels=labels, template=template, truncate=truncate)
            )
        return self._ask(wire.score_call(given, model=model, labels=labels, template=template, truncate=truncate))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str | None = None,
        top_n: int | None = None,
        return_documents: bool = True,
        truncate: bool | int = False,
    ) -> RerankAnswer:
        """Orders documents by their score for a query."""
        return self._ask(
            wire.rerank_call(
                query, documents, model=model, top_n=top_n, return_documents=return_documents, truncate=truncate
            )
        )

    def models(self) -> list[Model]:
        """The runs that can be served."""
        return self._ask(wire.models_call()).data

    def info(self) -> Info:
        """The runs with what each can do, and the server's bounds."""
        return self._ask(wire.info_call())

    def health(self) -> Health:
        """Whether the server lives."""
        return self._ask(wire.health_call("/health"))

    def ready(self) -> Health:
        """Whether the server takes requests now."""
        return self._ask(wire.health_call("/ready"))

    def _ask(self, call: Call[T]) -> T:
        with self._opened(call) as response:
            response.read()
            return call.read(response)

    @contextmanager
    def _opened(self, call: Call[T]) -> Iterator[httpx.Response]:
        """The response, whose body is yet to be read, after as many tries as it takes."""
        patience = Patience(self._settings)
        while True:
            sent = self._http.stream(call.method, call.path, content=call.content, headers=call.headers)
            with told(), sent as response:
                if response.is_success or not call.retried:
                    yield response
                    return
                response.read()
            wait_s = patience.wait_s(response.status_code, response.headers)
            if wait_s is None:
                raise failure(response)
            self._sleep(wait_s)
