"""Cross-attention of one query a sequence, without keys or values of the encoder's tokens.

Knows nothing of the layers around it. With one query a head, the query can go through the key projection, and the mix
of states through the value projection, instead of every token: exact, and cheaper from a few tokens on.
"""

from __future__ import annotations

from typing import Any

import torch

from workflow.models.dropout import Keys, Thinning, keep_mask
from workflow.models.pairing import Pairing, spread

GPU_SLACK = 1 << 14
"""Scores that a group may compute in vain on a GPU: each of them moves a whole state."""


class AbsorbedCross(torch.nn.Module):
    """Shares the projections of a cross-attention, so that ZeRO-3 gathers them for it; its output goes to `o`."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = attention.q.weight, attention.k.weight, attention.v.weight
        self.heads = (attention.n_heads, attention.key_value_proj_dim)

    def forward(
        self, x: torch.Tensor, states: torch.Tensor, pairing: Pairing, thinning: Thinning | None = None
    ) -> torch.Tensor:
        """x [sequences, d_model], states [tokens, d_model] -> [sequences, heads * width]; the pairing has one head."""
        queries = (x @ self.q.t()).unflatten(1, self.heads)
        absorbed = torch.einsum("phk,hkd->phd", queries, self.k.unflatten(0, self.heads))
        mixed = self._mixed(absorbed, states, pairing, thinning)
        return torch.einsum("phd,hkd->phk", mixed, self.v.unflatten(0, self.heads)).flatten(1)

    def _mixed(
        self, queries: torch.Tensor, states: torch.Tensor, pairing: Pairing, thinning: Thinning | None
    ) -> torch.Tensor:
        """[sequences, heads, d_model]: each sequence's states in the mix that its queries ask for."""
        groups = pairing.groups
        order = pairing.queries
        parts = torch.split(queries.index_select(0, order.spread), [group.rows for group in groups])
        drawn = thinning.keys.at(thinning.place) if thinning is not None else None
        found, before = [], 0
        for query, keys, group in zip(parts, spread(states, pairing.keys, groups, 1), groups, strict=True):
            scores = (query @ keys[:, 0].transpose(1, 2)).float()
            if group.valid is not None:
                scores = scores.masked_fill(~group.valid[:, 0], float("-inf"))
            weights = scores.softmax(dim=-1)
            if thinning is not None and drawn is not None:
                own = drawn.select(order.spread[before : before + group.rows]).of_heads(self.heads[0])
                shape = weights.shape[:2]
                by_head = Keys(own.first.view(shape), own.second.view(shape))
                weights = weights * keep_mask(by_head, weights.shape[2], thinning.rate)
            before += group.rows
            found.append(weights.to(states.dtype) @ keys[:, 0])
        return torch.cat(found).index_select(0, order.collect)
