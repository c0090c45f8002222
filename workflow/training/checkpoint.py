"""Checkpoints: a model folder anybody can load, plus what this program needs to continue from it.

    checkpoint-N/                   config.json, *.safetensors, tokenizer, generation settings
    checkpoint-N/adapter/           of runs with adapters: what the model above holds merged
    checkpoint-N/training_state/    state.json, optimizer-*.safetensors and their index
    checkpoint-N/manifest.json      size and hash of each file, written last

Knows nothing of evaluation, nor of which checkpoint a run goes on from. A folder has its final name only when it is
complete and on disk. Tensors are whole and named, without pickles, so that any number of ranks and any ZeRO stage can
continue.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from workflow.errors import CheckpointError
from workflow.files import flush, link_or_copy, remove_leftovers, whole_folder, write_json
from workflow.models.save import SHARD_BYTES, Weights, in_shards
from workflow.paths import RunPaths
from workflow.training.backend import Backend
from workflow.training.manifest import write_manifest
from workflow.training.room import check_before_save, checkpoint_size

STATE_FOLDER = "training_state"
STATE_FILE = "state.json"
OPTIMIZER, STRATEGIES = "optimizer", "strategies"
INDEX_ENDING = ".index.json"
INDEX_FILE = f"{OPTIMIZER}{INDEX_ENDING}"
STRATEGIES_FILE = f"{STRATEGIES}.json"
STATE_VERSION = 2
"""Of state.json. From 2 on a checkpoint has a manifest, so that one without it is damaged."""
KEEP_STATES = 2

ModelWriter = Callable[[Path, Weights], None]
Tensors = Iterator[tuple[str, torch.Tensor]]
"""Whole tensors by name, gathered as they are taken: every rank must exhaust it."""


@dataclass(frozen=True)
class MoreState:
    """What a run's strategies keep: whole tensors as "STRATEGY/NAME", and numbers by strategy."""

    tensors: Tensors
    numbers: Mapping[str, Mapping[str, int]]


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


def save_checkpoint(
    folder: Path, *, backend: Backend, state: TrainState, write_model: ModelWriter, more: MoreState | None = None
) -> None:
    """Writes a whole checkpoint; every rank calls it, the first one writes. Raises CheckpointError on every rank."""
    _save(folder, backend, write_model, state.step, _Drains(backend.weights(), backend.optimizer_state(), more), state)


def save_model(
    folder: Path, *, backend: Backend, step: int, write_model: ModelWriter, weights: Tensors | None = None
) -> None:
    """Writes the model alone, in place of what stands at `folder`; every rank calls it. Raises CheckpointError.

    `weights` are written in the place of the backend's, gathered like them.
    """
    _save(folder, backend, write_model, step, _Drains(weights if weights is not None else backend.weights()), None)


def _save(
    folder: Path, backend: Backend, write_model: ModelWriter, step: int, drains: _Drains, state: TrainState | None
) -> None:
    problem: str | None = None
    if dist.get_rank() == 0:
        try:
            optimizer = type(backend.optimizer).__name__.lower()
            size = checkpoint_size(backend.module, optimizer)
            check_before_save(folder, size.whole if state is not None else size.model)
            with whole_folder(_free(folder)) as temporary:
                write_model(temporary, drains)
                if state is not None:
                    _write_state(temporary / STATE_FOLDER, drains, state)
                write_manifest(temporary, step=step)
            _swap_in(folder)
        except (OSError, SafetensorError) as error:
            problem = f"{folder}: could not be saved: {error}"
        except CheckpointError as error:
            problem = str(error)
        finally:
            drains.finish()  # the other ranks are in the same collective calls
    else:
        drains.finish()
    said = [problem]
    dist.broadcast_object_list(said, src=0)
    if said[0]:
        told = CheckpointError(f"{said[0]}; earlier checkpoints of the run are untouched")
        told.known_to_all = True
        raise told


