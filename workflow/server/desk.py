"""What the routes share: the server's state, and a request's way from its place in the queue to a call of the engine.

Knows nothing of the shape of any body or answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request

from workflow.errors import RequestError
from workflow.inference.requests import GenerateRequest, LikelihoodRequest, ScoreRequest
from workflow.server.admission import Place
from workflow.server.calls import Call, deadline, while_wanted
from workflow.server.lanes import Live
from workflow.server.metrics import Metrics
from workflow.server.registry import Registry
from workflow.server.service import Service
from workflow.server.settings import ServeSettings

T = TypeVar("T")


@dataclass(eq=False)
class ServerState:
    """What all requests share."""

    settings: ServeSettings
    registry: Registry = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    dead: bool = False
    num_open: int = 0
    """Responses that are not complete."""
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the grace time is over: whoever still waits is told so."""


def state_of(request: Request) -> ServerState:
    """The state of the app that a request came to."""
    state: ServerState = request.app.state.server
    return state


@dataclass(eq=False)
class Note:
    """What the log and the metrics say of a request, filled in on its way."""

    started: float = field(default_factory=time.monotonic)
    model: str | None = None
    num_prompts: int | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    texts: object = None
    answers: object = None

    @property
    def age_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.started


def note_of(request: Request) -> Note:
    """The request's note."""
    note: Note = request.scope.setdefault("workflow.note", Note())
    return note


class Desk:
    """A request's place, and the run it is for."""

    def __init__(self, state: ServerState, live: Live, place: Place, note: Note) -> None:
        self.state = state
        self.live = live
        self.note = note
        self._place = place
        self._accepted = False
        self._num_calls = 0
        self._last = False

    @property
    def service(self) -> Service:
        """The loaded run."""
        return self.live.service

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt, by the engine and by the settings."""
        return min(self.service.max_prompt_tokens, self.state.settings.engine.max_prompt_tokens)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Tokenizing and its like, away from the event loop."""
        return await self.live.off_loop(work)

    def call(
        self, requests: Sequence[GenerateRequest | ScoreRequest], *, stream: bool = False, last: bool = True
    ) -> Call:
        """Sends the requests to the engine. The place is given back when the engine is done with every call, and the
        `last` one was made or nobody is left to make it."""
        tokens = [len(request.token_ids) for request in requests]
        self.note.prompt_tokens = sum(tokens)
        self._place.correct(sum(tokens) + sum(map(_to_generate, requests)))
        if not self._accepted:  # a second call reads the same prompts
            self._accepted = True
            self.state.metrics.accepted(self.service.name, tokens)
        self._last = last
        self._num_calls += 1
        return Call(self.live.worker, requests, self._call_left, stream=stream)

    def leave(self) -> None:
        """No further call is made."""
        self._last = True
        self._settle()

    def _call_left(self) -> None:
        self._num_calls -= 1
        self._settle()

    def _settle(self) -> None:
        if self._last and not self._num_calls:
            self._place.release()


@asynccontextmanager
async def at_desk(request: Request, model: str | None, *, tokens: int) -> AsyncIterator[Desk]:
    """A place in the run's queue, taken before anything costly, and the loaded run."""
    state, note = state_of(request), note_of(request)
    lane = await state.registry.lane(model)
    note.model = lane.name
    place = lane.queue.reserve(tokens)
    desk: Desk | None = None
    try:
        async with state.registry.use(lane) as live:
            desk = Desk(state, live, place, note)
            yield desk
    finally:
        if desk is None:
            place.release()
        else:
            desk.leave()


async def answered(request: Request, work: Coroutine[None, None, T]) -> T:
    """The work's result, unless the deadline passes or the client goes away before."""
    state = state_of(request)
    async with deadline(state.settings.queue.timeout_s):
        return await while_wanted(request.receive, state.given_up, work)


def estimate(texts: Sequence[str], limit: int) -> int:
    """About how many tokens texts have, at most: a token is a byte or more, and what is longer than `limit` is refused."""
    return sum(min(limit, len(text.encode()) + 1) for text in texts)


def needs_generation(service: Service) -> None:
    """Raises RequestError for a run that scores only."""
    if not service.engine.can_generate:
        raise RequestError(f"the run {service.name!r} scores and cannot generate", param="model", code="model_unfit")


def _to_generate(request: GenerateRequest | ScoreRequest) -> int:
    if isinstance(request, LikelihoodRequest):
        return len(request.completion)
    if isinstance(request, ScoreRequest):
        return 1
    return request.params.n * request.params.num_beams * request.params.max_new_tokens
