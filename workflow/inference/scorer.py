"""Scores: inputs' token ids in, logits and predictions out; training-time evaluation, batch scoring and serving share it.

Knows nothing of files or of how ranks divide the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workflow.data.encoders import INPUT, TOKEN_TYPES
from workflow.data.packing import pad
from workflow.inference.batching import batches_by_length
from workflow.models.classifier import LoadedClassifier

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreRequest:
    """One input: its token ids, special tokens included, and their types where the model takes them."""

    token_ids: Sequence[int]
    token_types: Sequence[int] | None = None


def requests_of(fields: Mapping[str, Sequence[Sequence[int]]]) -> list[ScoreRequest]:
    """The requests of encoded rows: of each field, every row's numbers."""
    if TOKEN_TYPES not in fields:
        return [ScoreRequest(ids) for ids in fields[INPUT]]
    return [ScoreRequest(ids, types) for ids, types in zip(fields[INPUT], fields[TOKEN_TYPES], strict=True)]


class Scorer:
    """Scores padded batches with a model as it is at each call."""

    def __init__(self, loaded: LoadedClassifier) -> None:
        self.loaded = loaded
        self.width = 1 if loaded.problem == "regression" else len(loaded.labels)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest]) -> Floats:
        """Logits [requests, width]. No requests make one meaningless row, dropped here, to keep ZeRO-3's ranks in step."""
        model = self.loaded.model
        was_training = model.training
        model.eval()
        try:
            return self._logits(requests or [ScoreRequest([self.loaded.tokenizer.pad_token_id], [0])])[: len(requests)]
        finally:
            model.train(was_training)

    def _logits(self, requests: Sequence[ScoreRequest]) -> Floats:
        device = self.loaded.model.get_input_embeddings().weight.device
        types = [request.token_types or [0] * len(request.token_ids) for request in requests]
        logits = self.loaded.logits(
            self.loaded.model,
            input_ids=pad([request.token_ids for request in requests], self.loaded.tokenizer.pad_token_id).to(device),
            attention_mask=pad([[1] * len(request.token_ids) for request in requests], 0).to(device),
            token_types=pad(types, 0).to(device) if self.loaded.takes_types else None,
        )
        found: Floats = logits.double().cpu().numpy()
        return found


def score_all(
    scorer: Scorer, requests: Sequence[ScoreRequest], *, batch_size: int, num_batches: int | None = None
) -> Floats:
    """Logits [requests, width] of any number of requests, in their order, computed by `batches_by_length`."""
    lengths = [len(request.token_ids) for request in requests]
    logits = np.zeros((len(requests), scorer.width))
    for batch in batches_by_length(lengths, batch_size, num_batches):
        logits[batch] = scorer.score([requests[index] for index in batch])
    return logits


def predictions(problem: str, logits: Floats) -> Floats:
    """What logits [rows, width] say: a distribution over the labels, a probability for each label, or the number."""
    if problem == "regression":
        return logits
    if problem == "multilabel":
        return np.exp(-np.logaddexp(0.0, -logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return found
