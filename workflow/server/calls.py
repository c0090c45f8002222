"""One HTTP request's jobs in an engine, seen from the event loop: their outcomes, or their pieces as they come.

Knows nothing of what is asked. Whatever ends a call early (deadline, client gone, a failed part) cancels its jobs;
`on_left` is called when the last of them has left the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from starlette.types import Receive

from workflow.errors import Draining, EngineFailed, RequestCancelled, RequestTimeout, WorkflowError
from workflow.inference.requests import Chunk, GenerateRequest, Job, Outcome, Result, ScoreRequest
from workflow.server.worker import Worker

T = TypeVar("T")
Final = Result | tuple[float, ...]


class Call:
    """Jobs sent together. Use as `async with`, so that an early end cancels them."""

    def __init__(
        self,
        worker: Worker,
        requests: Sequence[GenerateRequest | ScoreRequest],
        on_left: Callable[[], None],
        *,
        stream: bool = False,
    ) -> None:
        self._worker = worker
        self._on_left = on_left
        self._events: asyncio.Queue[tuple[int, Chunk | Outcome]] = asyncio.Queue()
        self._left = len(requests)
        self._jobs: list[Job] = [
            worker.submit(request, self._listener(number), stream=stream) for number, request in enumerate(requests)
        ]

    async def __aenter__(self) -> Call:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._left:
            for job in self._jobs:
                self._worker.cancel(job)

    async def events(self) -> AsyncIterator[tuple[int, Chunk | Final]]:
        """(number of the request, its next piece or its end) until all have ended. Raises what failed first."""
        ended = 0
        while ended < len(self._jobs):
            number, event = await self._events.get()
            if isinstance(event, BaseException):
                raise _told(event)
            ended += not isinstance(event, Chunk)
            yield number, event

    async def outcomes(self) -> list[Final]:
        """How each request ended, in their order."""
        found: dict[int, Final] = {}
        async for number, event in self.events():
            if not isinstance(event, Chunk):
                found[number] = event
        return [found[number] for number in range(len(self._jobs))]

    def _listener(self, number: int) -> Callable[[Chunk | Outcome], None]:
        def heard(event: Chunk | Outcome) -> None:
            self._events.put_nowait((number, event))
            if not isinstance(event, Chunk):
                self._left -= 1
                if not self._left:
                    self._on_left()

        return heard


def _told(error: BaseException) -> BaseException:
    """What a client is told of its request's failure; of one that is no error of ours, only that it happened."""
    if isinstance(error, WorkflowError):
        return error
    return EngineFailed(f"the engine failed at this request: {type(error).__name__}")


@asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Raises RequestTimeout when the block takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise RequestTimeout(f"not answered within {timeout_s:g} s") from None


async def while_wanted(receive: Receive, given_up: asyncio.Event, work: Coroutine[None, None, T]) -> T:
    """The work's result. Ends it before, and raises, when the client goes away or the server's grace time is over."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(client_gone(receive))
    end = asyncio.ensure_future(given_up.wait())
    try:
        await asyncio.wait((task, gone, end), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise RequestCancelled("the client went away")
        raise Draining("the server shut down before the answer was ready")
    finally:
        for other in (task, gone, end):
            other.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await other


async def client_gone(receive: Receive) -> None:
    """Returns when the client has gone away; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