class _Drains:
    """The gathered weights, then the optimizer's tensors, then the strategies', each taken once; `finish` takes what is left."""

    def __init__(self, weights: Tensors, state: Tensors | None = None, more: MoreState | None = None) -> None:
        self._weights, self._state, self._more = weights, state or iter(()), more

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, fp32 weight on the CPU), gathered one by one as they are taken (not copied where they are there already)."""
        for name, weight in self._weights:
            yield name, weight.detach().cpu().contiguous()

    def write_state(self, folder: Path) -> None:
        """The optimizer's tensors, and what the strategies keep."""
        _write_shards(folder, OPTIMIZER, self._state)
        if self._more is not None:
            _write_shards(folder, STRATEGIES, self._more.tensors)
            write_json(folder / STRATEGIES_FILE, self._more.numbers)

    def finish(self) -> None:
        """Makes the remaining collective calls."""
        for tensors in (self._weights, self._state, self._more.tensors if self._more is not None else ()):
            for _ in tensors:
                pass


def _write_state(folder: Path, drains: _Drains, state: TrainState) -> None:
    folder.mkdir()
    drains.write_state(folder)
    write_json(folder / STATE_FILE, {"schema_version": STATE_VERSION, **asdict(state)})


def _write_shards(folder: Path, stem: str, tensors: Tensors) -> None:
    """`STEM-00001.safetensors`, ... of about SHARD_BYTES, and an index: tensor -> file."""
    index: dict[str, str] = {}
    on_cpu = ((key, tensor.detach().cpu().contiguous()) for key, tensor in tensors)
    for number, shard in enumerate(in_shards(on_cpu, SHARD_BYTES), start=1):
        name = f"{stem}-{number:05d}.safetensors"
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    write_json(folder / f"{stem}{INDEX_ENDING}", index)


def _free(folder: Path) -> Path:
    """Where to write first: beside a folder that is there already, else the folder itself."""
    return _next(folder) if folder.exists() else folder


def _next(folder: Path) -> Path:
    shutil.rmtree(folder.with_name(f".tmp-next-{folder.name}"), ignore_errors=True)
    return folder.with_name(f".tmp-next-{folder.name}")


def _swap_in(folder: Path) -> None:
    """Puts the newly written folder in the old one's place; `recover` finishes it where a kill comes in between."""
    new, old = folder.with_name(f".tmp-next-{folder.name}"), folder.with_name(f".tmp-old-{folder.name}")
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        new.rename(folder)
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def recover(root: Path) -> None:
    """Finishes swaps that a killed process began, and removes its leftovers; only for the holder of the run's lock."""
    for new in root.glob(".tmp-next-*"):
        folder = root / new.name.removeprefix(".tmp-next-")
        if not folder.exists():
            new.rename(folder)
    remove_leftovers(root)


def link_model(source: Path, target: Path) -> None:
    """Makes `target` a copy of a checkpoint's model, by hard links where possible, without its training state."""
    with whole_folder(_free(target)) as temporary:
        shutil.copytree(
            source,
            temporary,
            copy_function=link_or_copy,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(STATE_FOLDER),
        )
    _swap_in(target)


def prune(paths: RunPaths, *, limit: int | None) -> None:
    """Keeps the newest `limit` checkpoints, and optimizer state in the newest two; the best has a folder of its own."""
    checkpoints = [path for _, path in paths.checkpoints()]
    for path in checkpoints[: -limit if limit is not None else 0]:
        drop(path)
    for path in checkpoints[:-KEEP_STATES]:
        if (path / STATE_FOLDER).is_dir():
            doomed = paths.root / f".tmp-old-{path.name}-{STATE_FOLDER}"
            shutil.rmtree(doomed, ignore_errors=True)
            (path / STATE_FOLDER).rename(doomed)
            shutil.rmtree(doomed)


def drop(checkpoint: Path) -> None:
    """Removes a checkpoint; renamed first, because a folder that is half removed must not look like one."""
    doomed = checkpoint.with_name(f".tmp-old-{checkpoint.name}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


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
