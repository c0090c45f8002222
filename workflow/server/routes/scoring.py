"""`/score` in our own shape, vLLM's `/generative_scoring`, and `/rerank` with Cohere's,
Jina's and text-embeddings-inference's bodies.

Knows nothing of how scores are made.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from workflow.data.scoring import Scoring
from workflow.data.sources import Row
from workflow.server.answers import ERRORS, fresh_id, now_s
from workflow.server.bounds import TRUNCATE
from workflow.server.desk import Desk, answered
from workflow.server.generating import usage_of
from workflow.server.generative_scoring import label_probabilities
from workflow.server.ranking_schemas import (
    AnyRerankBody,
    Document,
    GenerativeScoringAnswer,
    GenerativeScoringBody,
    RankedDocument,
    ReadTokens,
    RerankAnswer,
    RerankBody,
    RerankMeta,
    ScoringItem,
    TeiRank,
    TeiRerankBody,
    kept_side,
)
from workflow.server.schemas import ScoreAnswer, ScoreAnswers, ScoreBody
from workflow.server.scoring import Ranking, Rows, Scored, best, ranked, scored
from workflow.server.strict_route import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["score"], responses=ERRORS)

CUT_PAIRS = f'{TRUNCATE}, or "max_tokens_per_doc": N'
Model = Annotated[str | None, Query(max_length=300, description="a run's name, for bodies that cannot say it")]


@router.post("/score", response_model=ScoreAnswer | ScoreAnswers)
async def score(request: Request, body: ScoreBody) -> object:
    """Scores an input, or several: probabilities of the run's labels, or of label words given here."""
    inputs: list[str | Row] = [body.input] if body.input is not None else [*(body.inputs or ())]
    wanted = Rows(body.model, inputs, body.labels, body.template, body.truncate)
    desk, scoring, found = await answered(request, scored(request, wanted))
    answers = [_answer(desk, scoring, row) for row in found]
    if body.input is not None:
        return answers[0]
    total = usage_of(sum(row.num_tokens for row in found), 0)
    return ScoreAnswers(model=desk.service.name, results=answers, usage=total)


@router.post("/generative_scoring", response_model=GenerativeScoringAnswer)
async def generative_scoring(request: Request, body: GenerativeScoringBody) -> object:
    """Scores items by the probability of the first label token, as vLLM does."""
    desk, values, num_tokens = await answered(request, label_probabilities(request, body))
    return GenerativeScoringAnswer(
        id=fresh_id("score"),
        created=now_s(),
        model=desk.service.name,
        data=[ScoringItem(index=number, score=value) for number, value in enumerate(values)],
        usage=usage_of(num_tokens, 0),
    )


@router.post("/rerank", response_model=RerankAnswer | list[TeiRank], response_model_exclude_unset=True)
async def rerank(request: Request, body: AnyRerankBody, model: Model = None) -> object:
    """Orders documents by their score for a query, each pair read in the run's own template. The body may be
    text-embeddings-inference's (`texts`); the answer then is too."""
    if isinstance(body, TeiRerankBody):
        return await _tei(request, body, model)
    return await cohere(request, body)


@router.post("/v1/rerank", response_model=RerankAnswer, response_model_exclude_unset=True)
@router.post("/v2/rerank", response_model=RerankAnswer, response_model_exclude_unset=True)
async def cohere(request: Request, body: RerankBody) -> object:
    """Orders documents by their score for a query, where Cohere's and Jina's clients ask for it."""
    wanted = Ranking(
        *(body.model, body.query, body.texts, body.cut),
        cut=CUT_PAIRS,
        longest=body.max_tokens_per_doc,
        keep=kept_side(body.truncation_side),
    )
    desk, found, num_tokens = await answered(request, ranked(request, wanted))
    results = [RankedDocument(index=number, relevance_score=found[number].score) for number in best(found, body.top_n)]
    for row in results if body.return_documents is not False else ():
        given = body.documents[row.index]
        row.document = Document.model_validate({"text": given} if isinstance(given, str) else given)
    return RerankAnswer(
        id=fresh_id("rerank"),
        model=desk.service.name,
        results=results,
        usage=usage_of(num_tokens, 0),
        meta=RerankMeta(tokens=ReadTokens(input_tokens=num_tokens, output_tokens=0)),
    )


async def _tei(request: Request, body: TeiRerankBody, model: str | None) -> list[TeiRank]:
    keep = kept_side(body.truncation_direction)
    name = model if body.model is None else body.model
    wanted = Ranking(name, body.query, body.texts, bool(body.truncate), param="texts", keep=keep)
    _, found, _ = await answered(request, ranked(request, wanted))
    rows = []
    for number in best(found, body.top_n, raw=body.raw_scores):
        row = TeiRank(index=number, score=found[number].raw if body.raw_scores else found[number].score)
        if body.return_text:
            row.text = body.texts[number]
        rows.append(row)
    return rows


def _answer(desk: Desk, scoring: Scoring, row: Scored) -> ScoreAnswer:
    regression = scoring.problem == "regression"
    return ScoreAnswer(
        model=desk.service.name,
        score=row.score,
        calibrated=row.calibrated,
        logits=row.logits,
        labels=[] if regression else [*scoring.labels],
        probabilities=None if regression else row.vector,
        prediction=row.prediction,
        usage=usage_of(row.num_tokens, 0),
    )
