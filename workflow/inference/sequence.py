"""One answer in the making: its tokens, the text that is settled, and whether it is finished.

Knows nothing of models, slots or other answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workflow.inference.requests import Chunk, Generation, TokenLogprob
from workflow.inference.sampling import SamplingParams

UNDECIDED = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are not a whole character yet."""

Detokenize = Callable[[Sequence[int]], str]


@dataclass(eq=False)
class Answer:
    """Sample `index` of a request. `tokens` are without the end of sequence."""

    index: int
    params: SamplingParams
    seed: int
    end_tokens: tuple[int, ...]
    detokenize: Detokenize
    blanks_may_go: bool = False
    """Whether blanks at the end of an unfinished text may change with the next token."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    _published: str = ""
    _search_from: int = 0
    _published_logprobs: int = 0
    _stopped_text: str | None = None

    @property
    def num_tokens(self) -> int:
        """Generated tokens, the end of sequence included."""
        return len(self.tokens) + self._ended

    @property
    def _ended(self) -> bool:
        return self.finish_reason == "stop" and self._stopped_text is None

    @property
    def must_go_on(self) -> bool:
        """Whether the next token may not be the end of sequence."""
        return len(self.tokens) < self.params.min_new_tokens

    def add(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Takes the next token, and decides whether the answer is finished."""
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.end_tokens:
            self._look_for_stop(is_last=True)
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        is_last = len(self.tokens) >= self.params.max_new_tokens
        self._look_for_stop(is_last=is_last)
        if self.finish_reason is None and is_last:
            self.finish_reason = "length"

    def _look_for_stop(self, *, is_last: bool) -> None:
        if not self.params.stop:
            return
        text = self.detokenize(self.tokens)
        if not is_last:
            text = self._steady(text)  # half a character is no stop string
        if self.must_go_on:
            self._search_from = len(text)  # what stands here may stay, whether or not it was streamed
            return
        ends = [text.find(stop, self._search_from) for stop in self.params.stop]
        if found := [end for end in ends if end >= 0]:
            self._stopped_text = text[: min(found)]
            self.finish_reason = "stop"

    def chunk(self) -> Chunk | None:
        """What is new since the last chunk; None where nothing is settled yet."""
        text = self.text()
        settled = text if self.finish_reason else _settled(self._steady(text), self.params.stop)
        new = settled[len(self._published) :] if settled.startswith(self._published) else ""
        logprobs = tuple(self.logprobs[self._published_logprobs :])
        if not (new or logprobs or self.finish_reason):
            return None
        self._published += new
        self._published_logprobs = len(self.logprobs)
        return Chunk(self.index, new, logprobs, self.num_tokens, self.finish_reason)

    def _steady(self, text: str) -> str:
        """As much of an unfinished text as no further token can change: no half character, no blanks that may go."""
        text = text.rstrip(UNDECIDED)
        return text.rstrip() if self.blanks_may_go else text

    def text(self) -> str:
        """The text so far, up to a stop string."""
        return self.detokenize(self.tokens) if self._stopped_text is None else self._stopped_text

    def generation(self) -> Generation:
        """The finished answer."""
        assert self.finish_reason is not None
        return Generation(tuple(self.tokens), self.text(), self.finish_reason, tuple(self.logprobs), self.num_tokens)


def _settled(text: str, stops: Sequence[str]) -> str:
    """As much of a steady text as is certainly no beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for held in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-held:]) for stop in stops):
            return text[:-held]
    return text
