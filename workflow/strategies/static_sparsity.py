"""Weights that are zero when a run starts stay zero: what a pruned model has gained is kept through fine-tuning.

After each update zeros are put back, in fp32 masters and in what the forward pass reads. Which weights these are needs
no state: they are zero in every checkpoint. Knows nothing of how a model was pruned (`models/pruning.py`).
"""

from __future__ import annotations

import math

import torch

from workflow.config.strategy_settings import StaticSparsity as Settings
from workflow.strategies.base import Masters, Piece, Strategy


class StaticSparsity(Strategy):
    """Zeros of every weight with two dimensions or more."""

    name = "static_sparsity"

    def __init__(self, settings: Settings) -> None:
        self.keeps = settings.keep
        self._zeros: dict[str, torch.Tensor] = {}
        self._moved = [0.0, 0.0]

    def begin(self, masters: Masters) -> None:
        """Notes the zeros, a byte for each weight that this rank's forward pass reads."""
        if self.keeps:
            self._zeros = {piece.name: piece.working == 0 for piece in masters.pieces() if piece.dimensions > 1}

    @torch.no_grad()
    def after_step(self, step: int, masters: Masters) -> None:  # noqa: ARG002
        """Puts zeros back, and notes how many had moved, and how far."""
        moved, squares = 0.0, 0.0
        for piece in masters.pieces():
            if piece.name not in self._zeros:
                continue
            zeros = self._of_master(piece)
            gone = piece.master[zeros]
            moved, squares = moved + float(gone.count_nonzero()), squares + float(gone.double().square().sum())
            piece.master.masked_fill_(zeros, 0.0)
            piece.working.masked_fill_(self._zeros[piece.name], 0.0)
            masters.write(piece)
        self._moved = [moved, squares]

    def _of_master(self, piece: Piece) -> torch.Tensor:
        first = piece.start - piece.working_start
        return self._zeros[piece.name][first : first + len(piece.master)].to(piece.master.device)

    def figures(self, masters: Masters) -> dict[str, float]:
        """`sparsity`: the share of zeros now; `sparsity_lost`: the share of the kept zeros that the last update had moved;
        `sparsity_drift`: the L2 norm of where it had moved them to, which was undone."""
        if not self.keeps:
            return {}
        counts = [0.0, 0.0, 0.0]
        for piece in masters.pieces():
            if piece.name in self._zeros:
                real = masters.real(piece)
                counts[0] += float(len(real) - real.count_nonzero())
                counts[1] += float(len(real))
                counts[2] += float(self._of_master(piece)[: len(real)].sum())
        zeros, size, kept, moved, squares = masters.total([*counts, *self._moved])
        return {
            "sparsity": zeros / max(1.0, size),
            "sparsity_lost": moved / max(1.0, kept),
            "sparsity_drift": math.sqrt(squares),
        }
