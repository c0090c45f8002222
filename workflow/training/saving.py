"""Writes checkpoints and models: gathered over the ranks, to the disk by the first; while training goes on, where asked.

Knows nothing of when to save, nor of what stands in a model's folder besides its training state.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from workflow.errors import CheckpointError
from workflow.files import link_or_copy, whole_folder, write_json
from workflow.models.manifest import MANIFEST_FILE, write_manifest
from workflow.models.save import SHARD_BYTES, Weights, in_shards
from workflow.paths import STATE_FOLDER
from workflow.training.backend import Backend
from workflow.training.checkpoint import (
    INDEX_ENDING,
    OPTIMIZER,
    STATE_FILE,
    STATE_VERSION,
    STRATEGIES,
    STRATEGIES_FILE,
    TrainState,
    free_place,
    swap_in,
)
from workflow.training.room import check_before_save, checkpoint_size

ModelWriter = Callable[[Path, Weights], None]
Tensors = Iterator[tuple[str, torch.Tensor]]
"""Whole tensors by name, gathered as they are taken: every rank must exhaust it."""


@dataclass(frozen=True)
class MoreState:
    """What a run's strategies keep: whole tensors as "STRATEGY/NAME", and numbers by strategy."""

    tensors: Tensors
    numbers: Mapping[str, Mapping[str, int]]


