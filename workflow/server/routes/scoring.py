"""`/score` in our own shape, vLLM's `/generative_scoring`, and `/rerank`.

Knows nothing of how scores are made.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from workflow.data.scoring import Scoring
from workflow.data.sources import Row
from workflow.server.answers import ERRORS, fresh_id, now_s
from workflow.server.desk import Desk, answered
from workflow.server.generating import usage_of
from workflow.server.generative_scoring import label_probabilities
from workflow.server.ranking_schemas import (
    Document,
    GenerativeScoringAnswer,
    GenerativeScoringBody,
    RankedDocument,
    RerankAnswer,
    RerankBody,
    ScoringItem,
)
from workflow.server.schemas import ScoreAnswer, ScoreAnswers, ScoreBody
from workflow.server.scoring import Rows, Scored, ranked, scored
from workflow.server.strict_route import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["score"], responses=ERRORS)


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


@router.post("/rerank", response_model=RerankAnswer)
async def rerank(request: Request, body: RerankBody) -> object:
    """Orders documents by their score for a query, each pair read in the run's own template."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    desk, found, num_tokens = await answered(
        request, ranked(request, body.model, body.query, texts, truncate=body.truncate)
    )
    order = sorted(range(len(found)), key=lambda number: -found[number])
    results = [
        RankedDocument(
            index=number,
            document=Document(text=texts[number]) if body.return_documents else None,
            relevance_score=found[number],
        )
        for number in order[: body.top_n or len(order)]
    ]
    return RerankAnswer(id=fresh_id("rerank"), model=desk.service.name, results=results, usage=usage_of(num_tokens, 0))


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
