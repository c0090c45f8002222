"""Beam search as bookkeeping: which continuations a request keeps after each step, as transformers' `generate` chooses them.

A beam is a row of the engine's steps like any other answer, so a search joins, leaves and is cancelled between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from workflow.errors import DamagedModel
from workflow.inference.requests import Generation
from workflow.inference.sampling import SamplingParams

NEVER = -1e9
"""The score of beams that do not count yet: at first all beams are alike."""


@dataclass(eq=False)
class Beam:
    """One of a search's rows: its tokens so far, without the end of sequence, and the sum of their log-probabilities."""

    search: BeamSearch
    tokens: list[int] = field(default_factory=list)
    score: float = NEVER


@dataclass(eq=False)
class BeamSearch:
    """The search of one request (early_stopping=False, length_penalty=1 in transformers' words)."""

    params: SamplingParams
    end_tokens: Sequence[int]
    detokenize: Callable[[Sequence[int]], str]
    beams: list[Beam] = field(init=False)
    is_over: bool = False
    _finished: list[tuple[float, list[int], bool]] = field(default_factory=list)
    """Score a token, tokens, and whether the end of sequence came; the best first."""

    def __post_init__(self) -> None:
        self.beams = [Beam(self) for _ in range(self.params.num_beams)]
        self.beams[0].score = 0.0

    def advance(self, logits: torch.Tensor) -> list[tuple[Beam, Beam]]:
        """Takes a step's fp32 logits [beams, vocabulary].

        Returns pairs of beams: what the first was so far, the second goes on from now. No beam is on both sides. Raises
        DamagedModel.
        """
        count, width = logits.shape
        scores = torch.tensor([[beam.score] for beam in self.beams], device=logits.device)
        likely = (
            (logits.log_softmax(dim=-1) + scores).flatten().topk(min((1 + len(self.end_tokens)) * count, count * width))
        )
        if not bool(torch.isfinite(logits.max())):
            raise DamagedModel
        length = len(self.beams[0].tokens) + 1
        going: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(zip(likely.values.tolist(), likely.indices.tolist(), strict=True)):
            parent, token = divmod(place, width)
            if token in self.end_tokens or length >= self.params.max_new_tokens:
                if rank < count:
                    self._finish(score / length, self.beams[parent].tokens, token)
            elif len(going) < count:
                going.append((score, parent, token))
        self._finished = sorted(self._finished, key=lambda entry: -entry[0])[:count]
        self.is_over = not going or (len(self._finished) == count and going[0][0] / length <= self._finished[-1][0])
        return [] if self.is_over else self._go_on(going)

    def _finish(self, score: float, tokens: Sequence[int], token: int) -> None:
        ended = token in self.end_tokens
        self._finished.append((score, [*tokens] if ended else [*tokens, token], ended))

    def _go_on(self, going: Sequence[tuple[float, int, int]]) -> list[tuple[Beam, Beam]]:
        """Gives the continuations to beams: the first of a beam's stays with it, so that little is copied."""
        staying = {parent: number for number, (_, parent, _) in reversed([*enumerate(going)])}
        free = iter(place for place in range(len(self.beams)) if place not in staying)
        places = [parent if staying[parent] == number else next(free) for number, (_, parent, _) in enumerate(going)]
        before = [beam.tokens for beam in self.beams]
        for place, (score, parent, token) in zip(places, going, strict=True):
            self.beams[place].tokens, self.beams[place].score = [*before[parent], token], score
        return [
            (self.beams[parent], self.beams[place])
            for place, (_, parent, _) in zip(places, going, strict=True)
            if place != parent
        ]

    def generation(self) -> Generation:
        """The best answer, once the search is over."""
        _, tokens, ended = self._finished[0]
        return Generation(
            tuple(tokens), self.detokenize(tokens), "stop" if ended else "length", (), len(tokens) + ended
        )
