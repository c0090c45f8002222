"""How a next token is chosen: greedy, or drawn after penalties, temperature, top-k, top-p and min-p.

The randomness of a token is a function of (seed, sample, position) alone, so a prompt gets the same text whatever other
prompts share its steps, and on any number of ranks. A whole vocabulary is never sorted, which takes longer than a small
model's step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workflow.config.settings import GREEDY_BELOW

Doubles = npt.NDArray[np.float64]

BLOCK = 128
"""Tokens whose shares are summed at once when one is picked."""
BAND_BITS = 18
"""Lower bits of an fp32 number that `_keep_nucleus` leaves out."""


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
    def filters(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before temperature and filters, at every position."""
        return bool(
            self.logit_bias or self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )


def changed_logits(
    logits: torch.Tensor, params: SamplingParams, generated: Sequence[int], *, end_tokens: Sequence[int]
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
        logits[list(end_tokens)] = float("-inf")
    return logits


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


def shares_of(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """The softmax at each row's temperature, fp32 [rows, vocabulary], of logits [rows, vocabulary].

    Behind the vocabulary stand zeros up to a multiple of `BLOCK`, which `pick` needs.
    """
    rows, width = logits.shape
    scaled = logits.new_full((rows, -(-width // BLOCK) * BLOCK), float("-inf"))
    torch.div(logits, torch.tensor(temperatures, device=logits.device)[:, None], out=scaled[:, :width])
    return torch.softmax(scaled, dim=-1, out=scaled)


def keep_likely(shares: torch.Tensor, params: SamplingParams) -> None:
    """Sets the shares [vocabulary] that the filters drop to zero, in place; those that are left need not sum to 1."""
    floor = params.min_p * shares.max()
    if 0 < params.top_k < len(shares):
        kept, tokens = shares.topk(params.top_k)
        if params.top_p < 1.0:
            kept = kept.masked_fill(~_in_nucleus(kept.double(), params.top_p * kept.double().sum()), 0.0)
        shares.zero_()
        shares[tokens] = kept
    elif params.top_p < 1.0:
        _keep_nucleus(shares, params.top_p)
    if params.min_p > 0.0:
        shares.mul_(shares >= floor)
    if params.typical_p < 1.0:
        keep_typical(shares, params.typical_p)


def _in_nucleus(ordered: torch.Tensor, mass: torch.Tensor | float) -> torch.Tensor:
    """Which of the shares, in falling order, are needed to reach the mass."""
    return ordered.cumsum(dim=-1) - ordered < mass


def _keep_nucleus(shares: torch.Tensor, top_p: float) -> None:
    """Drops all but the nucleus. Numbers with the same upper bits are alike to 1/32: their masses show between which
    two of them the border lies, and only these few are sorted."""
    bands = shares.view(torch.int32) >> BAND_BITS
    masses = torch.bincount(bands, weights=shares.double()).flip(0).cpu().numpy()
    reached = masses.cumsum()
    place = _first_above(reached, top_p * reached[-1])
    band = len(masses) - 1 - place
    border = torch.from_numpy((bands == band).cpu().numpy().nonzero()[0]).to(
        shares.device
    )  # torch's takes ten times as long
    ordered, order = shares[border].double().sort(descending=True, stable=True)
    needed = _in_nucleus(ordered, top_p * reached[-1] - (reached[place] - masses[place]))
    shares.mul_(bands >= band)
    shares[border[order[~needed]]] = 0.0


def _first_above(reached: Doubles, target: float) -> int:
    """The first place at which the running sum exceeds the target; where rounding keeps it from doing so, the last place that
    added anything."""
    return int(min(reached.searchsorted(target, side="right"), reached.searchsorted(reached[-1])))


def pick(shares: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """A token for each row of `shares_of`'s, by inverting its distribution function at the row's number in [0, 1).

    Tokens stand in the order of their ids, so nothing is sorted. Sums of blocks are searched first, then one block.
    """
    blocks = shares.view(len(shares), -1, BLOCK)
    reached = blocks.sum(dim=-1).double().cpu().numpy().cumsum(axis=-1)
    targets = reached[:, -1] * numbers
    places = [_first_above(row, target) for row, target in zip(reached, targets, strict=True)]
    inside = blocks[range(len(places)), places].double().cpu().numpy().cumsum(axis=-1)
    before = [row[place - 1] if place else 0.0 for row, place in zip(reached, places, strict=True)]
    return [
        place * BLOCK + _first_above(row, target - start)
        for place, row, target, start in zip(places, inside, targets, before, strict=True)
    ]


def draw(logits: torch.Tensor, params: SamplingParams, *, seed: int, sample: int, position: int) -> int:
    """One token from logits [vocabulary]."""
    shares = shares_of(logits[None], [params.temperature])
    keep_likely(shares[0, : len(logits)], params)
    return pick(shares, [uniform(seed, sample, position)])[0]
