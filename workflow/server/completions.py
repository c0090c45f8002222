"""Choices of OpenAI's completions out of the engine's answers.

Knows nothing of routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workflow.inference.requests import Generation, TokenLogprob
from workflow.server.openai_schemas import CompletionChoice, CompletionLogprobs
from workflow.server.texts import ModelTexts
from workflow.server.token_texts import TokenPlaces, likeliest, written


@dataclass(frozen=True)
class Echo:
    """A prompt as it is shown; its tokens' log-probabilities where they are asked for."""

    text: str
    logprobs: CompletionLogprobs | None


class ShownLogprobs:
    """The log-probabilities of one sample, as its text comes; `before` characters of the answer stand before that text.

    The end of sequence is shown only where it is kept: clients that count tokens behind an echo need it.
    """

    def __init__(self, texts: ModelTexts, *, before: int = 0, keeps_end: bool = False) -> None:
        self._texts = texts
        self._before = before
        self._keeps_end = keeps_end
        self._places = TokenPlaces(texts.token_bytes)

    def add(self, tokens: Sequence[TokenLogprob], text: str, *, is_last: bool) -> CompletionLogprobs:
        """The four lists of the tokens whose place in the text is certain."""
        shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for placed in self._places.add(tokens, text, is_last=is_last):
            if self._texts.is_end(placed.token.token_id) and not (placed.data or self._keeps_end):
                continue
            shown.tokens.append(written(placed.data))
            shown.token_logprobs.append(placed.token.logprob)
            shown.top_logprobs.append(likeliest(self._texts.token_bytes, placed))
            shown.text_offset.append(self._before + placed.offset)
        return shown


def choice_of(shown: ShownLogprobs | None, made: Generation, index: int) -> CompletionChoice:
    """A whole sample, with log-probabilities where they are asked for."""
    logprobs = shown.add(made.logprobs, made.text, is_last=True) if shown is not None else None
    return CompletionChoice(
        index=index, text=made.text, logprobs=logprobs, finish_reason=finish_reason(made.finish_reason)
    )


def behind(echo: Echo, made: CompletionChoice) -> CompletionChoice:
    """The choice behind its echoed prompt."""
    logprobs = made.logprobs
    if echo.logprobs is not None and logprobs is not None:
        names = CompletionLogprobs.model_fields
        logprobs = CompletionLogprobs(
            **{name: getattr(echo.logprobs, name) + getattr(logprobs, name) for name in names}
        )
    return made.model_copy(update={"text": echo.text + made.text, "logprobs": logprobs})


def finish_reason(reason: str | None) -> Literal["stop", "length"] | None:
    """The same reason, as OpenAI's clients know it."""
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"
