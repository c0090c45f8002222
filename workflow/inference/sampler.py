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

NOT_FINITE = "the model's logits are not finite numbers; its weights are damaged, or overflowed in training"

Choice = tuple[int, TokenLogprob | None]


def next_tokens(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Choice | Exception]:
    """One token and, where asked for, its log-probability an answer, of fp32 logits [answers, vocabulary].

    What goes wrong with an answer stands in its place: logits that are not numbers are a ModelError.
    """
    best, likeliest = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [
        _choice(token, row, answer) if good else ModelError(NOT_FINITE)
        for token, good, row, answer in zip(likeliest.tolist(), finite, logits, answers, strict=True)
    ]


def _choice(likeliest: int, raw: torch.Tensor, answer: Answer) -> Choice | Exception:
    if answer.params.takes_argmax and not (answer.must_go_on and likeliest in answer.end_tokens):
        return likeliest, None
    try:
        return _one(raw, answer)
    except Exception as error:  # one request's parameters must not end the others
        return error


def _one(raw: torch.Tensor, answer: Answer) -> Choice:
    params = answer.params
    changes = params.changes_logits or answer.must_go_on
    logits = changed_logits(raw, params, answer.tokens, end_tokens=answer.end_tokens) if changes else raw
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
