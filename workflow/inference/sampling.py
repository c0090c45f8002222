"""How a next token is chosen: greedy, or by temperature, top-k and top-p with randomness that belongs to the request.

Knows nothing of models. The randomness of a token is a function of (seed, sample, position) alone, so a prompt gets
the same text whatever other prompts share its batch, and on any number of ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workflow.config.settings import GREEDY_BELOW


@dataclass(frozen=True)
class SamplingParams:
    """How to decode. Temperatures below 0.01 are greedy; `top_k` 0 is off; beams need greedy and one sample."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    n: int = 1
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW


def keep_likely(logits: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """Logits [rows, vocabulary] with all but the top-k, then all outside the top-p nucleus, at -inf."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1.0:
        ordered, places = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.masked_fill((before >= top_p).scatter(-1, places, before >= top_p), float("-inf"))
    return logits


def gumbel_noise(keys: Sequence[tuple[int, int]], position: int, size: int) -> torch.Tensor:
    """Gumbel noise fp32 [rows, size]; row r is a function of (seed, sample) = keys[r] and the position."""
    noise = torch.empty(len(keys), size)
    generator = torch.Generator()
    for row, (seed, sample) in enumerate(keys):
        generator.manual_seed(zlib.crc32(f"{seed}:{sample}:{position}".encode()))
        noise[row].exponential_(generator=generator)
    return -noise.log()


def choose(
    logits: torch.Tensor, params: SamplingParams, keys: Sequence[tuple[int, int]], position: int
) -> torch.Tensor:
    """Scores [rows, vocabulary] whose argmax is a draw from the filtered softmax (the Gumbel-max trick)."""
    if params.greedy:
        return logits
    kept = keep_likely(logits.float() / params.temperature, top_k=params.top_k, top_p=params.top_p)
    return kept + gumbel_noise(keys, position, logits.shape[-1]).to(logits.device)
