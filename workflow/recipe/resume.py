"""Where a run starts: at step 0, at its own newest good checkpoint, or at the one that --resume names.

Knows nothing of how checkpoints are written or loaded. Never starts at step 0 where there was something to continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from workflow.errors import CheckpointError, ConfigError
from workflow.paths import RunPaths
from workflow.run_folder import Claim, differences, short_hash
from workflow.training.checkpoint import TrainState, read_state, recover
from workflow.training.continuing import Found, best_is_right, fault_of, has_hashes, newest_intact, set_aside

Say = Callable[[str], None]
INSTEAD = (
    "put back what is damaged from a copy, --resume the checkpoint of another run, start a run of another name from one of these models "
    "(--model_init_path), or pass --overwrite_output_dir to move this run aside and start anew"
)


@dataclass(frozen=True)
class Start:
    """The checkpoint, if any, how far it is, and what the user should know."""

    checkpoint: Path | None
    state: TrainState
    notes: tuple[str, ...] = ()


def find_start(held: Claim, *, resume: str, data_hash: str, allow_changed_data: bool, say: Say) -> Start:
    """For the holder of the run's lock. Raises CheckpointError where nothing good is left, ConfigError for a wrong --resume."""
    paths = held.paths
    recover(paths.root)
    found = newest_intact(paths, say)
    if named := [path for path, _ in found.faults if path.resolve() == Path(resume).resolve()]:
        raise CheckpointError(
            f"--resume {resume}: damaged: {dict(found.faults)[named[0]]}; name another, or leave --resume out"
        )
    checkpoint = found.checkpoint
    notes: list[str] = []
    if checkpoint is None and resume != "auto":
        checkpoint, notes = _named(resume, say)
    if checkpoint is None:
        if found.faults:
            raise CheckpointError(f"{paths.root}: no checkpoint to continue from:\n{found.told()}\n{INSTEAD}")
        return Start(None, TrainState(data_hash=data_hash))
    state = read_state(checkpoint)
    is_own = found.checkpoint is not None
    if not is_own and state.data_hash not in (None, data_hash) and not allow_changed_data:
        raise ConfigError(
            f"--resume {resume}: trained on other data ({short_hash(state.data_hash)}, now {short_hash(data_hash)}); "
            "pass --allow_changed_data to go on with this"
        )
    if not is_own:
        notes += differences(checkpoint.resolve().parent / paths.settings.name, paths.settings)
    notes += set_aside(paths, found)
    if notes:
        notes.append(f"continuing from {checkpoint}, step {state.step}")
    if not has_hashes(checkpoint):
        notes.append(
            f"{checkpoint.name} is from before checkpoints had hashes: only the lengths of its files were checked"
        )
    if not is_own or held.data_changed or state.data_hash not in (None, data_hash):
        state = replace(
            _without_best(state),
            measured={},  # they were measured elsewhere
            owes_evaluation=state.owes_evaluation and is_own,
        )
    elif state.best_step is not None and not best_is_right(paths, state.best_step, checkpoint):
        notes.append(
            f"the best model so far, of step {state.best_step}, is not there any more: the best is chosen anew from here"
        )
        measured = {name: of for name, of in state.measured.items() if name != "best"}
        state = replace(_without_best(state), measured=measured)
    return Start(checkpoint, replace(state, data_hash=data_hash), tuple(notes))


def _without_best(state: TrainState) -> TrainState:
    """As before the first evaluation; `measured` stays."""
    return replace(state, best_step=None, best_value=None, stale_evaluations=0, ended=False)


def _named(resume: str, say: Say) -> tuple[Path, list[str]]:
    """The checkpoint that a path means, found good, and what was passed over: nothing of another run is touched."""
    given = Path(resume)
    found = Found(None, ())
    if given.is_dir() and not (given / "config.json").is_file():
        found = newest_intact(RunPaths(given), say)
        if found.checkpoint is not None:
            return found.checkpoint, [f"{path} is not used: {fault}" for path, fault in found.faults]
        if found.faults:
            raise CheckpointError(f"--resume {resume}: no checkpoint to continue from:\n{found.told()}")
    if not (given / "config.json").is_file():
        raise ConfigError(
            f"--resume {resume}: no checkpoint there; pass auto, a checkpoint-N folder, or a run folder that holds one"
        )
    if fault := fault_of(given, say):
        raise CheckpointError(f"--resume {resume}: cannot continue from here: {fault}")
    return given, []
