"""The engine of models with a classification head (BERT family, GPT-2): scores alone, in padded batches of like length.

Knows nothing of files or of how ranks divide the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from workflow.data.packing import pad
from workflow.inference.engine import T5Engine
from workflow.inference.interface import Cancelled, Engine, EngineLimits, Together
from workflow.inference.requests import Job, Outcome, ScoreRequest
from workflow.models.classifier import LoadedClassifier

WASTE = 0.25
"""A batch's shortest input has at least three quarters of its longest's tokens, or waits for the next step."""


def score_engine(
    loaded: LoadedClassifier,
    *,
    limits: EngineLimits | None = None,
    together: Together | None = None,
    fuse: bool = False,
) -> Engine:
    """The engine for a model that scores. `fuse` is for models that are not trained any more."""
    if loaded.start_token is None:
        return HeadEngine(loaded, limits=limits, together=together)
    rows = loaded.model.lm_head.rows.tolist()
    return T5Engine(loaded.model, loaded.tokenizer, limits=limits, label_tokens=rows, fuse=fuse, together=together)


class HeadEngine:
    """Scores with a model as it is at each step."""

    can_generate = False
    can_score = True

    def __init__(
        self, loaded: LoadedClassifier, *, limits: EngineLimits | None = None, together: Together | None = None
    ) -> None:
        self.loaded = loaded
        self.limits = limits or EngineLimits()
        self.together = together
        self._waiting: deque[Job] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any job is waiting."""
        return bool(self._waiting)

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that can never run."""
        if not isinstance(job.request, ScoreRequest) or job.request.label_tokens is not None:
            raise ValueError("a model with a classification head scores its own labels and generates nothing")
        if not 0 < len(job.request.token_ids) <= self.limits.max_encode_tokens:
            raise ValueError(f"an input of {len(job.request.token_ids)} tokens exceeds {self.limits}")
        self._waiting.append(job)

    def cancel(self, job: Job) -> None:
        """Ends a job with `Cancelled`; one that is over is no error."""
        if job in self._waiting:
            self._waiting.remove(job)
            job.on_done(Cancelled())

    def step(self) -> bool:
        """Scores one batch: the oldest job, and those behind it that are of like length."""
        jobs = self._next_batch()
        works = self.together.agree([bool(jobs)])[0] if self.together is not None else bool(jobs)
        if not works:
            return False
        outcomes: Sequence[Outcome]
        try:
            outcomes = self._logits([job.request for job in jobs])  # type: ignore[misc]  # submit lets in no others
        except Exception as error:
            if self.together is not None:
                raise
            outcomes = [error] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=False):
            job.on_done(outcome)
        return True

    def _next_batch(self) -> list[Job]:
        jobs: list[Job] = []
        longest = shortest = 0
        while self._waiting and len(jobs) < self.limits.max_rows:
            length = len(self._waiting[0].request.token_ids)
            longest, shortest = max(longest, length), min(shortest or length, length)
            if jobs and (shortest < longest * (1 - WASTE) or longest * (len(jobs) + 1) > self.limits.max_encode_tokens):
                break
            jobs.append(self._waiting.popleft())
        return jobs

    @torch.no_grad()
    def _logits(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """fp32 logits of each; no requests make one meaningless row, dropped by the caller."""
        loaded, pad_id = self.loaded, self.loaded.tokenizer.pad_token_id
        requests = requests or [ScoreRequest([pad_id], [0])]
        device = loaded.model.get_input_embeddings().weight.device
        types = [request.token_types or [0] * len(request.token_ids) for request in requests]
        was_training = loaded.model.training
        loaded.model.eval()
        try:
            logits = loaded.logits(
                loaded.model,
                input_ids=pad([request.token_ids for request in requests], pad_id).to(device),
                attention_mask=pad([[1] * len(request.token_ids) for request in requests], 0).to(device),
                token_types=pad(types, 0).to(device) if loaded.takes_types else None,
            )
        finally:
            loaded.model.train(was_training)
        return [tuple(row) for row in logits.tolist()]
