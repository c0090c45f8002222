"""`/generate` and `/generate_stream`, in our own shape and in TGI's, and TGI's compatible route at `/`.

Knows nothing of how answers are made.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from workflow.errors import RequestError
from workflow.inference.requests import Result
from workflow.server.answers import ERRORS, STREAM, shown_tokens
from workflow.server.desk import answered
from workflow.server.generating import Prepared, Prompts, chunks, results, usage_of
from workflow.server.schemas import GenerateAnswer, GenerateAnswers, GenerateBody, Generation
from workflow.server.streams import started
from workflow.server.strict_route import StrictRoute
from workflow.server.tgi import tgi_answer, tgi_events, tgi_prompts
from workflow.server.tgi_schemas import AnyGenerateBody, TgiAnswer, TgiBody

router = APIRouter(route_class=StrictRoute, tags=["generate"], responses=ERRORS)

Model = Annotated[str | None, Query(max_length=300, description="a run's name, for bodies that cannot say it")]


@router.post(
    "/generate", response_model=GenerateAnswer | GenerateAnswers | TgiAnswer, response_model_exclude_unset=True
)
async def generate(request: Request, body: AnyGenerateBody, model: Model = None) -> object:
    """Answers a prompt, or several. The body may be TGI's (`inputs`, `parameters`); the answer then is too."""
    if isinstance(body, TgiBody):
        if body.stream:
            raise RequestError("stream: use /generate_stream", param="stream")
        return await _tgi(request, body, model)
    wanted = _ours(body, model)
    ready, found = await answered(request, results(request, wanted))
    answers = [_answer(ready, number, result) for number, result in enumerate(found)]
    if body.prompt is not None:
        return answers[0]
    total = usage_of(ready.prompt_tokens, sum(answer.usage.completion_tokens for answer in answers))
    return GenerateAnswers(model=ready.desk.service.name, results=answers, usage=total)


@router.post("/generate_stream", response_class=Response, responses={200: {"content": STREAM}})
async def generate_stream(request: Request, body: AnyGenerateBody, model: Model = None) -> Response:
    """Answers one prompt as server-sent events in TGI's shape, a token each."""
    if isinstance(body, TgiBody):
        return await _stream(request, tgi_prompts(body, model, stream=True))
    wanted = _ours(body, model)
    if len(wanted.prompts) > 1 or body.n > 1:
        raise RequestError("a stream answers one prompt with one sample", param="prompts" if body.prompts else "n")
    if body.num_beams > 1:
        raise RequestError("num_beams: beam search has nothing to stream before its end", param="num_beams")
    return await _stream(request, _with_logprobs(wanted))


@router.post(
    "/", response_model=list[TgiAnswer], response_model_exclude_unset=True, responses={200: {"content": STREAM}}
)
async def compatible(request: Request, body: TgiBody, model: Model = None) -> object:
    """TGI's route at the root, where `InferenceClient` sends to: a list with one answer, or events with `stream`."""
    if body.stream:
        return await _stream(request, tgi_prompts(body, model, stream=True))
    return [await _tgi(request, body, model)]


def _ours(body: GenerateBody, model: str | None) -> Prompts:
    prompts = [body.prompt] if body.prompt is not None else body.prompts or []
    return Prompts(model if body.model is None else body.model, prompts, body, body.truncate)


def _with_logprobs(wanted: Prompts) -> Prompts:
    """TGI's events have each token's log-probability."""
    sampling = wanted.sampling.model_copy(update={"logprobs": wanted.sampling.logprobs or 0})
    return Prompts(wanted.model, wanted.prompts, sampling, wanted.truncate)


async def _tgi(request: Request, body: TgiBody, model: str | None) -> TgiAnswer:
    ready, found = await answered(request, results(request, tgi_prompts(body, model, stream=False)))
    details = body.parameters is not None and bool(body.parameters.details)
    return tgi_answer(ready, found[0].generations[0], details=details)


async def _stream(request: Request, wanted: Prompts) -> Response:
    return await started(request, wanted, lambda ready, call: tgi_events(ready, chunks(ready, call)))


def _answer(ready: Prepared, number: int, result: Result) -> GenerateAnswer:
    texts = ready.desk.service.texts
    generations = []
    for index, made in enumerate(result.generations):
        shown = Generation(index=index, text=made.text, finish_reason=made.finish_reason, num_tokens=made.num_tokens)
        if ready.requests[number].params.logprobs is not None:
            shown.logprobs = shown_tokens(texts, made)
        generations.append(shown)
    usage = usage_of(len(ready.requests[number].token_ids), sum(made.num_tokens for made in result.generations))
    return GenerateAnswer(model=ready.desk.service.name, generations=generations, usage=usage)
