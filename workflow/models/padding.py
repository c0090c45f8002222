"""Whether padding changes what a model computes of a row, found by trying; no list of families could be trusted to be whole.

Convolutions over embeddings (MobileBERT, ConvBERT), attention or mixing without a mask (FNet, YOSO) and pooling (Funnel)
let a row feel the padding behind it. Such models take rows of one length together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workflow.errors import ModelError
from workflow.runtime import seeded

PAIRS = ((5, 17), (6, 33), (40, 150))
"""Lengths of a row, and of a longer one beside it; odd and even, since poolings differ in that."""
TOLERANCE = 1e-5
"""Relative to the largest logit: some hundred times the rounding of fp32."""

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(token ids, attention mask), each [rows, longest] -> [rows, width]."""


@torch.no_grad()
def padding_counts(name: str, logits: Logits, tokens: Sequence[int], *, pad_id: int, most: int | None) -> bool:
    """Whether a row of `tokens` (ordinary ones) has other logits beside a longer row than alone; inputs have `most` tokens.

    Raises ModelError for a model that takes no rows of such lengths, or whose logits are drawn at random.
    """
    with seeded(0):
        for short, long in PAIRS:
            lengths = [min(length, most or length) for length in (short, long)]
            rows = [[tokens[at] for at in torch.randint(len(tokens), (length,)).tolist()] for length in lengths]
            try:
                alone, again, together = (logits(*_padded(part, pad_id))[0] for part in (rows[:1], rows[:1], rows))
            except (RuntimeError, ValueError, IndexError) as error:
                raise ModelError(
                    f"{name}: its forward pass fails on texts of {lengths[0]} and {lengths[1]} tokens, so it cannot score texts of any "
                    f"length: {' '.join(str(error).split())[:200]}"
                ) from error
            bound = TOLERANCE * float(alone.abs().max())
            if float((alone - again).abs().max()) > bound:
                raise ModelError(
                    f"{name}: its scores are drawn at random: the same text has others each time (LSH attention; a hash_seed in "
                    "config.json fixes them)"
                )
            if float((alone - together).abs().max()) > bound:
                return True
    return False


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad_id), torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return ids, mask
