"""From a body's prompts and sampling fields to the engine's results; all routes that generate share it.

Knows nothing of the shape of answers.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from workflow.inference.requests import Chunk, GenerateRequest, Result
from workflow.runtime import derived_seed
from workflow.server.bounds import (
    TRUNCATE,
    check_count,
    check_room,
    check_sampling,
    endless,
    in_the_body_s_words,
    sampling_params,
)
from workflow.server.calls import Call
from workflow.server.desk import Desk, at_desk, estimate, needs_generation, note_of, state_of
from workflow.server.schemas import Sampling, Usage


@dataclass(frozen=True)
class Prompts:
    """What is to be answered: texts or ids, and how. `truncate` may be a number of tokens."""

    model: str | None
    prompts: Sequence[str] | Sequence[Sequence[int]]
    sampling: Sampling
    truncate: bool | int = False
    param: str = "prompts"
    names: Mapping[str, str] = field(default_factory=dict)
    """What the body calls our sampling fields."""
    cut: str = TRUNCATE
    """How the body asks for too long prompts to be cut; empty where it cannot."""
    ignore_eos: bool = False


@dataclass(frozen=True)
class Prepared:
    """The engine's requests, and at whose desk."""

    desk: Desk
    requests: list[GenerateRequest]
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.token_ids) for request in self.requests)


@asynccontextmanager
async def prepared(request: Request, wanted: Prompts) -> AsyncIterator[Prepared]:
    """Checks, takes a place, tokenizes. Raises RequestError and its kin before anything costly happens."""
    settings, note = state_of(request).settings, note_of(request)
    check_count(len(wanted.prompts), settings.bounds.max_prompts, wanted.param, flag="max_prompts")
    with in_the_body_s_words(wanted.names, wanted.cut):
        check_sampling(wanted.sampling, settings.bounds)
    note.num_prompts = len(wanted.prompts)
    note.texts = wanted.prompts
    new_tokens = wanted.sampling.max_new_tokens or min(
        settings.engine.default_new_tokens, settings.bounds.max_new_tokens
    )
    side_by_side = wanted.sampling.n * wanted.sampling.num_beams  # one of them is 1
    tokens = _estimate(wanted, settings.engine.max_prompt_tokens)
    async with at_desk(request, wanted.model, tokens=tokens + new_tokens * side_by_side * len(wanted.prompts)) as desk:
        needs_generation(desk.service)
        with in_the_body_s_words(wanted.names, wanted.cut):
            params = sampling_params(
                wanted.sampling,
                settings.bounds,
                default_new_tokens=desk.service.default_new_tokens,
                num_tokens=desk.service.texts.num_tokens,
            )
            rows = await desk.off_loop(lambda: _ids(desk, wanted))
            for row in rows:
                check_room(params, len(row), settings.engine)
        if wanted.ignore_eos:
            params = endless(params, desk.service.texts.all_ends)
        seed = secrets.randbits(31) if wanted.sampling.seed is None else wanted.sampling.seed
        # As `workflow generate` seeds its prompts, so that both give the same samples.
        requests = [
            GenerateRequest(row, params, seed=derived_seed(seed, "sampling", number)) for number, row in enumerate(rows)
        ]
        yield Prepared(desk, requests, seed)


async def results(request: Request, wanted: Prompts) -> tuple[Prepared, list[Result]]:
    """All answers, when they are complete."""
    async with prepared(request, wanted) as ready:
        return ready, await complete(ready)


async def complete(ready: Prepared) -> list[Result]:
    """The answers of what is prepared."""
    async with ready.desk.call(ready.requests) as call:
        found = [outcome for outcome in await call.outcomes() if isinstance(outcome, Result)]
    for result in found:
        finished(ready.desk, result)
    ready.desk.note.answers = [[made.text for made in result.generations] for result in found]
    return found


@asynccontextmanager
async def streamed(request: Request, wanted: Prompts) -> AsyncIterator[tuple[Prepared, Call]]:
    """A call whose chunks come as they are made."""
    async with prepared(request, wanted) as ready, ready.desk.call(ready.requests, stream=True) as call:
        yield ready, call


async def chunks(ready: Prepared, call: Call) -> AsyncIterator[tuple[int, Chunk]]:
    """(number of the prompt, chunk) of a streamed call; the metrics learn of each token's time and of the ends."""
    metrics, name = ready.desk.state.metrics, ready.desk.service.name
    told_s: dict[tuple[int, int], float] = {}
    async for number, event in call.events():
        if isinstance(event, Chunk):
            sample, now_s = (number, event.index), ready.desk.note.age_s
            if sample in told_s:
                metrics.token_gap.labels(name).observe(now_s - told_s[sample])
            elif not told_s:
                metrics.first_token.labels(name).observe(now_s)
            told_s[sample] = now_s
            yield number, event
        elif isinstance(event, Result):
            finished(ready.desk, event)


def finished(desk: Desk, result: Result) -> None:
    """Tells metrics and log of a prompt's answers."""
    for made in result.generations:
        desk.state.metrics.answered(desk.service.name, made.finish_reason, made.num_tokens)
    desk.note.generated_tokens = (desk.note.generated_tokens or 0) + sum(made.num_tokens for made in result.generations)


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Tokens read and generated."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def _estimate(wanted: Prompts, limit: int) -> int:
    texts = [prompt for prompt in wanted.prompts if isinstance(prompt, str)]
    return estimate(texts, limit) if texts else sum(map(len, wanted.prompts))


def _ids(desk: Desk, wanted: Prompts) -> list[list[int]]:
    limit = desk.max_prompt_tokens
    texts = [prompt for prompt in wanted.prompts if isinstance(prompt, str)]
    if texts:
        return desk.service.texts.prompts(texts, limit=limit, truncate=wanted.truncate)
    rows = [[*row] for row in wanted.prompts if not isinstance(row, str)]
    if wanted.truncate:
        rows = desk.service.texts.cut(rows, limit=limit, truncate=wanted.truncate)
    desk.service.texts.check_ids(rows, limit=limit)
    return rows
