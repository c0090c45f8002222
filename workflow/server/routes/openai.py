"""OpenAI's `/v1/completions` and `/v1/models`, for clients made for them.

Knows nothing of how answers are made.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from workflow.errors import UnknownModel
from workflow.server.answers import ERRORS, STREAM, fresh_id, now_s
from workflow.server.calls import Call
from workflow.server.completions import ShownLogprobs, choice_of, finish_reason
from workflow.server.desk import answered, state_of
from workflow.server.generating import Prepared, Prompts, chunks, results, usage_of
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
    ready, found = await answered(request, results(request, wanted))
    choices = [
        choice_of(ready.desk.service.texts, made, index, wanted=body.logprobs is not None)
        for index, made in enumerate(made for result in found for made in result.generations)
    ]
    generated = sum(made.num_tokens for result in found for made in result.generations)
    return _completion(ready, fresh_id("cmpl"), choices, usage_of(ready.prompt_tokens, generated))


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
    number, samples, options = fresh_id("cmpl"), body.n or 1, body.stream_options or StreamOptions()
    generated: dict[int, int] = {}
    logprobs: dict[int, ShownLogprobs] = {}
    async for prompt, chunk in chunks(ready, call):
        index = prompt * samples + chunk.index
        generated[index] = chunk.num_tokens  # so far
        reason = finish_reason(chunk.finish_reason)
        shown = None
        if body.logprobs is not None:
            of_sample = logprobs.setdefault(index, ShownLogprobs(ready.desk.service.texts))
            shown = of_sample.add(chunk.logprobs, chunk.text, is_last=reason is not None)
        if chunk.text or (shown and shown.tokens) or reason is not None:
            choice = CompletionChoice(index=index, text=chunk.text, logprobs=shown, finish_reason=reason)
            usage = usage_of(ready.prompt_tokens, sum(generated.values())) if options.continuous_usage_stats else None
            yield _completion(ready, number, [choice], usage)
    if options.include_usage:
        yield _completion(ready, number, [], usage_of(ready.prompt_tokens, sum(generated.values())))
