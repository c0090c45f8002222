"""OpenAI's `/v1/completions` and `/v1/models`, for clients made for them.

Knows nothing of how answers are made.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from workflow.errors import UnknownModel
from workflow.inference.requests import Generation
from workflow.server.answers import ERRORS, STREAM, fresh_id, now_s
from workflow.server.calls import Call
from workflow.server.completions import Echo, ShownLogprobs, behind, choice_of, finish_reason
from workflow.server.desk import answered, state_of
from workflow.server.echo import echoes
from workflow.server.generating import Prepared, Prompts, chunks, complete, prepared, usage_of
from workflow.server.openai_schemas import (
    Completion,
    CompletionBody,
    CompletionChoice,
    ModelCard,
    ModelList,
    StreamOptions,
)
from workflow.server.schemas import Usage
from workflow.server.streams import DONE, started
from workflow.server.strict_route import StrictRoute

NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

router = APIRouter(prefix="/v1", route_class=StrictRoute, tags=["openai"], responses=ERRORS)


@router.post("/completions", response_model=Completion, responses={200: {"content": STREAM}})
async def completions(request: Request, body: CompletionBody) -> object:
    """Answers prompts, given as texts or as token ids; with `stream` as server-sent events."""
    wanted = Prompts(
        *(body.model, body.prompts, body.sampling, body.truncate),
        param="prompt",
        names=NAMES,
        cut='"truncate_prompt_tokens": -1',
        ignore_eos=bool(body.ignore_eos),
    )
    if body.stream:
        return await _stream(request, body, wanted)
    ready, echoed, found = await answered(request, _complete(request, body, wanted))
    choices = []
    for index, (echo, made) in enumerate(
        (echo, made) for echo, result in zip(echoed, found, strict=True) for made in result
    ):
        choice = choice_of(_shown(body, ready, echo), made, index)
        choices.append(behind(echo, choice) if echo is not None else choice)
    generated = sum(made.num_tokens for result in found for made in result)
    return _completion(ready, fresh_id("cmpl"), choices, usage_of(ready.prompt_tokens, generated))


async def _complete(
    request: Request, body: CompletionBody, wanted: Prompts
) -> tuple[Prepared, Sequence[Echo | None], list[Sequence[Generation]]]:
    """The prompts' echoes, where they are asked for, and their samples."""
    async with prepared(request, wanted) as ready:
        echoed = await _echoed(body, ready)
        if body.max_tokens == 0:
            nothing = Generation((), "", "length")
            return ready, echoed, [[nothing] * (body.n or 1) for _ in ready.requests]
        return ready, echoed, [result.generations for result in await complete(ready)]


async def _echoed(body: CompletionBody, ready: Prepared) -> Sequence[Echo | None]:
    return await echoes(ready, body.prompts, body.logprobs) if body.echo else [None] * len(ready.requests)


def _shown(body: CompletionBody, ready: Prepared, echo: Echo | None) -> ShownLogprobs | None:
    """How a sample's log-probabilities are shown; None where they are not."""
    if body.logprobs is None:
        return None
    texts = ready.desk.service.texts
    return ShownLogprobs(texts, before=len(echo.text), keeps_end=True) if echo is not None else ShownLogprobs(texts)


@router.get("/models", response_model=ModelList)
async def models(request: Request) -> object:
    """The runs that can be served."""
    registry = state_of(request).registry
    cards = [(name, await registry.find(name)) for name in await registry.names()]
    return ModelList(data=[ModelCard(id=name, created=found.modified_s if found else 0) for name, found in cards])


@router.get("/models/{model}", response_model=ModelCard)
async def model(request: Request, model: str) -> object:
    """One run."""
    registry = state_of(request).registry
    lane = await registry.lane(model)
    found = await registry.find(lane.name)
    if found is None:
        raise UnknownModel(f"the run {lane.name!r} has no whole checkpoint any more", param="model")
    return ModelCard(id=lane.name, created=found.modified_s)


def _completion(ready: Prepared, number: str, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
    return Completion(id=number, created=now_s(), model=ready.desk.service.name, choices=choices, usage=usage)


async def _stream(request: Request, body: CompletionBody, wanted: Prompts) -> Response:
    return await started(request, wanted, lambda ready, call: _events(body, ready, call), last=DONE)


async def _events(body: CompletionBody, ready: Prepared, call: Call) -> AsyncGenerator[Completion, None]:
    number, samples, options = fresh_id("cmpl"), body.n or 1, body.stream_options or StreamOptions.model_validate({})
    echoed = await _echoed(body, ready)
    for index, echo in enumerate(echo for echo in echoed for _ in range(samples)):
        if echo is not None:
            reason: Literal["length"] | None = "length" if body.max_tokens == 0 else None
            choice = CompletionChoice(index=index, text=echo.text, logprobs=echo.logprobs, finish_reason=reason)
            yield _completion(ready, number, [choice], None)
    generated: dict[int, int] = {}
    logprobs: dict[int, ShownLogprobs | None] = {}
    async for prompt, chunk in chunks(ready, call):
        if body.max_tokens == 0:
            break
        index = prompt * samples + chunk.index
        generated[index] = chunk.num_tokens  # so far
        reason_now = finish_reason(chunk.finish_reason)
        if index not in logprobs:
            logprobs[index] = _shown(body, ready, echoed[prompt])
        of_sample = logprobs[index]
        shown = of_sample.add(chunk.logprobs, chunk.text, is_last=reason_now is not None) if of_sample else None
        if chunk.text or (shown and shown.tokens) or reason_now is not None:
            choice = CompletionChoice(index=index, text=chunk.text, logprobs=shown, finish_reason=reason_now)
            usage = usage_of(ready.prompt_tokens, sum(generated.values())) if options.continuous_usage_stats else None
            yield _completion(ready, number, [choice], usage)
    if options.include_usage:
        yield _completion(ready, number, [], usage_of(ready.prompt_tokens, sum(generated.values())))
