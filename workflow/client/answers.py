"""What clients give back: plain frozen dataclasses, checked when they are read.

Knows nothing of requests. Fields that a newer server adds are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Score = float | list[float]


@dataclass(frozen=True)
class Usage:
    """Tokens read and generated, ends of sequences included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class ShownToken:
    """A token and its log-probability (log-softmax of the raw logits)."""

    id: int
    token: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(ShownToken):
    """A generated token, and the most likely ones at its place."""

    top: list[ShownToken]


@dataclass(frozen=True)
class Generation:
    """One sample. `finish_reason` is "stop" or "length"."""

    index: int
    text: str
    finish_reason: str
    num_tokens: int
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True)
class GenerateAnswer:
    """The samples of one prompt."""

    model: str
    generations: list[Generation]
    usage: Usage

    @property
    def text(self) -> str:
        """The first sample's text."""
        return self.generations[0].text


@dataclass(frozen=True)
class GenerateAnswers:
    """The answers to several prompts, in their order."""

    model: str
    results: list[GenerateAnswer]
    usage: Usage

    @property
    def texts(self) -> list[str]:
        """Each prompt's first sample."""
        return [answer.text for answer in self.results]


@dataclass(frozen=True)
class Piece:
    """A token of a stream. The last one has a `finish_reason`, and says how many tokens there were and which seed.

    Texts of pieces, joined, are the answer's text; a piece may be empty, where a character needs several tokens.
    """

    text: str
    token_id: int
    logprob: float
    finish_reason: str | None = None
    num_tokens: int | None = None
    prompt_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ScoreAnswer:
    """`score` is p(second label) where there are two, else a number a label, or the number that a regression gives.

    `calibrated` is None for runs without a calibration; `prediction` is what prediction files hold.
    """

    model: str
    score: Score
    calibrated: Score | None
    logits: list[float]
    labels: list[str]
    probabilities: list[float] | None
    prediction: Score
    usage: Usage


@dataclass(frozen=True)
class ScoreAnswers:
    """The scores of several inputs, in their order."""

    model: str
    results: list[ScoreAnswer]
    usage: Usage


@dataclass(frozen=True)
class _Document:
    text: str


@dataclass(frozen=True)
class RankedDocument:
    """A document's place in the request, and its score."""

    index: int
    relevance_score: float
    document: _Document | None = None


@dataclass(frozen=True)
class RerankAnswer:
    """The documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage


@dataclass(frozen=True)
class Model:
    """A run that can be served; `created` is when its checkpoint was written, in Unix time."""

    id: str
    created: int


@dataclass(frozen=True)
class Models:
    """All runs."""

    data: list[Model]


@dataclass(frozen=True)
class Run:
    """A run in the table of `info()`; None for what is known only once it is loaded."""

    name: str
    state: str
    checkpoint: str
    task: str
    can_generate: bool | None = None
    can_score: bool | None = None
    problem: str | None = None
    labels: list[str] | None = None
    template: str | None = None
    calibrated: bool | None = None
    max_prompt_tokens: int | None = None
    default_new_tokens: int | None = None
    memory_bytes: int | None = None
    device: str | None = None
    precision: str | None = None
    requests: int = 0


@dataclass(frozen=True)
class Info:
    """The server, its runs, and its bounds."""

    version: str
    models: list[Run]
    default_model: str | None
    bounds: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """Whether the server lives, or is ready; and in which state it is."""

    ok: bool
    status: str
