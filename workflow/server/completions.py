"""Choices of OpenAI's completions out of the engine's answers.

Knows nothing of routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from workflow.inference.requests import Generation, TokenLogprob
from workflow.server.openai_schemas import CompletionChoice, CompletionLogprobs
from workflow.server.texts import ModelTexts


class TokenPlaces:
    """Where each token of a sample starts, counted in the texts of the tokens before it."""

    def __init__(self, texts: ModelTexts) -> None:
        self._texts = texts
        self._offset = 0

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The next tokens' four lists; the end of sequence is no token of the text."""
        shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            if self._texts.is_end(token.token_id):
                continue
            text = self._texts.token(token.token_id)
            shown.tokens.append(text)
            shown.token_logprobs.append(token.logprob)
            shown.top_logprobs.append({self._texts.token(other): value for other, value in token.top})
            shown.text_offset.append(self._offset)
            self._offset += len(text)
        return shown


def choice_of(texts: ModelTexts, made: Generation, index: int, *, wanted: bool) -> CompletionChoice:
    """A whole sample; with log-probabilities where they are `wanted`."""
    logprobs = TokenPlaces(texts).logprobs(made.logprobs) if wanted else None
    return CompletionChoice(
        index=index, text=made.text, logprobs=logprobs, finish_reason=finish_reason(made.finish_reason)
    )


def finish_reason(reason: str | None) -> Literal["stop", "length"] | None:
    """The same reason, as OpenAI's clients know it."""
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"
