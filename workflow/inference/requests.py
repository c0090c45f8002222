"""What goes into an engine and what comes out of it: requests of token ids, results, and the pieces of a stream.

Knows nothing of models, texts' origin or transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow.inference.sampling import SamplingParams


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt: its token ids (end of sequence included), how to decode, and the seed of its samples.

    `label_tokens` are the tokens whose probabilities become `Result.scores`; None gives no scores.
    """

    token_ids: Sequence[int]
    params: SamplingParams
    seed: int = 0
    label_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """One input: its token ids, special tokens included, and their types where the model takes them.

    `label_tokens` are the vocabulary rows whose first-position logits are asked of a T5; None for the labels that the
    engine was made with. Models with a classification head have their own labels alone.
    """

    token_ids: Sequence[int]
    token_types: Sequence[int] | None = None
    label_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LikelihoodRequest(ScoreRequest):
    """An input and the tokens of an answer, each of which is scored behind those before it.

    Its outcome is a `Result` of this answer, with `num_top` most likely tokens at each place.
    """

    completion: Sequence[int] = ()
    num_top: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token's log-probability (log-softmax of the raw logits), and the most likely tokens with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """One answer. `finish_reason` is "stop" (end of sequence, or a stop string) or "length" (cut by max_new_tokens).

    `token_ids` are without the end of sequence; `num_tokens` counts every generated token, the end included.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0


@dataclass(frozen=True)
class Result:
    """The answers to one request, and the softmax over the raw logits of the label tokens at the first position."""

    generations: tuple[Generation, ...]
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Chunk:
    """What one decode step adds to sample `index` of a streamed request; `text` may be empty while it is undecided.

    The texts of a sample's chunks, joined, are its `Generation.text`; the last chunk has the `finish_reason`.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish_reason: str | None = None


Outcome = Result | tuple[float, ...] | BaseException
"""How a job ended: a generation's Result, a score's fp32 logits of the labels, or why it failed."""


@dataclass(eq=False)
class Job:
    """A request on its way through an engine. The callbacks run in the engine's thread and must be quick.

    `on_done` is called exactly once, also after `cancel`.
    """

    request: GenerateRequest | ScoreRequest
    on_done: Callable[[Outcome], None]
    on_chunk: Callable[[Chunk], None] | None = None
    state: Any = field(default=None, repr=False)
    """The engine's own notes about the job."""
