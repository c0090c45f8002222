"""The next token of each running answer from a step's logits.

Answers that want the most likely token are decided in one call for all, and so are those that are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workflow.errors import DamagedModel
from workflow.inference.requests import TokenLogprob
from workflow.inference.sampling import changed_logits, keep_likely, pick, shares_of, uniform
from workflow.inference.sequence import Answer

Choice = tuple[int, TokenLogprob | None]


def next_tokens(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Choice | Exception]:
    """One token and, where asked for, its log-probability an answer, of fp32 logits [answers, vocabulary].

    What goes wrong with an answer stands in its place: logits that are not numbers are a DamagedModel.
    """
    found: dict[int, Choice | Exception] = {}
    for choose, is_greedy in ((_likeliest, True), (_drawn, False)):
        rows = [row for row, answer in enumerate(answers) if answer.params.greedy is is_greedy]
        if rows:
            mine = logits if len(rows) == len(answers) else logits[rows]
            found.update(zip(rows, choose(mine, [answers[row] for row in rows]), strict=True))
    return [found[row] for row in range(len(answers))]


def _likeliest(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Choice | Exception]:
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [
        _greedy(token, row, answer) if good else DamagedModel()
        for token, good, row, answer in zip(tokens.tolist(), finite, logits, answers, strict=True)
    ]


def _greedy(likeliest: int, raw: torch.Tensor, answer: Answer) -> Choice | Exception:
    if answer.params.takes_argmax and not (answer.must_go_on and likeliest in answer.end_tokens):
        return likeliest, None
    try:
        return _with_logprob(int(_changed(raw, answer).argmax()), raw, answer)
    except Exception as error:  # one request's parameters must not end the others
        return error


def _drawn(logits: torch.Tensor, answers: Sequence[Answer]) -> list[Choice | Exception]:
    errors: dict[int, Exception] = {}
    changing = [row for row, answer in enumerate(answers) if _changes(answer)]
    changed = logits.clone() if changing else logits
    for row in changing:
        try:
            changed[row] = _changed(logits[row], answers[row])
        except Exception as error:
            errors[row] = error
    shares = shares_of(changed, [answer.params.temperature for answer in answers])
    finite = torch.isfinite(shares[:, 0]).tolist()  # one number that is none makes the whole softmax so
    for row, answer in enumerate(answers):
        if finite[row] and answer.params.filters:
            keep_likely(shares[row, : logits.shape[1]], answer.params)
    numbers = [uniform(answer.seed, answer.index, len(answer.tokens)) for answer in answers]
    return [
        errors.get(row) or (_with_logprob(token, logits[row], answer) if finite[row] else DamagedModel())
        for row, (token, answer) in enumerate(zip(pick(shares, numbers), answers, strict=True))
    ]


def _changes(answer: Answer) -> bool:
    return answer.params.changes_logits or answer.must_go_on


def _changed(raw: torch.Tensor, answer: Answer) -> torch.Tensor:
    if not _changes(answer):
        return raw
    return changed_logits(raw, answer.params, answer.tokens, end_tokens=answer.end_tokens)


def _with_logprob(token: int, raw: torch.Tensor, answer: Answer) -> Choice:
    count = answer.params.logprobs
    if count is None:
        return token, None
    logprobs = raw.log_softmax(dim=-1)
    values, tokens = logprobs.topk(count)
    return token, TokenLogprob(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
