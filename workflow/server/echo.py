"""`echo` of OpenAI's completions: a prompt before its answer, with the log-probabilities of the prompt's own tokens.

An encoder-decoder reads a prompt and writes a completion, so what the likelihood of a prompt's token is depends on where
the completion begins. Where the prompt holds an end of sequence, it begins behind it. Where it holds none, every place
counts: with S(c) the log-likelihood of the tokens from c on, decoded behind the encoded tokens before c, token c has
S(c) - S(c + 1), so that the numbers from any c on sum to the log-likelihood of the completion that begins there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from workflow.inference.requests import GenerateRequest, LikelihoodRequest, Result, TokenLogprob
from workflow.server.completions import Echo, ShownLogprobs
from workflow.server.generating import Prepared
from workflow.server.openai_schemas import CompletionLogprobs
from workflow.server.texts import ModelTexts
from workflow.server.token_texts import SPACE


async def echoes(ready: Prepared, prompts: Sequence[str | Sequence[int]], count: int | None) -> list[Echo]:
    """What is shown of each prompt."""
    texts = ready.desk.service.texts
    rows = [_row(texts, given, made) for given, made in zip(prompts, ready.requests, strict=True)]
    shown = [given if isinstance(given, str) else _text(texts, row) for given, row in zip(prompts, rows, strict=True)]
    if count is None:
        return [Echo(text, None) for text in shown]
    wanted = [_requests(texts, row, max(1, count)) for row in rows]
    found = iter(await _answers(ready, [request for requests in wanted for request in requests]))
    likelihoods = [[*itertools.islice(found, len(requests))] for requests in wanted]
    return [
        Echo(text, _logprobs(texts, row, text, made, count))
        for text, row, made in zip(shown, rows, likelihoods, strict=True)
    ]


def _row(texts: ModelTexts, given: str | Sequence[int], made: GenerateRequest) -> list[int]:
    """The prompt's own tokens: of a text, without the end of sequence that encoding adds."""
    row = [*made.token_ids]
    return row[:-1] if isinstance(given, str) and row[-1] == texts.eos_id else row


def _text(texts: ModelTexts, row: Sequence[int]) -> str:
    text: str = texts.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _begin(texts: ModelTexts, row: Sequence[int]) -> int | None:
    """Where the completion begins: behind the first end of sequence; None where there is none before the last token."""
    return row.index(texts.eos_id) + 1 if texts.eos_id in row[:-1] else None


def _requests(texts: ModelTexts, row: Sequence[int], count: int) -> list[LikelihoodRequest]:
    end = [] if texts.eos_id is None else [texts.eos_id]
    begin = _begin(texts, row)
    if begin is not None:
        return [LikelihoodRequest(row[:begin], completion=row[begin:], num_top=count)]
    return [
        LikelihoodRequest([*row[:place], *end], completion=row[place:], num_top=count) for place in range(1, len(row))
    ]


async def _answers(ready: Prepared, requests: Sequence[LikelihoodRequest]) -> list[tuple[TokenLogprob, ...]]:
    if not requests:
        return []
    async with ready.desk.call(requests, last=False) as call:
        return [made.generations[0].logprobs for made in await call.outcomes() if isinstance(made, Result)]


def _logprobs(
    texts: ModelTexts, row: Sequence[int], text: str, found: Sequence[tuple[TokenLogprob, ...]], count: int
) -> CompletionLogprobs:
    if _begin(texts, row) is not None:
        told = [*found[0]]
    else:
        sums = [sum(token.logprob for token in split) for split in found] + [0.0]
        told = [
            _token(texts, split, value - after)
            for split, (value, after) in zip(found, itertools.pairwise(sums), strict=True)
        ]
    told = [TokenLogprob(token.token_id, token.logprob, token.top[:count]) for token in told]
    read = [TokenLogprob(number, 0.0) for number in row[: len(row) - len(told)]]
    shown = ShownLogprobs(texts, keeps_end=True).add([*read, *told], text, is_last=True)
    shown.token_logprobs[: len(read)] = [None] * len(read)
    shown.top_logprobs[: len(read)] = [None] * len(read)
    return shown


def _token(texts: ModelTexts, split: Sequence[TokenLogprob], value: float) -> TokenLogprob:
    """The first token of a completion with the value that it has among all; at the start of a word beside the likeliest
    tokens where decoding would first depart from the completion, so much likelier as they are there."""
    first = split[0]
    if not texts.token_bytes.of(first.token_id).startswith(SPACE):
        return TokenLogprob(first.token_id, value)
    departs = next((token for token in split if token.top[0][0] != token.token_id), first)
    others = tuple((number, value + other - departs.logprob) for number, other in departs.top)
    return TokenLogprob(first.token_id, value, tuple(pair for pair in others if pair[0] != departs.token_id))
