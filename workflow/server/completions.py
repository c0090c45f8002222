"""Choices of OpenAI's completions out of the engine's answers.

Knows nothing of routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from workflow.inference.requests import Generation, TokenLogprob
from workflow.server.openai_schemas import CompletionChoice, CompletionLogprobs
from workflow.server.texts import ModelTexts
from workflow.server.token_texts import TokenPlaces, likeliest, written


class ShownLogprobs:
    """The log-probabilities of one sample, as its text comes; `before` characters of the answer stand before that text."""

    def __init__(self, texts: ModelTexts, *, before: int = 0) -> None:
        self._texts = texts
        self._before = before
        self._places = TokenPlaces(texts.token_bytes)

    def add(self, tokens: Sequence[TokenLogprob], text: str, *, is_last: bool) -> CompletionLogprobs:
        """The four lists of the tokens whose place in the text is certain; the end of sequence is no token of it."""
        shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for placed in self._places.add(tokens, text, is_last=is_last):
            if placed.token.token_id == self._texts.eos_id and not placed.data:
                continue
            shown.tokens.append(written(placed.data))
            shown.token_logprobs.append(placed.token.logprob)
            shown.top_logprobs.append(likeliest(self._texts.token_bytes, placed))
            shown.text_offset.append(self._before + placed.offset)
        return shown


def choice_of(texts: ModelTexts, made: Generation, index: int, *, wanted: bool) -> CompletionChoice:
    """A whole sample; with log-probabilities where they are `wanted`."""
    logprobs = ShownLogprobs(texts).add(made.logprobs, made.text, is_last=True) if wanted else None
    return CompletionChoice(
        index=index, text=made.text, logprobs=logprobs, finish_reason=finish_reason(made.finish_reason)
    )


def finish_reason(reason: str | None) -> Literal["stop", "length"] | None:
    """The same reason, as OpenAI's clients know it."""
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"
