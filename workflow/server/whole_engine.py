"""An engine that answers one job after another by `model.generate`, behind the interface of the engine that batches.

Knows nothing of texts' origin. It stands in until the batching engine does: no penalties, stop strings or biases.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch

from workflow.errors import ConfigError
from workflow.inference.engine import Request, TransformersEngine
from workflow.inference.requests import (
    Chunk,
    GenerateRequest,
    Generation,
    Job,
    Outcome,
    Result,
    ScoreRequest,
    TokenLogprob,
)
from workflow.inference.sampling import SamplingParams
from workflow.inference.scorer import Scorer
from workflow.inference.scorer import ScoreRequest as PaddedRequest


@dataclass(frozen=True)
class WholeLimits:
    """What the engine takes."""

    max_rows: int
    max_encode_tokens: int


class _NotTooShort(TransformersEngine):
    """Knows min_new_tokens too."""

    def _generation_config(self, params: SamplingParams) -> Any:
        config = super()._generation_config(params)
        config.min_new_tokens = params.min_new_tokens or None
        return config


class WholeEngine:
    """One job a step. `scorer` for models with a head of their own; else a T5, which does both."""

    def __init__(
        self, limits: WholeLimits, *, model: Any = None, tokenizer: Any = None, scorer: Scorer | None = None
    ) -> None:
        self.limits = limits
        self.can_generate = model is not None
        self.can_score = True
        self._model, self._tokenizer, self._scorer = model, tokenizer, scorer
        self._jobs: deque[Job] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a job waits."""
        return bool(self._jobs)

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ConfigError for what this engine cannot do."""
        if isinstance(job.request, GenerateRequest):
            if not self.can_generate:
                raise ConfigError("this model scores only")
            _check(job.request.params)
        self._jobs.append(job)

    def cancel(self, job: Job) -> None:
        """Takes a job out."""
        if job in self._jobs:
            self._jobs.remove(job)
            job.on_done(ConfigError("cancelled"))

    def step(self) -> bool:
        """Answers the job that waits longest."""
        if not self._jobs:
            return False
        job = self._jobs.popleft()
        try:
            outcome: Outcome = self._answer(job)
        except Exception as error:
            outcome = error
        job.on_done(outcome)
        return True

    @torch.no_grad()
    def _answer(self, job: Job) -> Outcome:
        request = job.request
        if isinstance(request, ScoreRequest):
            return self._score(request)
        engine = _NotTooShort(self._model, self._tokenizer, label_tokens=request.label_tokens)
        plain = replace(request.params, logprobs=None)
        (result,) = engine.generate([Request(request.token_ids, request.seed)], plain)
        generations = tuple(
            Generation(
                *(made.token_ids, made.text, made.finish_reason),
                self._logprobs(request, made.token_ids),
                len(made.token_ids) + (made.finish_reason == "stop"),
            )
            for made in result.generations
        )
        for index, generation in enumerate(generations if job.on_chunk is not None else ()):
            self._stream(job, index, generation)
        return Result(generations, result.scores)

    def _score(self, request: ScoreRequest) -> tuple[float, ...]:
        if self._scorer is not None:
            found = self._scorer.score([PaddedRequest(request.token_ids, request.token_types)])[0]
            return tuple(float(value) for value in found)
        logits = self._logits(request.token_ids, [])[0]
        return tuple(logits[list(request.label_tokens or ())].tolist())

    def _logits(self, source: Any, target: list[int]) -> torch.Tensor:
        device = self._model.get_input_embeddings().weight.device
        start = self._model.config.decoder_start_token_id
        output = self._model(
            input_ids=torch.tensor([list(source)], device=device),
            decoder_input_ids=torch.tensor([[start, *target]], device=device),
            use_cache=False,
        )
        logits: torch.Tensor = output.logits[0].float().cpu()
        return logits

    def _logprobs(self, request: GenerateRequest, ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        wanted = request.params.logprobs
        if wanted is None or not ids:
            return ()
        rows = self._logits(request.token_ids, [*ids[:-1]]).log_softmax(dim=-1)
        found = []
        for token, row in zip(ids, rows, strict=True):
            values, tokens = row.topk(wanted)
            top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
            found.append(TokenLogprob(token, float(row[token]), top))
        return tuple(found)

    def _stream(self, job: Job, index: int, generation: Generation) -> None:
        assert job.on_chunk is not None
        told = ""
        for place in range(len(generation.token_ids)):
            text = self._tokenizer.decode(
                generation.token_ids[: place + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            if text.startswith(told) and not text.endswith("�"):
                told, piece = text, text[len(told) :]
            else:
                piece = ""
            job.on_chunk(Chunk(index, piece, generation.logprobs[place : place + 1], place + 1))
        rest = generation.logprobs[len(generation.token_ids) :]
        job.on_chunk(Chunk(index, generation.text[len(told) :], rest, generation.num_tokens, generation.finish_reason))


def _check(params: SamplingParams) -> None:
    plain = SamplingParams(
        params.max_new_tokens,
        params.min_new_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        n=params.n,
        num_beams=params.num_beams,
        logprobs=params.logprobs,
    )
    if params != plain:
        raise ConfigError("this engine knows new tokens, temperature, top_k, top_p, n, num_beams and logprobs alone")
