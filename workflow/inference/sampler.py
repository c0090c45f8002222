"""The next token of each running answer from a step's logits.

Knows nothing of models or slots. Answers that only want the most likely token are decided in one call for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workflow.errors import ModelError
from workflow.inference.requests import TokenLogprob
from workflow.inference.sampling import changed_logits, draw
from workflow.inference.sequence import Answer


def next_tokens(logits: torch.Tensor, answers: Sequence[Answer]) -> list[tuple[int, TokenLogprob | None]]:
    """One token and, where asked for, its log-probability an answer, of fp32 logits [answers, vocabulary].

    Raises ModelError for logits that are not numbers.
    """
    best, likeliest = logits.max(dim=-1)
    if not torch.isfinite(best).all():
        raise ModelError(
            "the model's logits are not finite numbers; its weights are damaged, or overflowed in training"
        )
    greedy = likeliest.tolist()
    return [
        (token, None)
        if answer.params.takes_argmax and not (answer.must_go_on and token == answer.end_token)
        else _one(row, answer)
        for token, row, answer in zip(greedy, logits, answers, strict=True)
    ]


def _one(raw: torch.Tensor, answer: Answer) -> tuple[int, TokenLogprob | None]:
    params = answer.params
    changes = params.changes_logits or answer.must_go_on
    logits = changed_logits(raw, params, answer.tokens, end_token=answer.end_token) if changes else raw
    token = (
        int(logits.argmax())
        if params.greedy
        else draw(logits, params, seed=answer.seed, sample=answer.index, position=len(answer.tokens))
    )
    return token, None if params.logprobs is None else _logprob(raw, token, params.logprobs)


def _logprob(raw: torch.Tensor, token: int, count: int) -> TokenLogprob:
    logprobs = raw.log_softmax(dim=-1)
    values, tokens = logprobs.topk(count)
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
