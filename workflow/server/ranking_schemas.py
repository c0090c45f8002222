"""Bodies and answers of the routes that other servers have for scores: vLLM's generative scoring, and rerank.

Knows nothing of models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from workflow.server.openai_schemas import Ids, SeveralIds, SeveralTexts
from workflow.server.schemas import Answer, Body, Natural, Text, Usage


class GenerativeScoringBody(Body):
    """How likely label tokens are as the first token of the answer to each item, joined with the query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "quickstart",
                    "query": "Is this the capital of France? ",
                    "items": ["Paris", "Lyon"],
                    "label_token_ids": [4273, 150],
                }
            ]
        }
    )

    model: str | None = None
    query: str | Ids = Field(description="a text, or token ids")
    items: SeveralTexts | SeveralIds = Field(description="texts, or token ids where the query is token ids")
    label_token_ids: Ids
    apply_softmax: bool = Field(True, description="over the labels alone; false: over the whole vocabulary")
    item_first: bool = False
    add_special_tokens: bool = Field(True, description="end token ids, too, with the end of sequence")


class ScoringItem(Answer):
    """An item's score: the probability of the first label."""

    index: int
    object: Literal["score"] = "score"
    score: float


class GenerativeScoringAnswer(Answer):
    """A score for each item, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoringItem]
    usage: Usage


class Document(Answer):
    """A document's text."""

    text: str


class DocumentBody(Body):
    """A document's text."""

    text: str = Field(min_length=1)


class RerankBody(Body):
    """A query and the documents to order by how well they answer it, in the run's own template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "ranker", "query": "rain", "documents": ["It pours.", "It is dry."]}]}
    )

    model: str | None = None
    query: str = Field(min_length=1)
    documents: list[Text | DocumentBody] = Field(min_length=1, fail_fast=True)
    top_n: Natural | None = Field(None, description="the best so many; by default, and for 0, all")
    return_documents: bool = True
    truncate: bool = False


class RankedDocument(Answer):
    """A document's place in the request, and its score."""

    index: int
    document: Document | None
    relevance_score: float


class RerankAnswer(Answer):
    """The documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage
