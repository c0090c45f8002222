"""How likely given answers are: every position of many of them in one pass over packed tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from workflow.data.packing import Ragged
from workflow.errors import DamagedModel
from workflow.inference.requests import Generation, LikelihoodRequest, Result, TokenLogprob
from workflow.models.ragged_training import RaggedT5

ROWS_AT_ONCE = 256
"""Positions whose logits over the whole vocabulary are held at once."""


class Likelihoods:
    """Scores answers with a T5 as it is at each call."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes = RaggedT5(model)

    @torch.no_grad()
    def __call__(self, requests: Sequence[LikelihoodRequest]) -> list[Result]:
        """The answers with their tokens' log-probabilities."""
        source = self._packed([request.token_ids for request in requests])
        target = self._packed([request.completion for request in requests])
        hidden = self.passes.hidden(source, target)
        most = max(request.num_top for request in requests)
        parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(hidden), ROWS_AT_ONCE)]
        found = iter([token for part in parts for token in self._logprobs(hidden[part], target.ids[part], most)])
        return [_result(request, tuple(itertools.islice(found, len(request.completion)))) for request in requests]

    def _packed(self, rows: Sequence[Sequence[int]]) -> Ragged:
        ids = torch.tensor([number for row in rows for number in row])
        return Ragged(ids.to(self.model.lm_head.weight.device), tuple(map(len, rows)))

    def _logprobs(self, hidden: torch.Tensor, ids: torch.Tensor, count: int) -> list[TokenLogprob]:
        head = self.model.lm_head
        logprobs = head(hidden.to(head.weight.dtype)).float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, ids[:, None])[:, 0]
        if not bool(torch.isfinite(chosen).all()):
            raise DamagedModel
        values, tokens = logprobs.topk(count)
        return [
            TokenLogprob(number, value, tuple(zip(others, tops, strict=True)))
            for number, value, others, tops in zip(
                ids.tolist(), chosen.tolist(), tokens.tolist(), values.tolist(), strict=True
            )
        ]


def _result(request: LikelihoodRequest, found: tuple[TokenLogprob, ...]) -> Result:
    return Result((Generation(tuple(request.completion), "", "length", found, len(found)),))
