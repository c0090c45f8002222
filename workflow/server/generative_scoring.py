"""Probabilities of label tokens as the first token of an answer, as vLLM's generative scoring has them.

Knows nothing of routes. Over the labels alone they are a softmax of the labels' logits. Over the whole vocabulary, one
greedy step tells the normaliser: a token's logit minus its log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from starlette.requests import Request

from workflow.errors import EngineFailed, RequestError
from workflow.inference.requests import GenerateRequest, Result, ScoreRequest
from workflow.inference.sampling import SamplingParams
from workflow.server.bounds import check_count
from workflow.server.desk import Desk, at_desk, estimate, needs_generation, note_of, state_of
from workflow.server.ranking_schemas import GenerativeScoringBody
from workflow.server.scoring import logits_of

ONE_TOKEN = SamplingParams(max_new_tokens=1, min_new_tokens=1, logprobs=0)


async def label_probabilities(request: Request, body: GenerativeScoringBody) -> tuple[Desk, list[float], int]:
    """The first label's probability for each item, and how many tokens were read. Raises RequestError."""
    settings, note = state_of(request).settings, note_of(request)
    check_count(len(body.items), settings.bounds.max_prompts, "items", flag="max_prompts")
    check_count(len(body.label_token_ids), settings.bounds.max_labels, "label_token_ids", flag="max_labels")
    if len(set(body.label_token_ids)) < len(body.label_token_ids):
        raise RequestError("label_token_ids: a token stands there twice", param="label_token_ids")
    note.num_prompts, note.texts = len(body.items), [body.query, *body.items]
    limit = settings.engine.max_prompt_tokens
    texts = _texts(body)
    tokens = estimate(texts, limit) if texts is not None else len(body.items) * limit
    async with at_desk(request, body.model, tokens=tokens) as desk:
        needs_generation(desk.service)
        rows = await desk.off_loop(lambda: _ids(desk, body, texts))
        values = await (_among_labels if body.apply_softmax else _among_all)(desk, rows, tuple(body.label_token_ids))
        return desk, values, sum(map(len, rows))


def _texts(body: GenerativeScoringBody) -> list[str] | None:
    """The prompts as texts, or None where they are given as ids."""
    items = [item for item in body.items if isinstance(item, str)]
    if bool(items) != isinstance(body.query, str):
        raise RequestError("query and items must both be texts, or both token ids", param="items")
    if not isinstance(body.query, str):
        return None
    return [item + body.query if body.item_first else body.query + item for item in items]


def _ids(desk: Desk, body: GenerativeScoringBody, texts: list[str] | None) -> list[list[int]]:
    model, limit = desk.service.texts, desk.max_prompt_tokens
    model.check_ids([body.label_token_ids], limit=len(body.label_token_ids))
    if texts is not None:
        return model.prompts(texts, limit=limit, truncate=False)
    end = [model.eos_id] if body.add_special_tokens and model.eos_id is not None else []
    query = [*body.query] if not isinstance(body.query, str) else []
    items = [[*item] for item in body.items if not isinstance(item, str)]
    rows = [(item + query if body.item_first else query + item) + end for item in items]
    model.check_ids(rows, limit=limit)
    return rows


async def _among_labels(desk: Desk, rows: Sequence[list[int]], labels: tuple[int, ...]) -> list[float]:
    logits = await logits_of(desk, [ScoreRequest(row, None, labels) for row in rows])
    return [1 / sum(math.exp(min(other - row[0], 700)) for other in row) for row in logits]


async def _among_all(desk: Desk, rows: Sequence[list[int]], labels: tuple[int, ...]) -> list[float]:
    async with desk.call([GenerateRequest(row, ONE_TOKEN) for row in rows], last=False) as call:
        found = [outcome for outcome in await call.outcomes() if isinstance(outcome, Result)]
    chosen = [result.generations[0].logprobs for result in found]
    if not all(chosen):
        raise EngineFailed("the engine gave no log-probability")
    requests = [
        ScoreRequest(row, None, (labels[0], tokens[0].token_id)) for row, tokens in zip(rows, chosen, strict=True)
    ]
    logits = await logits_of(desk, requests)
    return [
        math.exp(min(0.0, label - other + tokens[0].logprob))
        for (label, other), tokens in zip(logits, chosen, strict=True)
    ]
