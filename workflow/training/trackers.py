"""Who else is told how a run goes: TensorBoard always, Weights & Biases, MLflow and trackio where asked for.

Trackers look: they get plain numbers, and nothing comes back. One that fails is told of once and left out; the run goes on.
Knows nothing of models; imports no tracker, and no torch, before one is started.
"""

from __future__ import annotations

import importlib.util
import math
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workflow.errors import ConfigError, install_command
from workflow.files import read_json, write_json

IDS_FILE = "trackers.json"
"""In a run's folder: how trackers call the run, so that a continued run goes on in the same place."""
SECRET = re.compile(r"(^|_)(key|token|secret|password|credentials?)(_|$)")
IN_URL = re.compile(r"://[^/\s@]*@")
MLFLOW_PARAMS = 100
"""That MLflow takes at once."""
MLFLOW_LENGTH = 500


class Tracker(Protocol):
    """One place that is told."""

    name: str

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Figures of a step; `group` is train, eval or checkpoint."""

    def close(self, *, finished: bool) -> None:
        """The run has ended, by itself or not."""


@dataclass(frozen=True)
class TrackedRun:
    """What trackers know of a run. `settings` hold no secrets; `continue_from` is the step that the run goes on from."""

    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]
    continue_from: int = 0


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError, with the command that installs it, for a tracker that is not there."""
    missing = [name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--trackers {' '.join(missing)}: not installed; {install_command(*missing)}, or leave it out"
        )


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those whose name says that they are secret, and without passwords in addresses."""
    return {
        name: IN_URL.sub("://", value) if isinstance(value, str) else value
        for name, value in settings.items()
        if not SECRET.search(name.lower())
    }


def plain_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among figures, without their step; those of a dict by `name/key`."""
    found: dict[str, float] = {}
    for name, value in values.items():
        parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        for key, part in parts.items():
            if key != "step" and isinstance(part, int | float) and math.isfinite(part):
                found[key] = float(part)
    return found


class Trackers:
    """All trackers of a run; `say` tells people of one that fails."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._say = say

    def log(self, step: int, values: Mapping[str, Any], group: str) -> None:
        """Tells everyone; whoever fails is left out from then on."""
        numbers = plain_numbers(values)
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker=tracker: tracker.log(step, numbers, group))  # type: ignore[misc]

    def close(self, *, finished: bool) -> None:
        """Ends everyone."""
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker=tracker: tracker.close(finished=finished))  # type: ignore[misc]
        self._trackers.clear()

    def _try(self, tracker: Tracker, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a tracker does must not end a run
            self._trackers.remove(tracker)
            self._say(f"{tracker.name} failed and is told nothing more of this run: {_reason(error)}")


def start_trackers(names: Sequence[str], run: TrackedRun, say: Callable[[str], None]) -> list[Tracker]:
    """TensorBoard and the named ones; one that cannot start is told of and left out."""
    started: list[Tracker] = []
    for name in ("tensorboard", *names):
        try:
            started.append(MAKERS[name](run))
        except Exception as error:  # no key, no server, no disk: as many kinds as trackers
            say(f"{name} cannot start and is told nothing of this run: {_reason(error)}")
    return started


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class TensorBoard:
    """Event files in the run's folder; those after the step that a run continues from are dropped."""

    name = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.continue_from + 1 if run.continue_from else None
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """One scalar a figure, on disk at once."""
        if group != "checkpoint":
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        """Closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; key, server and offline mode (WANDB_API_KEY, WANDB_MODE, ...) are W&B's own business."""

    name = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        number = _known_id(run, self.name) or secrets.token_hex(8)  # no draw from generators that a run may use
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=number,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            save_code=False,
            settings=wandb.Settings(console="off"),
        )
        _remember_id(run, self.name, number)

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Figures as group/name. Steps that W&B knows already, of a run that went back to a checkpoint, it leaves as they are."""
        if group != "checkpoint":
            self._run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self, *, finished: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of an MLflow experiment, by the client that has no global state; the store is MLFLOW_TRACKING_URI's."""

    name = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = mlflow.MlflowClient()
        known = self._going_on(_known_id(run, self.name))
        if known is not None:
            self._id = known
            return
        experiment = self._client.get_experiment_by_name(run.project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        self._id = self._client.create_run(place, run_name=run.name).info.run_id
        params = [Param(name, str(value)[:MLFLOW_LENGTH]) for name, value in run.settings.items()]
        for first in range(0, len(params), MLFLOW_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + MLFLOW_PARAMS])
        _remember_id(run, self.name, self._id)

    def _going_on(self, number: str | None) -> str | None:
        """The run of this id, where the store has it."""
        if number is None:
            return None
        try:
            self._client.update_run(number, status="RUNNING")
        except Exception:  # another store than before
            return None
        return number

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Figures as group/name, in one call."""
        if group != "checkpoint":
            now = int(time.time() * 1000)
            self._client.log_batch(
                self._id, metrics=[self._metric(f"{group}/{name}", value, now, step) for name, value in values.items()]
            )

    def close(self, *, finished: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


class Trackio:
    """A trackio run, on this machine (TRACKIO_DIR) or where its own variables say."""

    name = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        resume = "allow" if run.continue_from else "never"
        self._run = trackio.init(project=run.project, name=run.name, config=dict(run.settings), resume=resume)
        self._finish = trackio.finish  # the run's own method would leave it to be ended once more at exit

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Figures as group/name."""
        if group != "checkpoint":
            self._run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        """Ends the run."""
        self._finish()


def _known_id(run: TrackedRun, tracker: str) -> str | None:
    known = read_json(run.folder / IDS_FILE)
    return known.get(tracker) if isinstance(known, dict) else None


def _remember_id(run: TrackedRun, tracker: str, number: str) -> None:
    known = read_json(run.folder / IDS_FILE)
    write_json(run.folder / IDS_FILE, {**(known if isinstance(known, dict) else {}), tracker: number})


MAKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
