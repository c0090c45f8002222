"""The engine of models with a classification head (BERT family, GPT-2): scores alone.

Knows nothing of files or of how ranks divide the work. Inputs are packed one after another where the model has a
ragged form, the one that trains it; else they are padded, in batches of like length (of equal length, where padding
changes the model's scores).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from workflow.data.packing import Ragged, pad
from workflow.inference.engine import T5Engine
from workflow.inference.interface import Cancelled, Engine, EngineLimits, Together
from workflow.inference.requests import Job, Outcome, ScoreRequest
from workflow.models.classifier import LoadedClassifier
from workflow.models.ragged import ragged_form_of, why_padded

WASTE = 0.25
"""A padded batch's shortest input has at least three quarters of its longest's tokens, or waits for the next step."""


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
        self.packed = ragged_form_of(loaded.model, scores=True) if why_padded(loaded.model) is None else None
        self._waiting: deque[Job] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any job is waiting."""
        return bool(self._waiting)

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that can never run."""
        if type(job.request) is not ScoreRequest or job.request.label_tokens is not None:
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
        lengths: list[int] = []
        while self._waiting and len(jobs) < self.limits.max_rows:
            lengths.append(len(self._waiting[0].request.token_ids))
            if jobs and not self._fit(lengths):
                break
            jobs.append(self._waiting.popleft())
        return jobs

    def _fit(self, lengths: Sequence[int]) -> bool:
        """Whether inputs of these lengths make one batch."""
        if self.packed is not None:
            return sum(lengths) <= self.limits.max_encode_tokens
        shortest, longest = min(lengths), max(lengths)
        waste = 0 if self.loaded.of_one_length else WASTE
        return shortest >= longest * (1 - waste) and longest * len(lengths) <= self.limits.max_encode_tokens

    @torch.no_grad()
    def _logits(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """fp32 logits of each; no requests make one meaningless row, dropped by the caller."""
        model = self.loaded.model
        requests = requests or [ScoreRequest([self.loaded.tokenizer.pad_token_id], [0])]
        was_training = model.training
        model.eval()
        try:
            logits = (
                self._padded_logits(requests) if self.packed is None else self.packed(self._one_after_another(requests))
            )
        finally:
            model.train(was_training)
        return [tuple(row) for row in logits.tolist()]

    def _padded_logits(self, requests: Sequence[ScoreRequest]) -> torch.Tensor:
        loaded, device = self.loaded, self._device
        return loaded.logits(
            loaded.model,
            input_ids=pad([request.token_ids for request in requests], loaded.tokenizer.pad_token_id).to(device),
            attention_mask=pad([[1] * len(request.token_ids) for request in requests], 0).to(device),
            token_types=pad([_types(request) for request in requests], 0).to(device) if loaded.takes_types else None,
        )

    def _one_after_another(self, requests: Sequence[ScoreRequest]) -> Ragged:
        ids = torch.tensor([token for request in requests for token in request.token_ids])
        types = torch.tensor([kind for request in requests for kind in _types(request)])
        lengths = tuple(len(request.token_ids) for request in requests)
        return Ragged(ids, lengths, types if self.loaded.takes_types else None).to(self._device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.loaded.model.get_input_embeddings().weight.device
        return device


def _types(request: ScoreRequest) -> Sequence[int]:
    """Token types of an input, 0 where it has none."""
    return request.token_types or [0] * len(request.token_ids)
