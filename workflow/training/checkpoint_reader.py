"""Reads a checkpoint's tensors, one at a time, by the model's parameter names.

Knows nothing of how a checkpoint is written (`checkpoint`), nor of ranks.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from workflow.errors import CheckpointError
from workflow.files import read_json
from workflow.models.adapters import ADAPTER_FILE, ADAPTER_FOLDER, adapter_key
from workflow.paths import STATE_FOLDER
from workflow.training.checkpoint import INDEX_ENDING, INDEX_FILE, STRATEGIES, STRATEGIES_FILE


class CheckpointReader:
    """Tensors of a checkpoint by the model's parameter names, read one at a time. Implements `backend.SavedState`."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        try:
            self._index: dict[str, str] = json.loads(
                (checkpoint / STATE_FOLDER / INDEX_FILE).read_text(encoding="utf-8")
            )
            self._weight_files = weight_files(checkpoint)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint}: cannot continue from here: {error}") from None

    def keys_of(self, name: str) -> list[str]:
        """The optimizer's keys for a weight."""
        prefix = f"{name}/"
        return [key.removeprefix(prefix) for key in self._index if key.startswith(prefix)]

    def names_with_state(self) -> set[str]:
        """The weights that trained before."""
        return {key.rpartition("/")[0] for key in self._index}

    def optimizer(self) -> str | None:
        """The optimizer whose state this is; None where no weight has any."""
        if not self._index:
            return None
        return "adamw" if any(key.endswith("/exp_avg") for key in self._index) else "adafactor"

    def state(self, name: str, key: str) -> torch.Tensor:
        """One optimizer tensor of a weight."""
        full = f"{name}/{key}"
        if full not in self._index:
            raise CheckpointError(
                f"{self.checkpoint}: the optimizer state lacks {full}; was it written by another optimizer?"
            )
        return self._read(self.checkpoint / STATE_FOLDER / self._index[full], full)

    def weight(self, name: str) -> torch.Tensor:
        """One fp32 weight: of the model, or of an adapter, which the model beside it holds merged."""
        if name in self._weight_files:
            return self._read(self.checkpoint / self._weight_files[name], name)
        return self._read(self.checkpoint / ADAPTER_FOLDER / ADAPTER_FILE, adapter_key(name))

    def strategies(self) -> dict[str, dict[str, int]]:
        """The numbers that strategies kept, by strategy; none in a checkpoint of a run without."""
        file = self.checkpoint / STATE_FOLDER / STRATEGIES_FILE
        return dict(read_json(file, broken=CheckpointError) or {})

    def strategy_state(self, strategy: str, name: str) -> torch.Tensor:
        """A whole tensor that a strategy kept of a weight."""
        folder = self.checkpoint / STATE_FOLDER
        index = read_json(folder / f"{STRATEGIES}{INDEX_ENDING}", broken=CheckpointError) or {}
        full = f"{strategy}/{name}"
        if full not in index:
            raise CheckpointError(
                f"{self.checkpoint}: {strategy} kept nothing of {name}; are other weights trained now?"
            )
        return self._read(folder / index[full], full)

    def _read(self, file: Path, key: str) -> torch.Tensor:
        try:
            with safe_open(file, framework="pt") as tensors:
                tensor: torch.Tensor = tensors.get_tensor(key)
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot continue from here: {error}") from None


def weight_files(checkpoint: Path) -> dict[str, str]:
    """The file of each weight. Raises OSError, ValueError or SafetensorError."""
    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(checkpoint / "model.safetensors", framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), "model.safetensors")
