"""Which of a run's checkpoints it goes on from: the newest that is whole and holds what was written.

Knows nothing of settings and data, nor of how a checkpoint is written. Nothing is deleted: what is damaged gets
another name, because the steps after the one that is continued from will be written again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from workflow.errors import CheckpointError
from workflow.models.manifest import MANIFEST_FILE, Inode, damage, inodes, read_manifest
from workflow.paths import STATE_FOLDER, RunPaths
from workflow.training.checkpoint import INDEX_FILE, KEEP_STATES, STATE_FILE, link_model, read_state
from workflow.training.checkpoint_reader import weight_files as weight_files_of

Say = Callable[[str], None]
DAMAGED_PREFIX = "damaged-"
NUM_TOLD = 5


@dataclass(frozen=True)
class Found:
    """The checkpoint to continue from, if any, and what is wrong with each newer one, newest first."""

    checkpoint: Path | None
    faults: tuple[tuple[Path, str], ...]

    def told(self) -> str:
        """A line for each fault, the newest ones'."""
        lines = [f"  {path.name}: {fault}" for path, fault in self.faults[:NUM_TOLD]]
        return "\n".join([*lines, *(["  ..."] if len(self.faults) > NUM_TOLD else [])])


def newest_intact(paths: RunPaths, say: Say | None = None) -> Found:
    """Looks from the newest checkpoint on until one can be continued from."""
    faults: list[tuple[Path, str]] = []
    for _, path in reversed(paths.checkpoints()):
        fault = fault_of(path, say)
        if fault is None:
            return Found(path, tuple(faults))
        faults.append((path, fault))
    return Found(None, tuple(faults))


def fault_of(checkpoint: Path, say: Say | None = None) -> str | None:
    """Why a checkpoint cannot be continued from, by the name of a file; None where it can."""
    if not (checkpoint / STATE_FOLDER).is_dir():
        return f"no {STATE_FOLDER}/ (only a run's newest {KEEP_STATES} checkpoints keep it)"
    try:
        manifest = read_manifest(checkpoint)
        if manifest is None:
            return _fault_without_hashes(checkpoint)
        if f"{STATE_FOLDER}/{STATE_FILE}" not in manifest.files:
            return f"{MANIFEST_FILE} knows of no {STATE_FOLDER}/{STATE_FILE}"
        if fault := damage(checkpoint, manifest, say=say):
            return fault
        step = read_state(checkpoint).step
        return None if manifest.step == step else f"{MANIFEST_FILE} is of step {manifest.step}, the state of {step}"
    except CheckpointError as error:
        return str(error)


def has_hashes(checkpoint: Path) -> bool:
    """Whether a checkpoint was written with its hashes."""
    return (checkpoint / MANIFEST_FILE).is_file()


def _fault_without_hashes(checkpoint: Path) -> str | None:
    """A checkpoint from before there were hashes: every file is there, and as long as its header says."""
    file = checkpoint / STATE_FOLDER / STATE_FILE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if "schema_version" in state:  # written by a program that writes manifests
            return f"{MANIFEST_FILE} is missing"
        read_state(checkpoint)
        file = checkpoint / STATE_FOLDER / INDEX_FILE
        index: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        file = checkpoint / "model.safetensors"
        files = {
            *(checkpoint / STATE_FOLDER / name for name in index.values()),
            *(checkpoint / name for name in weight_files_of(checkpoint).values()),
        }
        for file in sorted(files):
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        return f"{file.relative_to(checkpoint)} cannot be read: {error}"
    return None


def set_aside(paths: RunPaths, found: Found) -> list[str]:
    """Renames the checkpoints newer than the one to continue from, so that nothing takes them for good; says so."""
    notes = []
    for path, fault in found.faults:
        aside = put_aside(path)
        notes.append(
            f"{paths.root.name}/{path.name} is not used: {fault}; it is now {aside.name}, delete it when you like"
        )
    return notes


def put_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint that must not be continued from; gives its new place."""
    aside = checkpoint.with_name(f"{DAMAGED_PREFIX}{checkpoint.name}")
    if aside.exists():
        aside = aside.with_name(f"{aside.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return checkpoint.rename(aside)


def best_is_right(paths: RunPaths, step: int, good: Path) -> bool:
    """Sees to it that the best model's folder holds the model of `step`, intact; False where no such model is left.

    `good` is the checkpoint that was found intact: files that the best model shares with it are not read again.
    """
    if _model_is_intact(paths.best, step, _inodes(good)):
        return True
    source = paths.checkpoint(step)
    if source.is_dir() and _model_is_intact(source, step, _inodes(good)):
        link_model(source, paths.best)
        return True
    if not paths.best.is_dir() or has_hashes(paths.best):
        return False
    if source.is_dir() and not has_hashes(source):  # both from before there were hashes
        link_model(source, paths.best)
    return True


def _inodes(checkpoint: Path) -> frozenset[Inode]:
    manifest = read_manifest(checkpoint)
    return inodes(checkpoint, manifest) if manifest is not None else frozenset()


def _model_is_intact(folder: Path, step: int, known: frozenset[Inode]) -> bool:
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return False
    if manifest is None or manifest.step != step:
        return False
    return damage(folder, manifest.without(STATE_FOLDER), known=known) is None
