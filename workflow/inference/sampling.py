"""How a next token is chosen: greedy, or drawn after penalties, temperature, top-k, top-p and min-p.

Knows nothing of models. The randomness of a token is a function of (seed, sample, position) alone, so a prompt gets
the same text whatever other prompts share its steps, and on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workflow.config.settings import GREEDY_BELOW


@dataclass(frozen=True)
class SamplingParams:
    """How to decode. Temperatures below 0.01 are greedy; `top_k` 0 is off; beams need greedy and one sample.

    In their order of work: `logit_bias` (token, added logit); `repetition_penalty` divides positive and multiplies
    negative logits of tokens generated before (Keskar et al. 2019), `presence_penalty` is subtracted once and
    `frequency_penalty` once a use; no end of sequence or stop string before `min_new_tokens`; temperature; `top_k`,
    `top_p`, `min_p` (tokens below this share of the most likely one's probability are dropped), and `typical_p` (`keep_typical`).
    `stop` strings end an answer and are not part of it. `logprobs` asks for the chosen token's log-probability and
    those of so many most likely tokens, from the raw logits.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    num_beams: int = 1
    min_new_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    typical_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def takes_argmax(self) -> bool:
        """Whether the next token is the argmax of the raw logits (but for an end that comes too early), and no more is asked."""
        return self.greedy and not self.changes_logits and self.logprobs is None

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before temperature and filters, at every position."""
        return bool(
            self.logit_bias or self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )


def changed_logits(
    logits: torch.Tensor, params: SamplingParams, generated: Sequence[int], *, end_token: int
) -> torch.Tensor:
    """Logits fp32 [vocabulary] after bias, penalties for what was `generated`, and the ban on an early end."""
    logits = logits.clone()
    for token, bias in params.logit_bias:
        logits[token] += bias
    if generated:
        tokens, counts = torch.unique(torch.tensor(list(generated), device=logits.device), return_counts=True)
        seen = logits[tokens]
        seen = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        logits[tokens] = seen - params.presence_penalty - params.frequency_penalty * counts
    if len(generated) < params.min_new_tokens:
        logits[end_token] = float("-inf")
    return logits


def likely_tokens(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn and their probabilities (they sum to 1), most likely first, of logits [vocabulary]."""
    scaled = logits / params.temperature
    ordered, tokens = (
        scaled.topk(params.top_k) if 0 < params.top_k < len(scaled) else scaled.sort(descending=True, stable=True)
    )
    shares = ordered.softmax(dim=-1)
    keep = torch.ones_like(shares, dtype=torch.bool)
    if params.top_p < 1.0:
        keep = shares.cumsum(dim=-1) - shares < params.top_p
    if params.min_p > 0.0:
        keep &= shares >= params.min_p * shares[0]
    kept = shares * keep
    if params.typical_p < 1.0:
        keep_typical(kept, params.typical_p)
        tokens, kept = tokens[kept > 0], kept[kept > 0]
    return tokens, kept / kept.sum()


def keep_typical(shares: torch.Tensor, mass: float) -> None:
    """Sets to zero, in place, all but the shares whose surprise is nearest to the expected one, as few as reach the mass.

    Locally typical sampling (Meister et al. 2022). The shares may have any order and sum; zeros stay zeros.
    """
    places = shares.nonzero()[:, 0]
    found = shares[places].double() / shares.sum(dtype=torch.float64)
    surprise = -found.log()
    order = (surprise - (found * surprise).sum()).abs().sort(stable=True).indices
    ordered = found[order]
    needed = ordered.cumsum(dim=-1) - ordered < mass
    shares[places[order[~needed]]] = 0.0


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, sample, position) alone: 53 bits of a hash, the same everywhere."""
    digest = hashlib.blake2b(f"{seed}:{sample}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def draw(logits: torch.Tensor, params: SamplingParams, *, seed: int, sample: int, position: int) -> int:
    """One token from logits [vocabulary], by inverting the distribution function at this position's number."""
    tokens, shares = likely_tokens(logits, params)
    reached = shares.double().cumsum(dim=-1)
    place = int(torch.searchsorted(reached, uniform(seed, sample, position) * reached[-1], right=True))
    return int(tokens[min(place, int((shares > 0).sum()) - 1)])
