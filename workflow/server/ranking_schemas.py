"""Bodies and answers of the routes that other servers have for scores: vLLM's generative scoring, and rerank.

Knows nothing of models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from workflow.errors import RequestError
from workflow.server.openai_schemas import Ids, SeveralIds, SeveralTexts
from workflow.server.schemas import (
    Answer,
    Body,
    Cut,
    Natural,
    Positive,
    Strings,
    Text,
    Unsupported,
    Usage,
    only_neutral,
)

Side = Literal["left", "right", "Left", "Right"]
UNSUPPORTED = {
    "priority": Unsupported("requests are answered in their order", (0,)),
    "instruction": Unsupported("the run's template says what is asked", ("",)),
    "max_tokens_per_query": Unsupported("shorten the query"),
    "relevant_spans": Unsupported("a document is scored as a whole"),
}


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
    """A document as it was given; of a text, the text."""

    model_config = ConfigDict(extra="allow")

    text: Any = None


class RerankBody(Body):
    """A query and the documents to order by how well they answer it, in the run's own template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "ranker", "query": "rain", "documents": ["It pours.", "It is dry."]}]}
    )

    model: str | None = None
    query: str = Field(min_length=1)
    documents: list[Text | dict[str, Any]] = Field(
        min_length=1, fail_fast=True, description="texts, or objects whose `rank_fields` are read"
    )
    rank_fields: Strings | None = Field(None, description="fields of objects, joined by spaces; by default `text`")
    top_n: Natural | None = Field(None, description="the best so many; by default, and for 0, all")
    return_documents: bool | None = Field(None, description="by default true")
    truncate: Cut = Field(
        False,
        description="cut too long pairs as in training instead of refusing them; or those above this number of tokens",
    )
    max_tokens_per_doc: Positive | None = Field(None, description="cut the end of longer documents")
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="vLLM's `truncate`: -1 or a number of tokens")
    truncation_side: Side | None = Field(None, description="which side is cut; by default, as in training")
    max_chunks_per_doc: Positive | None = Field(None, description="without effect: a document is one chunk")
    priority: Any = UNSUPPORTED["priority"].field()
    instruction: Any = UNSUPPORTED["instruction"].field()
    max_tokens_per_query: Any = UNSUPPORTED["max_tokens_per_query"].field()
    relevant_spans: Any = UNSUPPORTED["relevant_spans"].field()

    _neutral = only_neutral(UNSUPPORTED)

    @property
    def cut(self) -> bool | int:
        """Where pairs are cut, in our own words."""
        return self.truncate or self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens or False

    @property
    def texts(self) -> list[str]:
        """What is read of each document. Raises RequestError."""
        return [
            document if isinstance(document, str) else self._text(number, document)
            for number, document in enumerate(self.documents)
        ]

    def _text(self, number: int, document: dict[str, Any]) -> str:
        fields = self.rank_fields or ["text"]
        values = [document.get(field) for field in fields]
        texts = [value for value in values if isinstance(value, str) and value]
        if len(texts) < len(fields):
            missing = next(field for field, value in zip(fields, values, strict=True) if value not in texts)
            raise RequestError(
                f"documents.{number}: the field {missing[:100]!a} must be a text; rank_fields names what is read of objects",
                param=f"documents.{number}",
            )
        return " ".join(texts)


class TeiRerankBody(Body):
    """The same in the words of text-embeddings-inference. `model` and `top_n` are ours."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "ranker", "query": "rain", "texts": ["It pours.", "It is dry."]}]}
    )

    model: str | None = None
    query: str = Field(min_length=1)
    texts: list[Text] = Field(min_length=1, fail_fast=True)
    raw_scores: bool = Field(False, description="the difference of the two labels' logits, not their probability")
    return_text: bool = False
    top_n: Natural | None = Field(None, description="the best so many; by default, and for 0, all")
    truncate: bool | None = Field(None, description="cut too long pairs instead of refusing them")
    truncation_direction: Side | None = Field(None, description="which side is cut; by default, as in training")


def kept_side(cut: str | None) -> str | None:
    """Which side stays where one is cut; None for the run's own way."""
    return {"left": "end", "right": "start"}.get((cut or "").lower())


def _kind(value: object) -> str:
    theirs = "texts" in value if isinstance(value, dict) else isinstance(value, TeiRerankBody)
    return "tei" if theirs else "ours"


AnyRerankBody = Annotated[
    Annotated[RerankBody, Tag("ours")] | Annotated[TeiRerankBody, Tag("tei")],
    Discriminator(_kind),
]


class RankedDocument(Answer):
    """A document's place in the request, and its score."""

    index: int
    document: Document | None = None
    relevance_score: float


class ReadTokens(Answer):
    """Tokens read, in Cohere's words."""

    input_tokens: int
    output_tokens: int


class RerankMeta(Answer):
    """What Cohere's clients look for beside the results."""

    tokens: ReadTokens


class RerankAnswer(Answer):
    """The documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage
    meta: RerankMeta


class TeiRank(Answer):
    """A text's place in the request, and its score."""

    index: int
    score: float
    text: str | None = None
