"""The engine: requests of token ids join and leave at every step, whatever others are running.

Knows nothing of texts' origin, files, transport or ranks' work division. Evaluation inside a training run, batch
generation, batch scoring and the server drive this one engine; it belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from workflow.inference.beams import Beam, BeamSearch
from workflow.inference.graphs import cuda_capture
from workflow.inference.interface import Cancelled, EngineLimits, Together
from workflow.inference.likelihood import Likelihoods
from workflow.inference.requests import (
    Chunk,
    GenerateRequest,
    Job,
    LikelihoodRequest,
    Outcome,
    Result,
    ScoreRequest,
)
from workflow.inference.runner import T5Runner
from workflow.inference.sampler import next_tokens
from workflow.inference.scheduler import Demand, Limits, Scheduler
from workflow.inference.sequence import Answer
from workflow.models.answers import AnswerTexts
from workflow.models.ends import end_tokens
from workflow.models.ragged_t5 import Encoded
from workflow.models.t5_weights import T5Weights, whole_already


class T5Engine:
    """Generates and scores with a T5-family model, as its weights are at each step.

    `fuse` joins the weights, for models that are not trained any more; `label_tokens` are what scores are of by default.
    `answers` writes tokens as texts; without it, no special token is kept.
    """

    can_generate = True
    can_score = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limits: EngineLimits | None = None,
        label_tokens: Sequence[int] | None = None,
        fuse: bool = False,
        together: Together | None = None,
        answers: AnswerTexts | None = None,
    ) -> None:
        self.model = model
        self.texts = answers or AnswerTexts(tokenizer)
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens(model)
        self.limits = limits or EngineLimits()
        self.label_tokens = tuple(label_tokens) if label_tokens is not None else None
        weights = T5Weights(model, fuse=fuse, gather=together.gather if together else whole_already)
        self.runner = T5Runner(weights, capture=cuda_capture if fuse and weights.device.type == "cuda" else None)
        self.scheduler: Scheduler[Job] = Scheduler(
            Limits(self.limits.max_rows, self.limits.max_encode_tokens, self.limits.max_cache_tokens)
        )
        self.fused = fuse
        self.together = together
        self._open: dict[int, Job] = {}
        self._given: Likelihoods | None = None

    @property
    def has_work(self) -> bool:
        """Whether any job is waiting or running."""
        return bool(self._open)

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that can never run."""
        request = job.request
        if isinstance(request, LikelihoodRequest):
            if self.together is not None or not request.completion:
                raise ValueError("an answer's likelihood needs an answer, and weights that no ranks share")
        elif isinstance(request, ScoreRequest) and (request.label_tokens or self.label_tokens) is None:
            raise ValueError("no label tokens: neither the request nor the engine has any")
        self.scheduler.add(self._demand(job))
        self._open[id(job)] = job

    def _demand(self, job: Job) -> Demand[Job]:
        request, tokens = job.request, len(job.request.token_ids)
        if isinstance(request, LikelihoodRequest):
            return Demand(job, "score", tokens + len(request.completion))
        if isinstance(request, ScoreRequest):
            return Demand(job, "score", tokens)
        rows = request.params.n * request.params.num_beams  # one of them is 1
        return Demand(job, "generate", tokens, rows, held=rows * (tokens + request.params.max_new_tokens))

    def cancel(self, job: Job) -> None:
        """Ends a job with `Cancelled`."""
        if id(job) in self._open:
            self._end(job, Cancelled())

    def step(self) -> bool:
        """One step of all that is running, here or on any rank that shares the weights."""
        admitted = [demand.item for demand in self.scheduler.admit()]
        given = [job for job in admitted if isinstance(job.request, LikelihoodRequest)]
        if given:
            self._guarded(given, lambda: self._likelihoods(given))
        fresh = [job for job in admitted if not isinstance(job.request, LikelihoodRequest)]
        generate = [job for job in fresh if isinstance(job.request, GenerateRequest)]
        wanted = [_labels_of(job.request, self.label_tokens) for job in fresh]
        encodes, scores, starts = self._any(bool(fresh), any(labels is not None for labels in wanted), bool(generate))
        if encodes:
            self._guarded(fresh, lambda: self._admit(fresh, wanted, scores=scores, starts=starts))
        (decodes,) = self._any(bool(self.runner.rows))
        if decodes:
            self._guarded([self._job_of(row) for _, row in self.runner.rows], self._decode)
        worked = bool(given or encodes or decodes)
        if not (worked or self.fused):
            self.runner.clear()  # training needs the memory, and changes the biases
        return worked

    def _any(self, *mine: bool) -> Sequence[bool]:
        return mine if self.together is None else self.together.agree(mine)

    def _guarded(self, jobs: Sequence[Job], work: Callable[[], None]) -> None:
        """Does work for some jobs; what it raises ends these jobs and no other (ranks in step must all stop instead)."""
        try:
            work()
        except Exception as error:
            if self.together is not None or not jobs or isinstance(error, torch.AcceleratorError):
                raise  # the ranks, or the device, are lost
            for job in jobs:
                if id(job) in self._open:
                    self._end(job, error)

    def _likelihoods(self, jobs: Sequence[Job]) -> None:
        """Scores answers that are given. Without gradients, and in no step with other ranks."""
        if self._given is None:
            self._given = Likelihoods(self.model)
        requests = [job.request for job in jobs if isinstance(job.request, LikelihoodRequest)]
        for job, result in zip(jobs, self._given(requests), strict=True):
            self._end(job, result)

    def _admit(
        self, jobs: Sequence[Job], wanted: Sequence[tuple[int, ...] | None], *, scores: bool, starts: bool
    ) -> None:
        encoded = self.runner.encode([job.request.token_ids for job in jobs] or [[self.tokenizer.eos_token_id]])
        if scores:
            self._first_logits(jobs, wanted, encoded)
        if starts:
            rows = [
                (number, self._rows(job)) for number, job in enumerate(jobs) if isinstance(job.request, GenerateRequest)
            ]
            self.runner.start(encoded, rows)

    def _first_logits(self, jobs: Sequence[Job], wanted: Sequence[tuple[int, ...] | None], encoded: Encoded) -> None:
        asked = [(number, labels) for number, labels in enumerate(wanted) if labels is not None]
        logits = self.runner.first_logits(encoded, asked)
        for (number, _), found in zip(asked, logits, strict=True):
            job = jobs[number]
            if isinstance(job.request, ScoreRequest):
                self._end(job, tuple(found.tolist()))
            else:
                job.state = _Running([], tuple(found.softmax(dim=-1).tolist()))

    def _rows(self, job: Job) -> list[_JobAnswer] | list[Beam]:
        """What decodes for a job, a row of the steps each."""
        request = job.request
        assert isinstance(request, GenerateRequest)
        state = job.state = _Running([], job.state.scores if job.state else None)
        if request.params.num_beams > 1:
            search = state.search = _JobSearch(request.params, self.end_tokens, self.texts, job=job)
            return search.beams
        state.answers = [
            _JobAnswer(
                index,
                request.params,
                request.seed,
                self.end_tokens,
                self.texts,
                blanks_may_go=self.texts.blanks_may_go,
                job=job,
            )
            for index in range(request.params.n)
        ]
        return state.answers

    @staticmethod
    def _job_of(row: _JobAnswer | Beam) -> Job:
        return row.job if isinstance(row, _JobAnswer) else cast("_JobSearch", row.search).job

    def _decode(self) -> None:
        rows: list[_JobAnswer | Beam] = [row for _, row in self.runner.rows]
        start = self.model.config.decoder_start_token_id
        logits = self.runner.decode([row.tokens[-1] if row.tokens else start for row in rows])
        places = {id(row): place for place, row in enumerate(rows)}
        answers = [row for row in rows if isinstance(row, _JobAnswer)]
        if answers:
            self._extend(answers, logits[[places[id(row)] for row in answers]] if len(answers) < len(rows) else logits)
        searches = {id(row.search): cast("_JobSearch", row.search) for row in rows if isinstance(row, Beam)}
        for search in searches.values():
            found = logits[[places[id(beam)] for beam in search.beams]]
            self._alone(search.job, lambda: self._advance(search, found))  # noqa: B023  # runs at once

    def _extend(self, answers: Sequence[_JobAnswer], logits: torch.Tensor) -> None:
        failed: dict[int, tuple[Job, Exception]] = {}
        for answer, choice in zip(answers, next_tokens(logits, answers), strict=True):
            if isinstance(choice, Exception):
                failed[id(answer.job)] = answer.job, choice
            elif id(answer.job) not in failed:
                self._alone(answer.job, lambda: answer.add(*choice))  # noqa: B023  # runs at once
        for job, error in failed.values():
            self._end(job, error)
        self._publish([answer for answer in answers if id(answer.job) in self._open])

    def _advance(self, search: _JobSearch, logits: torch.Tensor) -> None:
        self.runner.copy(search.advance(logits))
        if search.is_over:
            answer = search.generation()
            if search.job.on_chunk is not None:
                search.job.on_chunk(Chunk(0, answer.text, (), answer.num_tokens, answer.finish_reason))
            self._end(search.job, Result((answer,), search.job.state.scores))

    def _publish(self, answers: Sequence[_JobAnswer]) -> None:
        """Tells the jobs what is new, and ends those whose answers are all finished."""
        self.runner.stop([answer for answer in answers if answer.finish_reason])
        for answer in answers:
            if answer.job.on_chunk is not None:
                self._alone(answer.job, lambda: _tell(answer))  # noqa: B023
        for job in {id(answer.job): answer.job for answer in answers if answer.finish_reason}.values():
            if all(answer.finish_reason for answer in job.state.answers):
                self._alone(job, lambda: self._complete(job))  # noqa: B023

    def _complete(self, job: Job) -> None:
        generations = tuple(answer.generation() for answer in job.state.answers)
        self._end(job, Result(generations, job.state.scores))

    def _alone(self, job: Job, work: Callable[[], None]) -> None:
        """Does what concerns one job; what it raises ends that job alone."""
        try:
            if id(job) in self._open:
                work()
        except Exception as error:
            if id(job) in self._open:
                self._end(job, error)

    def _end(self, job: Job, outcome: Outcome) -> None:
        del self._open[id(job)]
        self.scheduler.drop(job)
        if isinstance(job.state, _Running):
            self.runner.stop(job.state.rows)
        job.on_done(outcome)


@dataclass(eq=False)
class _JobAnswer(Answer):
    job: Job = None  # type: ignore[assignment]  # always given; a field after defaults needs one


@dataclass(eq=False)
class _JobSearch(BeamSearch):
    job: Job = None  # type: ignore[assignment]  # likewise


def _tell(answer: _JobAnswer) -> None:
    if answer.job.on_chunk is not None and (chunk := answer.chunk()) is not None:
        answer.job.on_chunk(chunk)


@dataclass
class _Running:
    """An admitted generation: its answers or its beam search, and its label probabilities."""

    answers: list[_JobAnswer]
    scores: tuple[float, ...] | None
    search: _JobSearch | None = None

    @property
    def rows(self) -> Sequence[_JobAnswer | Beam]:
        """What has slots."""
        return self.search.beams if self.search is not None else self.answers


def _labels_of(request: GenerateRequest | ScoreRequest, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The vocabulary rows whose first-position logits a request asks for."""
    if isinstance(request, ScoreRequest):
        return request.label_tokens or default
    return request.label_tokens
