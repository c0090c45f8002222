"""The asynchronous client: the same methods as the synchronous one, to be awaited.

Knows nothing of bodies and answers (`wire`), nor of when to try again (`patience`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
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


class AsyncClient:
    """A client of `workflow serve`; may be shared by tasks of one event loop. `model` may be left out where the server has one run, or a default.

    Answers with 429 and 503 are tried again after the time that the server says, `max_retries` times and for
    `max_wait_s` seconds in all; nothing else is. Raises ClientError's kin. `Options` tells what else may be set.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._settings = Settings(base_url, **options)
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=self._settings.headers(), timeout=self._settings.timeout, transport=transport
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self._settings.base_url!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    @overload
    async def generate(
        self, prompt: str, *, model: str | None = None, truncate: bool | int = False, **sampling: Unpack[Sampling]
    ) -> GenerateAnswer: ...

    @overload
    async def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        model: str | None = None,
        truncate: bool | int = False,
        **sampling: Unpack[Sampling],
    ) -> GenerateAnswers: ...

    async def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        model: str | None = None,
        truncate: bool | int = False,
        **sampling: Unpack[Sampling],
    ) -> GenerateAnswer | GenerateAnswers:
        """Answers a prompt, or several in one request."""
        if isinstance(prompt, str):
            return await self._ask(wire.generate_call(prompt, model=model, truncate=truncate, sampling=sampling))
        return await self._ask(wire.generate_many_call(prompt, model=model, truncate=truncate, sampling=sampling))

    async def generate_stream(
        self, prompt: str, *, model: str | None = None, truncate: bool | int = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Piece]:
        """Answers a prompt token by token. Closing the iterator (`contextlib.aclosing`) ends the work on
        the server, too.

        Once the first piece has come nothing is tried again.
        """
        call = wire.stream_call(prompt, model=model, truncate=truncate, sampling=sampling)
        async with self._opened(call) as response:
            events = wire.Events(response)
            async for data in response.aiter_bytes():
                for piece in events.pieces(data):
                    yield piece
            events.end()

    @overload
    async def score(
        self,
        given: Input,
        *,
        model: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        truncate: bool | int = False,
    ) -> ScoreAnswer: ...

    @overload
    async def score(
        self,
        given: list[str] | list[Input] | tuple[Input, ...],
        *,
        model: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        truncate: bool | int = False,
    ) -> ScoreAnswers: ...

    async def score(
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
            return await self._ask(
                wire.score_many_call(given, model=model, labels=labels, template=template, truncate=truncate)
            )
        return await self._ask(wire.score_call(given, model=model, labels=labels, template=template, truncate=truncate))

    async def rerank(
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
        return await self._ask(
            wire.rerank_call(
                query, documents, model=model, top_n=top_n, return_documents=return_documents, truncate=truncate
            )
        )

    async def models(self) -> list[Model]:
        """The runs that can be served."""
        return (await self._ask(wire.models_call())).data

    async def info(self) -> Info:
        """The runs with what each can do, and the server's bounds."""
        return await self._ask(wire.info_call())

    async def health(self) -> Health:
        """Whether the server lives."""
        return await self._ask(wire.health_call("/health"))

    async def ready(self) -> Health:
        """Whether the server takes requests now."""
        return await self._ask(wire.health_call("/ready"))

    async def _ask(self, call: Call[T]) -> T:
        async with self._opened(call) as response:
            await response.aread()
            return call.read(response)

    @asynccontextmanager
    async def _opened(self, call: Call[T]) -> AsyncIterator[httpx.Response]:
        """The response, whose body is yet to be read, after as many tries as it takes."""
        patience = Patience(self._settings)
        while True:
            sent = self._http.stream(call.method, call.path, content=call.content, headers=call.headers)
            with told():
                async with sent as response:
                    if response.is_success or not call.retried:
                        yield response
                        return
                    await response.aread()
            wait_s = patience.wait_s(response.status_code, response.headers)
            if wait_s is None:
                raise failure(response)
            await self._sleep(wait_s)
