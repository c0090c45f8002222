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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workflow.errors import CheckpointError
from workflow.files import flush, link_or_copy, remove_leftovers, whole_folder, write_json
from workflow.models.adapters import ADAPTER_FILE, ADAPTER_FOLDER, adapter_key
from workflow.models.save import SHARD_BYTES, Weights, in_shards
from workflow.paths import RunPaths
from workflow.training.backend import Backend
from workflow.training.manifest import write_manifest
from workflow.training.room import check_before_save, checkpoint_size

STATE_FOLDER = "training_state"
STATE_FILE = "state.json"
INDEX_FILE = "optimizer.index.json"
STATE_VERSION = 2
"""Of state.json. From 2 on a checkpoint has a manifest, so that one without it is damaged."""
KEEP_STATES = 2

ModelWriter = Callable[[Path, Weights], None]


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


def save_checkpoint(folder: Path, *, backend: Backend, state: TrainState, write_model: ModelWriter) -> None:
    """Writes a whole checkpoint; every rank calls it, the first one writes. Raises CheckpointError on every rank."""
    _save(folder, backend, write_model, state.step, state)


def save_model(folder: Path, *, backend: Backend, step: int, write_model: ModelWriter) -> None:
    """Writes the model alone, in place of what stands at `folder`; every rank calls it. Raises CheckpointError."""
    _save(folder, backend, write_model, step, None)


def _save(folder: Path, backend: Backend, write_model: ModelWriter, step: int, state: TrainState | None) -> None:
    problem: str | None = None
    if dist.get_rank() == 0:
        drains = _Drains(backend, with_optimizer=state is not None)
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
        _Drains(backend, with_optimizer=state is not None).finish()
    said = [problem]
    dist.broadcast_object_list(said, src=0)
    if said[0]:
        told = CheckpointError(f"{said[0]}; earlier checkpoints of the run are untouched")
        told.known_to_all = True
        raise told


class _Drains:
    """The gathered weights, then the optimizer's tensors, each taken once; `finish` takes what is left."""

    def __init__(self, backend: Backend, *, with_optimizer: bool) -> None:
        self._weights = backend.weights()
        self._state = backend.optimizer_state() if with_optimizer else iter(())

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, fp32 weight on the CPU), gathered one by one as they are taken (not copied where they are there already)."""
        for name, weight in self._weights:
            yield name, weight.detach().cpu().contiguous()

    def shards(self) -> Iterator[dict[str, torch.Tensor]]:
        """Dicts of optimizer tensors of about SHARD_BYTES."""
        return in_shards(((key, tensor.detach().cpu().contiguous()) for key, tensor in self._state), SHARD_BYTES)

    def finish(self) -> None:
        """Makes the remaining collective calls."""
        for _ in self._weights:
            pass
        for _ in self._state:
            pass


def _write_state(folder: Path, drains: _Drains, state: TrainState) -> None:
    folder.mkdir()
    index: dict[str, str] = {}
    for number, shard in enumerate(drains.shards(), start=1):
        name = f"optimizer-{number:05d}.safetensors"
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    write_json(folder / INDEX_FILE, index)
    write_json(folder / STATE_FILE, {"schema_version": STATE_VERSION, **asdict(state)})


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
