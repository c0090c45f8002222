"""The weights that train, as each rank holds them: fp32 pieces to read, to change, and to put together.

With `backend` and `zero_start` the only importer of deepspeed. Knows nothing of what is done with the pieces.
Implements `strategies.base.Masters` for every ZeRO stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from workflow.models.quantised import dense_weights
from workflow.strategies.base import Piece
from workflow.training.backend import Backend, part_of


class Masters:
    """Pieces of a backend's weights. ZeRO-0: the weights; ZeRO-1/2: what of a weight lies in this rank's flat partition;
    ZeRO-3: this rank's share, zeros behind the end included."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.stage = backend.plan.stage
        self._parameters = dict(backend.trainable())

    def pieces(self) -> Iterator[Piece]:
        """In the model's order."""
        for name, parameter in self._parameters.items():
            dimensions = len(_shape(parameter))
            master, start = self._master(parameter)
            if self.stage == 3:
                yield Piece(name, dimensions, master, start, parameter.ds_tensor.data.view(-1), start)
            else:
                yield Piece(name, dimensions, master, start, parameter.data.view(-1), 0)

    def _master(self, parameter: Any) -> tuple[torch.Tensor, int]:
        """(flat fp32 values, where they stand in the whole weight)."""
        if self.stage == 0:
            return parameter.data.view(-1), 0
        if self.stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param

            share = safe_get_local_fp32_param(parameter).view(-1)
            return share, share.numel() * dist.get_rank()
        mapping = parameter._hp_mapping
        if mapping is None:
            return torch.empty(0, device=parameter.device), 0
        return mapping.get_hp_fragment().data.view(-1), mapping.lp_fragment_address.start

    def write(self, piece: Piece) -> None:
        """ZeRO-3 may have handed out a copy of the master, and holds small weights whole, which must be gathered anew."""
        if self.stage < 3:
            return
        from deepspeed.utils import safe_set_local_fp32_param

        parameter = self._parameters[piece.name]
        safe_set_local_fp32_param(parameter, piece.master)
        self._let_go(parameter)

    @staticmethod
    def _let_go(parameter: Any) -> None:
        """Leaves each rank its share alone, from which the next forward pass gathers."""
        if parameter.ds_status.name == "AVAILABLE":
            parameter.partition()

    def real(self, piece: Piece) -> torch.Tensor:
        """Without what ZeRO-3 fills up."""
        return piece.master[: max(0, _size(self._parameters[piece.name]) - piece.start)]

    def whole(self, name: str, master: torch.Tensor) -> torch.Tensor:
        """Every rank adds its piece to zeros; collective but under ZeRO-0."""
        parameter = self._parameters[name]
        shape = _shape(parameter)
        if self.stage == 0:
            return master.view(shape)
        _, start = self._master(parameter)
        found = torch.zeros(_size(parameter), dtype=torch.float32, device=self.backend.device)
        part = master[: max(0, len(found) - start)]
        found[start : start + len(part)] = part.to(found.device)
        dist.all_reduce(found)
        return found.view(shape)

    def part_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """A copy, where the master lies."""
        master, start = self._master(self._parameters[name])
        part = part_of(whole, len(master)) if self.stage == 3 else whole.flatten()[start : start + len(master)]
        return part.to(master.device, torch.float32, copy=True)

    def total(self, counts: Sequence[float]) -> list[float]:
        """Under ZeRO-0 every rank has counted all there is."""
        if self.stage == 0:
            return list(counts)
        sums = torch.tensor(counts, dtype=torch.float64, device=self.backend.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def weights(self, pieces: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """`Backend.weights` with pieces like those of the masters in their place; a collective call like it."""
        for name, parameter in self.backend.module.named_parameters():
            yield name, self.whole(name, pieces[name]) if name in pieces else self.backend.full_weight(parameter)
        yield from dense_weights(self.backend.module)

    @contextlib.contextmanager
    def replaced(self, pieces: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside the block the forward pass reads these weights; afterwards, bit for bit, what was there. Collective."""
        before = []
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                value = self.whole(name, pieces[name])
                if self.stage == 3:
                    self._let_go(parameter)
                before.append((parameter, self.backend.exchange(parameter, value)))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, kept in before:
                    self.backend.put_back(parameter, kept)


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # type: ignore[no-any-return]


def _size(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # type: ignore[no-any-return]
