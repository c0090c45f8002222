"""Beam search, by transformers: padded batches, alone on the model.

Knows nothing of slots or other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workflow.data.packing import pad
from workflow.inference.requests import GenerateRequest, Generation, Result
from workflow.inference.sampling import SamplingParams
from workflow.inference.sequence import Detokenize
from workflow.models.ends import end_tokens


class _FirstLogits:
    """A logits processor that changes nothing and keeps the logits of the first position."""

    def __init__(self, num_beams: int) -> None:
        self.num_beams = num_beams
        self.found: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        if self.found is None:
            # Under beam search these are log-probabilities, which give the same softmax over the labels.
            self.found = scores[:: self.num_beams].float().cpu()
        return scores

    def scores(self, row: int, labels: Sequence[int] | None) -> tuple[float, ...] | None:
        """The label probabilities of a row."""
        if labels is None or self.found is None:
            return None
        return tuple(self.found[row, list(labels)].softmax(dim=-1).tolist())


class _Unwanted:
    """A stopping criterion: ends the search when nobody waits for any of its answers."""

    def __init__(self, unwanted: Callable[[], bool]) -> None:
        self.unwanted = unwanted

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((len(input_ids),), self.unwanted(), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def beam_search(
    model: Any,
    texts: Detokenize,
    requests: Sequence[GenerateRequest],
    *,
    in_step: bool,
    unwanted: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """The best answer of each request's beams; the requests decode alike.

    When `unwanted` says so, from whatever thread, the search ends with what it has.
    `in_step` keeps ranks generating until all are done, which ZeRO-3 needs; a rank without requests passes none.
    """
    params = requests[0].params if requests else SamplingParams(max_new_tokens=1)
    ends = end_tokens(model)
    rows = [list(request.token_ids) for request in requests] or [[ends[0]]]
    first = _FirstLogits(params.num_beams)
    device = model.get_input_embeddings().weight.device
    was_training = model.training
    model.eval()
    try:
        sequences = model.generate(
            input_ids=pad(rows, model.config.pad_token_id).to(device),
            attention_mask=pad([[1] * len(row) for row in rows], 0).to(device),
            generation_config=_config(model.config, params, ends),
            logits_processor=[first],
            stopping_criteria=[_Unwanted(unwanted)],
            synced_gpus=in_step,
            past_key_values=_empty_cache(),
        )
    finally:
        model.train(was_training)
    return [
        Result((_generation(sequence, ends, texts),), first.scores(row, request.label_tokens))
        for row, (request, sequence) in enumerate(zip(requests, sequences[:, 1:].tolist(), strict=False))
    ]


def _empty_cache() -> Any:
    """Grows a layer at a time: the one that `generate` makes has the encoder's number of layers."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _config(config: Any, params: SamplingParams, ends: Sequence[int]) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        num_beams=params.num_beams,
        do_sample=False,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=list(ends),
        pad_token_id=config.pad_token_id,
    )


def _generation(sequence: list[int], ends: Sequence[int], texts: Detokenize) -> Generation:
    end = next((place for place, token in enumerate(sequence) if token in ends), None)
    finished, ids = end is not None, sequence[:end]
    return Generation(tuple(ids), texts(ids), "stop" if finished else "length", (), len(ids) + finished)