class Saver:
    """Saves of one run, one after another. All calls but `close` are collective.

    In the background a save costs training a copy of the tensors in the first rank's memory; their files are written,
    in order, by a thread, and what fails is told by the next `finish`. What the writers of models read besides must not
    change before that.
    """

    def __init__(self, backend: Backend, *, in_background: bool = False) -> None:
        self.backend = backend
        self._writing: list[Future[None]] = []
        is_first = dist.get_rank() == 0
        self._pool = ThreadPoolExecutor(1, "saving") if in_background and is_first else None
        self._in_background = in_background

    def checkpoint(
        self,
        folder: Path,
        *,
        state: TrainState,
        write_model: ModelWriter,
        more: MoreState | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Saves a whole checkpoint; `then` is done by the first rank, when it stands there. Raises CheckpointError."""
        tensors = _Drains(self.backend.weights(), self.backend.optimizer_state(), more)
        self._save(folder, write_model, state.step, tensors, state=copy.deepcopy(state), then=then)

    def model(self, folder: Path, *, step: int, write_model: ModelWriter, weights: Tensors | None = None) -> None:
        """Saves the model alone, in place of what stands at `folder`. Raises CheckpointError.

        `weights` are written in the place of the backend's, gathered like them.
        """
        tensors = _Drains(weights if weights is not None else self.backend.weights())
        self._save(folder, write_model, step, tensors)

    def renew(
        self, folder: Path, *, state: TrainState, describe: Callable[[Path], None], then: Callable[[], None]
    ) -> None:
        """Writes state and description of a checkpoint that stands anew; its tensors stay the files that they are.

        `describe` fills the model's folder as its writer does after the weights. Raises CheckpointError.
        """
        self._agree(lambda: self._renew(folder, state, describe, then))

    @staticmethod
    def _renew(folder: Path, state: TrainState, describe: Callable[[Path], None], then: Callable[[], None]) -> None:
        stale = shutil.ignore_patterns(MANIFEST_FILE, STATE_FILE)
        with _told(folder):
            with whole_folder(free_place(folder)) as temporary:
                shutil.copytree(folder, temporary, copy_function=link_or_copy, dirs_exist_ok=True, ignore=stale)
                describe(temporary)
                _write_state_file(temporary / STATE_FOLDER, state)
                write_manifest(temporary, step=state.step, before=folder)
            swap_in(folder)
        then()

    def finish(self) -> None:
        """Waits for what is being written. Raises CheckpointError, on every rank, where some of it failed."""
        if self._in_background:
            begun, self._writing = self._writing, []
            self._agree(lambda: [writing.result() for writing in begun])

    def close(self) -> None:
        """Waits for what is being written, without a word of how it went."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _save(
        self,
        folder: Path,
        write_model: ModelWriter,
        step: int,
        tensors: _Drains,
        *,
        state: TrainState | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        def write() -> None:
            self._write(folder, write_model, step, tensors, state)
            then()

        def begin() -> None:
            if self._pool is None:
                write()
            else:
                tensors.hold()
                self._writing.append(self._pool.submit(write))

        self._agree(begin, tensors)

    def _write(
        self, folder: Path, write_model: ModelWriter, step: int, tensors: _Drains, state: TrainState | None
    ) -> None:
        with _told(folder):
            optimizer = type(self.backend.optimizer).__name__.lower()
            size = checkpoint_size(self.backend.module, optimizer)
            check_before_save(folder, size.whole if state is not None else size.model)
            with whole_folder(free_place(folder)) as temporary:
                write_model(temporary, tensors)
                if state is not None:
                    _write_state(temporary / STATE_FOLDER, tensors, state)
                write_manifest(temporary, step=step)
            swap_in(folder)

    def _agree(self, work: Callable[[], object], tensors: _Drains | None = None) -> None:
        """Work of the first rank, while the others gather with it. Raises its CheckpointError on every rank."""
        problem: str | None = None
        try:
            if dist.get_rank() == 0:
                work()
        except CheckpointError as error:
            problem = str(error)
        finally:
            if tensors is not None:
                tensors.finish()  # the other ranks are in the same collective calls
        said = [problem]
        dist.broadcast_object_list(said, src=0)
        if said[0]:
            told = CheckpointError(said[0])
            told.known_to_all = True
            raise told


UNTOUCHED = "earlier checkpoints of the run are untouched"


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raises what goes wrong in a save as a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: could not be saved: {error}; {UNTOUCHED}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {UNTOUCHED}") from error


class _Drains:
    """The gathered weights, then the optimizer's tensors, then the strategies', each taken once; `finish` takes what is left."""

    def __init__(self, weights: Tensors, state: Tensors | None = None, more: MoreState | None = None) -> None:
        self._weights: Tensors = weights
        self._state: Tensors = state or iter(())
        self._more: Tensors = more.tensors if more is not None else iter(())
        self._numbers = more.numbers if more is not None else None

    def items(self) -> Tensors:
        """(name, fp32 weight on the CPU), gathered one by one as they are taken (not copied where they are there already)."""
        return _on_cpu(self._weights)

    def write_state(self, folder: Path) -> None:
        """The optimizer's tensors, and what the strategies keep."""
        _write_shards(folder, OPTIMIZER, _on_cpu(self._state))
        if self._numbers is not None:
            _write_shards(folder, STRATEGIES, _on_cpu(self._more))
            write_json(folder / STRATEGIES_FILE, self._numbers)

    def hold(self) -> None:
        """Gathers everything now, into memory of its own."""
        self._weights, self._state, self._more = _Held(self._weights), _Held(self._state), _Held(self._more)

    def finish(self) -> None:
        """Makes the remaining collective calls; what is held stays."""
        for tensors in (self._weights, self._state, self._more):
            if not isinstance(tensors, _Held):
                for _ in tensors:
                    pass


class _Held:
    """Tensors in memory of their own, each given away once."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = [(name, tensor.detach().to("cpu", copy=True).contiguous()) for name, tensor in tensors]
        self._tensors.reverse()

    def __iter__(self) -> _Held:
        return self

    def __next__(self) -> tuple[str, torch.Tensor]:
        if not self._tensors:
            raise StopIteration
        return self._tensors.pop()


def _on_cpu(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        yield name, tensor.detach().cpu().contiguous()


def _write_state(folder: Path, tensors: _Drains, state: TrainState) -> None:
    folder.mkdir()
    tensors.write_state(folder)
    _write_state_file(folder, state)


def _write_state_file(folder: Path, state: TrainState) -> None:
    write_json(folder / STATE_FILE, {"schema_version": STATE_VERSION, **asdict(state)})


def _write_shards(folder: Path, stem: str, tensors: Tensors) -> None:
    """`STEM-00001.safetensors`, ... of about SHARD_BYTES, and an index: tensor -> file."""
    index: dict[str, str] = {}
    for number, shard in enumerate(in_shards(tensors, SHARD_BYTES), start=1):
        name = f"{stem}-{number:05d}.safetensors"
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    write_json(folder / f"{stem}{INDEX_ENDING}", index)
