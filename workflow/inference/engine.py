"""The engine: prompts' token ids in, generations and first-position label probabilities out.

Knows nothing of texts' origin, files or ranks' work division. `Engine` is the interface that evaluation, batch
generation and the server share; `TransformersEngine` does its work by `model.generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from workflow.data.packing import pad
from workflow.inference.batching import batches_by_length
from workflow.inference.sampling import SamplingParams, choose


@dataclass(frozen=True)
class Request:
    """One prompt: its token ids (end of sequence included), and the seed of its samples."""

    token_ids: Sequence[int]
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """One answer. `finish_reason` is "stop" (end of sequence) or "length" (cut by max_new_tokens)."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Result:
    """The answers to one request, and the softmax over the raw logits of the label tokens at the first position."""

    generations: tuple[Generation, ...]
    scores: tuple[float, ...] | None


class Engine(Protocol):
    """What evaluation, batch generation and the server need of an engine."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Result]:
        """Answers one batch of requests, in their order. Under ZeRO-3 a collective call: all ranks make it alike."""


class TransformersEngine:
    """Padded batches through `model.generate`.

    `label_tokens` are the tokens whose probabilities become `Result.scores`; None gives no scores.
    `in_step` keeps ranks generating until all are done, which ZeRO-3 needs: each forward gathers weights.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, label_tokens: Sequence[int] | None, in_step: bool = False
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.label_tokens = tuple(label_tokens) if label_tokens is not None else None
        self.in_step = in_step

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Result]:
        """Answers one batch; no requests make one meaningless row, whose answer is dropped, to stay in step."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self._generate(requests, params)
        finally:
            self.model.train(was_training)

    def _generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Result]:
        # Samples of one prompt are rows of the batch: each has randomness of its own.
        rows = [list(request.token_ids) for request in requests for _ in range(params.n)] or [
            [self.tokenizer.eos_token_id]
        ]
        keys = [(request.seed, sample) for request in requests for sample in range(params.n)] or [(0, 0)]
        chooser = _Chooser(params, keys, self.label_tokens)
        sequences = self.model.generate(
            input_ids=pad(rows, self.tokenizer.pad_token_id).to(self._device()),
            attention_mask=pad([[1] * len(row) for row in rows], 0).to(self._device()),
            generation_config=self._generation_config(params),
            logits_processor=[chooser],
            synced_gpus=self.in_step,
        )
        answers = [self._generation(sequence) for sequence in sequences[:, 1:].tolist()]
        scores = chooser.label_probabilities()
        return [
            Result(
                tuple(answers[start : start + params.n]), tuple(scores[start].tolist()) if scores is not None else None
            )
            for start in range(0, len(requests) * params.n, params.n)
        ]

    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def _generation_config(self, params: SamplingParams) -> Any:
        from transformers import GenerationConfig

        config = self.model.config
        return GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            num_beams=params.num_beams,
            do_sample=False,  # sampling is the argmax of noisy logits, see sampling.choose
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )

    def _generation(self, sequence: list[int]) -> Generation:
        end = self.model.config.eos_token_id
        finished = end in sequence
        ids = sequence[: sequence.index(end)] if finished else sequence
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(tuple(ids), text, "stop" if finished else "length")


class _Chooser:
    """A logits processor: keeps the label logits of the first position, then turns logits into draws."""

    def __init__(
        self, params: SamplingParams, keys: Sequence[tuple[int, int]], label_tokens: Sequence[int] | None
    ) -> None:
        self.params = params
        self.keys = keys
        self.label_tokens = label_tokens
        self.first: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first is None and self.label_tokens is not None:
            # Under beam search these are log-probabilities, which give the same softmax over the labels.
            self.first = scores[:: self.params.num_beams, list(self.label_tokens)].float()
        return choose(scores, self.params, self.keys, position=input_ids.shape[1])

    def label_probabilities(self) -> torch.Tensor | None:
        """Softmax over the labels, [rows, labels] on the CPU."""
        return None if self.first is None else self.first.softmax(dim=-1).cpu()


def generate_all(
    engine: Engine,
    requests: Sequence[Request],
    params: SamplingParams,
    *,
    batch_size: int,
    num_batches: int | None = None,
) -> list[Result]:
    """Answers any number of requests by `batches_by_length`; the results keep the requests' order."""
    lengths = [len(request.token_ids) for request in requests]
    results: dict[int, Result] = {}
    for batch in batches_by_length(lengths, batch_size, num_batches):
        answers = engine.generate([requests[index] for index in batch], params)
        results.update(zip(batch, answers, strict=True))
    return [results[index] for index in range(len(requests))]
