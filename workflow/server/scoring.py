"""From rows and labels to scores: what /score, /generative_scoring and /rerank share.

Knows nothing of the shape of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from starlette.requests import Request

from workflow.data.scoring import Scoring
from workflow.data.sources import Row
from workflow.errors import RequestError
from workflow.inference.requests import ScoreRequest
from workflow.server.bounds import TRUNCATE, check_count, in_the_body_s_words
from workflow.server.desk import Desk, at_desk, estimate, note_of, state_of
from workflow.server.schemas import Score
from workflow.server.texts import ModelTexts, vectors

QUERY_FIELDS = ("query", "question", "sentence1", "input")
DOCUMENT_FIELDS = ("document", "passage", "text", "sentence2", "input_pair", "answer")


@dataclass(frozen=True)
class Pair:
    """A query and a document, whose names depend on the run's template."""

    query: str
    document: str


@dataclass(frozen=True)
class Rows:
    """What is to be scored."""

    model: str | None
    inputs: Sequence[str | Row | Pair]
    labels: Sequence[str] | None = None
    template: str | None = None
    truncate: bool | int = False
    param: str = "inputs"
    cut: str = TRUNCATE
    """How the body asks for too long texts to be cut."""
    longest: int | None = None
    """Tokens of a pair's document beyond which its end is cut."""
    keep: str | None = None
    """Which side of a too long text stays, where the request says it."""


@dataclass(frozen=True)
class Ranking:
    """Documents to be ordered for a query."""

    model: str | None
    query: str
    documents: Sequence[str]
    truncate: bool | int
    param: str = "documents"
    cut: str = TRUNCATE
    longest: int | None = None
    keep: str | None = None


@dataclass(frozen=True)
class Rank:
    """What orders a document: its score, and the same before it became a probability."""

    score: float
    raw: float


@dataclass(frozen=True)
class Scored:
    """One row's logits and what they say."""

    logits: list[float]
    vector: list[float]
    score: Score
    calibrated: Score | None
    prediction: Score
    num_tokens: int


async def scored(request: Request, wanted: Rows) -> tuple[Desk, Scoring, list[Scored]]:
    """Scores rows, in their order. Raises RequestError and its kin."""
    settings, note = state_of(request).settings, note_of(request)
    check_count(len(wanted.inputs), settings.bounds.max_prompts, wanted.param, flag="max_prompts")
    check_count(len(wanted.labels or ()), settings.bounds.max_labels, "labels", flag="max_labels")
    note.num_prompts = len(wanted.inputs)
    note.texts = wanted.inputs
    texts = [str(row) + (wanted.template or "") for row in wanted.inputs]
    async with at_desk(request, wanted.model, tokens=estimate(texts, settings.engine.max_prompt_tokens)) as desk:
        with in_the_body_s_words({}, wanted.cut):
            scoring, requests = await desk.off_loop(lambda: _prepare(desk, wanted))
        logits = await logits_of(desk, requests)
        found = _scores(desk.service.texts, scoring, logits, requests)
        note.answers = [row.score for row in found]
        return desk, scoring, found


async def logits_of(desk: Desk, requests: Sequence[ScoreRequest]) -> list[list[float]]:
    """The labels' raw logits of each request. Raises DamagedModel."""
    async with desk.call(requests) as call:
        outcomes = [outcome for outcome in await call.outcomes() if isinstance(outcome, tuple)]
    for _ in outcomes:
        desk.state.metrics.answered(desk.service.name, "stop")
    return [[*outcome] for outcome in outcomes]


def _prepare(desk: Desk, wanted: Rows) -> tuple[Scoring, list[ScoreRequest]]:
    texts = desk.service.texts
    scoring = texts.asked(wanted.labels, wanted.template)
    inputs = wanted.inputs
    if wanted.longest is not None:
        inputs = [_shortened(texts, given, wanted.longest) for given in inputs]
    rows = [as_row(given, scoring) for given in inputs]
    read = scoring if wanted.keep is None else replace(scoring, keep_source=wanted.keep)
    return scoring, texts.rows(rows, read, limit=desk.max_prompt_tokens, truncate=wanted.truncate)


def _shortened(texts: ModelTexts, given: str | Row | Pair, longest: int) -> str | Row | Pair:
    return Pair(given.query, texts.beginning(given.document, longest)) if isinstance(given, Pair) else given


def as_row(given: str | Row | Pair, scoring: Scoring) -> Row:
    """A text as a row: its one field where the template has one, else `input`."""
    if isinstance(given, Pair):
        return pair_row(given, scoring)
    if not isinstance(given, str):
        return given
    fields = scoring.texts.fields
    return {fields[0] if len(fields) == 1 else "input": given}


def _scores(
    texts: ModelTexts,
    scoring: Scoring,
    logits: list[list[float]],
    requests: Sequence[ScoreRequest],
) -> list[Scored]:
    # A calibration belongs to the labels and the template that it was fitted with.
    calibration = texts.calibration if scoring == texts.scoring else None
    calibrated = calibration.apply(np.asarray(logits)).tolist() if calibration is not None else [None] * len(logits)
    targets = scoring.targets()
    return [
        Scored(
            *(row, vector, vector[1] if scoring.problem == "binary" else _plain(scoring, vector), share),
            prediction=targets.prediction(vector),
            num_tokens=len(request.token_ids),
        )
        for row, vector, share, request in zip(logits, vectors(scoring, logits), calibrated, requests, strict=True)
    ]


def _plain(scoring: Scoring, vector: list[float]) -> Score:
    return vector[0] if scoring.problem == "regression" else vector


async def ranked(request: Request, wanted: Ranking) -> tuple[Desk, list[Rank], int]:
    """Each document's rank, and how many tokens were read. Raises RequestError."""
    pairs = [Pair(wanted.query, document) for document in wanted.documents]
    rows = Rows(
        *(wanted.model, pairs),
        truncate=wanted.truncate,
        param=wanted.param,
        cut=wanted.cut,
        longest=wanted.longest,
        keep=wanted.keep,
    )
    desk, scoring, found = await scored(request, rows)
    if scoring.problem not in ("binary", "regression"):
        raise RequestError(
            f"a run with the labels {', '.join(scoring.labels)} gives no single score to order by", param="model"
        )
    ranks = [
        Rank(row.score, row.logits[1] - row.logits[0] if scoring.problem == "binary" else row.score)
        for row in found
        if isinstance(row.score, float)
    ]
    return desk, ranks, sum(row.num_tokens for row in found)


def best(ranks: Sequence[Rank], count: int | None, *, raw: bool = False) -> list[int]:
    """The numbers of the best documents; by default, and for 0, of all."""
    order = sorted(range(len(ranks)), key=lambda number: -(ranks[number].raw if raw else ranks[number].score))
    return order[: count or len(order)]


def pair_row(pair: Pair, scoring: Scoring) -> Row:
    """A query and a document as the run's template reads them."""
    fields = scoring.texts.fields
    if not fields:
        return {"input": pair.query, "input_pair": pair.document}
    row: Row = {}
    for field in fields:
        if field not in QUERY_FIELDS + DOCUMENT_FIELDS:
            raise RequestError(
                f"the run's template reads {{{field}}}, which is neither of a query ({', '.join(QUERY_FIELDS)}) nor of a "
                f"document ({', '.join(DOCUMENT_FIELDS)}); use /score with objects",
                param="model",
            )
        row[field] = pair.query if field in QUERY_FIELDS else pair.document
    return row
