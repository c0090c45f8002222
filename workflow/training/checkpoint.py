"""Checkpoints: a model folder anybody can load, plus what this program needs to continue from it.

    checkpoint-N/                   config.json, *.safetensors, tokenizer, generation settings
    checkpoint-N/adapter/           of runs with adapters: what the model above holds merged
    checkpoint-N/training_state/    state.json, optimizer-*.safetensors and their index
    checkpoint-N/manifest.json      size and hash of each file, written last

Knows nothing of evaluation, of how tensors are gathered and written (`saving`), nor of which checkpoint a run goes on from.
A folder has its final name only when it is complete and on disk. Tensors are whole and named, without pickles, so that any
number of ranks and any ZeRO stage can continue.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.errors import CheckpointError
from workflow.files import flush, link_or_copy, remove_folder, remove_leftovers, whole_folder
from workflow.paths import STATE_FOLDER, RunPaths

STATE_FILE = "state.json"
OPTIMIZER, STRATEGIES = "optimizer", "strategies"
INDEX_ENDING = ".index.json"
INDEX_FILE = f"{OPTIMIZER}{INDEX_ENDING}"
STRATEGIES_FILE = f"{STRATEGIES}.json"
STATE_VERSION = 2
"""Of state.json. From 2 on a checkpoint has a manifest, so that one without it is damaged."""
KEEP_STATES = 2


@dataclass
class TrainState:
    """How far a run is. Token counts are real tokens; seconds and FLOPs are of training alone."""

    step: int = 0
    examples: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    loss: float | None = None
    skipped: int = 0
    """Updates that were left out because their loss or gradient was not finite; they count as steps."""
    stale_evaluations: int = 0
    """Evaluations since the best one."""
    ended: bool = False
    """Whether training has ended before the last step, for want of improvement."""
    owes_evaluation: bool = False
    """Whether the evaluation due after `step` was left, to be made when the run continues."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The evaluations that the report shows ("initial", "best", "latest"), kept so that a continued run has them."""
    data_hash: str | None = None
    """Of the data that the run has been trained on last."""


def free_place(folder: Path) -> Path:
    """Where to write first: beside a folder that is there already, else the folder itself."""
    return _next(folder) if folder.exists() else folder


def _next(folder: Path) -> Path:
    remove_folder(folder.with_name(f".tmp-next-{folder.name}"), ignore_errors=True)
    return folder.with_name(f".tmp-next-{folder.name}")


def swap_in(folder: Path) -> None:
    """Puts the newly written folder in the old one's place; `recover` finishes it where a kill comes in between."""
    new, old = folder.with_name(f".tmp-next-{folder.name}"), folder.with_name(f".tmp-old-{folder.name}")
    if new.exists():
        remove_folder(old, ignore_errors=True)
        folder.rename(old)
        new.rename(folder)
        flush(folder.parent)
        remove_folder(old, ignore_errors=True)


def recover(root: Path) -> None:
    """Finishes swaps that a killed process began, and removes its leftovers; only for the holder of the run's lock."""
    for new in root.glob(".tmp-next-*"):
        folder = root / new.name.removeprefix(".tmp-next-")
        if not folder.exists():
            new.rename(folder)
    remove_leftovers(root)


def link_model(source: Path, target: Path) -> None:
    """Makes `target` a copy of a checkpoint's model, by hard links where possible, without its training state."""
    with whole_folder(free_place(target)) as temporary:
        shutil.copytree(
            source,
            temporary,
            copy_function=link_or_copy,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(STATE_FOLDER),
        )
    swap_in(target)


def prune(paths: RunPaths, *, limit: int | None) -> None:
    """Keeps the newest `limit` checkpoints, and optimizer state in the newest two; the best has a folder of its own."""
    checkpoints = [path for _, path in paths.checkpoints()]
    for path in checkpoints[: -limit if limit is not None else 0]:
        drop(path)
    for path in checkpoints[:-KEEP_STATES]:
        if (path / STATE_FOLDER).is_dir():
            doomed = paths.root / f".tmp-old-{path.name}-{STATE_FOLDER}"
            remove_folder(doomed, ignore_errors=True)
            (path / STATE_FOLDER).rename(doomed)
            remove_folder(doomed)


def drop(checkpoint: Path) -> None:
    """Removes a checkpoint; renamed first, because a folder that is half removed must not look like one."""
    doomed = checkpoint.with_name(f".tmp-old-{checkpoint.name}")
    checkpoint.rename(doomed)
    remove_folder(doomed)


def read_state(checkpoint: Path) -> TrainState:
    """How far the run was. Raises CheckpointError."""
    file = checkpoint / STATE_FOLDER / STATE_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("schema_version", None)
        return TrainState(**values)
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint}: nothing to continue from: no {STATE_FOLDER}/ (only a run's newest {KEEP_STATES} checkpoints keep it)"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: cannot continue from here: {file.name}: {error}") from None
