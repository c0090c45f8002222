"""Between TGI's bodies, answers and events and ours.

Knows nothing of routes.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

from workflow.inference.requests import Chunk, Generation, TokenLogprob
from workflow.server.answers import ended_in_eos
from workflow.server.generating import Prepared, Prompts
from workflow.server.texts import ModelTexts
from workflow.server.tgi_schemas import (
    TgiAnswer,
    TgiBody,
    TgiDetails,
    TgiEvent,
    TgiParameters,
    TgiStreamDetails,
    TgiToken,
)
from workflow.server.token_texts import TokenPlaces

NAMES = {
    "logprobs": "parameters.top_n_tokens",
    **{
        name: f"parameters.{name}"
        for name in ("max_new_tokens", "stop", "top_k", "top_p", "typical_p", "temperature", "seed")
    },
}
Reason = Literal["eos_token", "stop_sequence", "length"]


def tgi_prompts(body: TgiBody, model: str | None, *, stream: bool) -> Prompts:
    """What a TGI body wants."""
    parameters = body.parameters or TgiParameters.model_validate({})
    sampling = parameters.sampling(logprobs=stream or bool(parameters.details))
    return Prompts(
        *(model if body.model is None else body.model, [body.inputs], sampling),
        truncate=parameters.truncate or False,
        param="inputs",
        names=NAMES,
        cut='"truncate": true in parameters',
    )


def tgi_answer(ready: Prepared, made: Generation, *, details: bool) -> TgiAnswer:
    """An answer, with its tokens where they are asked for."""
    if not details:
        return TgiAnswer(generated_text=made.text)
    texts = ready.desk.service.texts
    more = {}
    if ready.requests[0].params.logprobs:
        more["top_tokens"] = [_others(texts, token, at_start=not number) for number, token in enumerate(made.logprobs)]
    found = TgiDetails(
        finish_reason=_reason(made.finish_reason, eos=ended_in_eos(made)),
        generated_tokens=made.num_tokens,
        seed=ready.seed,
        prefill=[],
        tokens=_tokens(texts, made),
        **more,
    )
    return TgiAnswer(generated_text=made.text, details=found)


async def tgi_events(ready: Prepared, chunks: AsyncIterator[tuple[int, Chunk]]) -> AsyncGenerator[TgiEvent, None]:
    """An event a token; a chunk that ends a stream without a token of its own is the end of sequence."""
    texts = ready.desk.service.texts
    told, number = "", 0
    async for _, chunk in chunks:
        told += chunk.text
        eos = _at_eos(texts, chunk)
        tokens = chunk.logprobs or (TokenLogprob(texts.eos_id or 0, 0.0),)
        for place, token in enumerate(tokens, start=1):
            last = place == len(tokens)
            shown = chunk.text if last else ""
            number += 1
            event = TgiEvent(index=number, token=_token(texts, token, shown))
            if ready.requests[0].params.logprobs:
                event.top_tokens = _others(texts, token, at_start=number == 1)
            if last and chunk.finish_reason is not None:
                event.generated_text = told
                event.details = TgiStreamDetails(
                    finish_reason=_reason(chunk.finish_reason, eos=eos),
                    generated_tokens=chunk.num_tokens,
                    input_length=ready.prompt_tokens,
                    seed=ready.seed,
                )
            yield event


def _at_eos(texts: ModelTexts, chunk: Chunk) -> bool:
    return not chunk.logprobs or texts.is_end(chunk.logprobs[-1].token_id)


def _reason(finish_reason: str, *, eos: bool) -> Reason:
    if finish_reason == "length":
        return "length"
    return "eos_token" if eos else "stop_sequence"


def _tokens(texts: ModelTexts, made: Generation) -> list[TgiToken]:
    """An answer's tokens; the last of those that make a character together has it, special ones have their names."""
    table, characters, found = texts.token_bytes, codecs.getincrementaldecoder("utf-8")(), []
    for placed in TokenPlaces(table).add(made.logprobs, made.text, is_last=True):
        token = _token(texts, placed.token, characters.decode(placed.data))
        found.append(token.model_copy(update={"text": table.name(token.id)}) if token.special else token)
    return found


def _token(texts: ModelTexts, token: TokenLogprob, text: str) -> TgiToken:
    """A token that adds `text` to the answer; clients leave out special ones."""
    is_special = token.token_id in texts.token_bytes.special or texts.is_end(token.token_id)
    special = is_special and not text
    return TgiToken(id=token.token_id, text=text, logprob=token.logprob, special=special)


def _others(texts: ModelTexts, token: TokenLogprob, *, at_start: bool) -> list[TgiToken]:
    table = texts.token_bytes
    return [
        TgiToken(id=number, text=table.shown(number, at_start=at_start), logprob=value, special=number in table.special)
        for number, value in token.top
    ]
