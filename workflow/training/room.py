"""How much disk a run's checkpoints will take, and whether there is room.

Knows nothing of how they are written. Sizes are of fp32 weights and of the optimizer's tensors for those that learn;
tokenizer and settings are the margin.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.errors import CheckpointError
from workflow.models.quantised import num_weights
from workflow.paths import RunPaths

FP32_BYTES = 4
ADAMW_TENSORS = 2
MARGIN_BYTES = 4 << 20


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of a model folder, and of the training state beside it."""

    model: int
    state: int

    @property
    def whole(self) -> int:
        """Bytes of a checkpoint to continue from."""
        return self.model + self.state


def checkpoint_size(model: Any, optimizer: str, *, num_averages: int = 0) -> CheckpointSize:
    """An estimate, from the whole shapes of the parameters (also of those that ZeRO-3 has sharded); averages stand beside the optimizer."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = _factored if optimizer == "adafactor" else _moments
    return CheckpointSize(
        FP32_BYTES * num_weights(model) + MARGIN_BYTES,
        FP32_BYTES * sum(count(parameter) + num_averages * _numel(parameter) for parameter in learning),
    )


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _moments(parameter: Any) -> int:
    return ADAMW_TENSORS * _numel(parameter)


def _factored(parameter: Any) -> int:
    """Adafactor keeps a row and a column of a matrix, and a vector whole."""
    shape = tuple(parameter.shape)
    return _numel(parameter) if len(shape) < 2 else _numel(parameter) // shape[-1] + _numel(parameter) // shape[-2]


def kept_at_most(size: CheckpointSize, *, num_saves: int, limit: int | None, num_states: int) -> int:
    """Bytes that a run's checkpoints take at the worst moment: while one more is written than is kept.

    The best model's folder is hard links, and takes room where its checkpoint has been dropped.
    """
    models = num_saves if limit is None else min(num_saves, limit + 1)
    states = min(models, num_states + 1)
    own_best = limit is not None and num_saves > limit
    return (models + own_best) * size.model + states * size.state


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write where this folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_before_save(folder: Path, needed: int) -> None:
    """Raises CheckpointError where a folder of this size does not fit."""
    free = free_bytes(folder.parent)
    if free < needed:
        raise CheckpointError(
            f"{folder}: could not be saved: about {_text(needed)} are needed, {_text(free)} are free there"
        )


def check_before_run(
    paths: RunPaths, size: CheckpointSize, *, num_saves: int, limit: int | None, num_states: int, num_averages: int = 0
) -> str | None:
    """What to tell the user of disk space before a run, if anything. CheckpointError where not one checkpoint fits.

    Each of `num_averages` has a model of its own beside the checkpoints, in place of the one before.
    """
    free, of_averages = free_bytes(paths.root), num_averages * size.model
    if free < size.whole:
        raise CheckpointError(
            f"{paths.root}: not even one checkpoint fits: about {_text(size.whole)} are needed (weights and optimizer state in "
            f"fp32), {_text(free)} are free; free some space there, or choose another --mount"
        )
    there = sum(of.stat().st_size for _, path in paths.checkpoints() for of in path.rglob("*") if of.is_file())
    needed = of_averages + kept_at_most(size, num_saves=num_saves, limit=limit, num_states=num_states)
    if limit is not None:
        needed -= there  # they will be dropped for newer ones
    if free >= needed:
        return None
    kept = f"--save_total_limit {limit} keeps" if limit is not None else "are kept without --save_total_limit"
    return (
        f"disk space: the checkpoints that {kept} will take about {_text(needed)} more, {_text(free)} are free at {paths.root}; "
        "a save that does not fit is left out: set --save_total_limit lower, --save_steps higher, or free some space"
    )


def _text(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
