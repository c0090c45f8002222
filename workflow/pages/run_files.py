"""What a run's folder tells: settings, curves, metrics, checkpoints; of a run that is unfinished, whatever there is.

Knows nothing of how it is shown. A file that is missing or cannot be read costs its own part, and a line among `notes`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow import paths as names
from workflow.errors import ResultsError, WorkflowError, did_you_mean
from workflow.evaluation.report import Measured, Report, read_report
from workflow.files import read_json

TEXT_PREDICTIONS = re.compile(r"temperature=(?P<temperature>[\d.]+)_n=(?P<n>\d+)_step=(?P<step>\d+)\.json")
SCORE_PREDICTIONS = re.compile(r"checkpoint-(?P<step>\d+)-preds\.json")
STATE = Path("training_state/state.json")
OF_TASK = {"training_args.json": "seq2seq", "args.json": "clf"}
OF_A_LINE = frozenset({"step", "rows", "skipped"})

Curve = list[tuple[int, float]]
"""(step, value) by rising step."""


@dataclass(frozen=True)
class RunFiles:
    """One run as its files tell it. `report` is None until the run is finished."""

    root: Path
    task: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    data_hash: str | None
    template: str | None = None
    """The text that wraps each row, of a scorer that was trained with one."""
    train: dict[str, Curve] = field(default_factory=dict)
    evaluation: dict[str, Curve] = field(default_factory=dict)
    left_out: tuple[tuple[int, str], ...] = ()
    """(step, why) of updates that changed nothing."""
    groups: tuple[Mapping[str, Any], ...] = ()
    """Of param_groups.json."""
    predictions: dict[int, Path] = field(default_factory=dict)
    """Step -> prediction file."""
    checkpoints: tuple[int, ...] = ()
    report: Report | None = None
    initial: Measured | None = None
    best: Measured | None = None
    latest: Measured | None = None
    averages: Mapping[str, Measured] = field(default_factory=dict)
    """Newest metrics of averaged weights, by strategy."""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def best_metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        key = "save_best_metric" if self.task == "clf" else "best_metric"
        return str(self.settings.get(key) or "eval_loss")

    @property
    def last_step(self) -> int:
        """The last update that anything is known of."""
        return max((curve[-1][0] for curve in (*self.train.values(), *self.evaluation.values()) if curve), default=0)


def find_run(name: str, mount: Path) -> Path:
    """The folder that RUN means: a folder, else a run's name under the mount. Raises ResultsError."""
    for folder in (Path(name), mount / "models" / name):
        if any((folder / file).is_file() for file in OF_TASK):
            return folder
        if folder.is_dir():
            raise ResultsError(f"{folder}: not a run's folder: it holds neither {' nor '.join(OF_TASK)}")
    models = mount / "models"
    runs = sorted(path.parent.name for file in OF_TASK for path in models.glob(f"*/{file}"))
    raise ResultsError(f"{name}: no such folder, and no run of this name under {models}{did_you_mean(name, runs)}")


def read_run(root: Path, *, report: Report | None = None) -> RunFiles:
    """Reads a run's folder; `report` stands for report.json where that is not written yet. Raises ResultsError where it is none."""
    file = next((root / name for name in OF_TASK if (root / name).is_file()), None)
    if file is None:
        raise ResultsError(f"{root}: not a run's folder: it holds neither {' nor '.join(OF_TASK)}")
    record = read_json(file, broken=ResultsError)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ResultsError(f"{file}: not the settings of a run")
    notes: list[str] = []
    task = OF_TASK[file.name]
    found = report or _report(root, notes)
    lines = _lines(root, notes)
    state = {} if found else _newest_state(root)
    return RunFiles(
        root=root,
        task=task,
        settings=record["settings"],
        origins=record.get("origins") or {},
        data_hash=record.get("data_hash"),
        template=(record.get("inputs") or {}).get("template_text"),
        train=_curves([line for line in lines if "loss" in line]),
        evaluation=_curves([line for line in lines if "loss" not in line and "skipped" not in line]),
        left_out=tuple((line["step"], str(line["skipped"])) for line in lines if "skipped" in line),
        groups=_groups(root, notes),
        predictions=_predictions(root, task),
        checkpoints=tuple(step for step, _ in names.RunPaths(root).checkpoints()),
        report=found,
        initial=found.initial if found else _measured(state, "initial"),
        best=found.best if found else _measured(state, "best"),
        latest=found.final if found else _measured(state, "latest"),
        averages=found.averages if found else _averages(state),
        notes=tuple(notes),
    )


def _report(root: Path, notes: list[str]) -> Report | None:
    file = names.RunPaths(root).report
    if not file.is_file():
        return None
    try:
        return read_report(file)
    except WorkflowError as error:
        notes.append(str(error))
        return None


def _newest_state(root: Path) -> dict[str, Any]:
    """What an unfinished run's newest checkpoint remembers of its evaluations, with their intervals."""
    for _, checkpoint in reversed(names.RunPaths(root).checkpoints()):
        state = read_json(checkpoint / STATE)
        if isinstance(state, dict) and isinstance(state.get("measured"), dict):
            return dict(state["measured"])
    return {}


def _measured(state: Mapping[str, Any], name: str) -> Measured | None:
    try:
        return Measured.model_validate(state[name]) if name in state else None
    except ValidationError:
        return None


def _averages(state: Mapping[str, Any]) -> dict[str, Measured]:
    given = state.get("averages")
    names = given if isinstance(given, dict) else {}
    return {name: found for name in names if (found := _measured(names, name))}


def _lines(root: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, by rising step; one that a crash cut is counted."""
    file = names.RunPaths(root).metrics
    if not file.is_file():
        notes.append("metrics.jsonl is not there: no curves")
        return []
    found, broken = [], 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                line = json.loads(text)
                line["step"] = int(line["step"])
                found.append(line)
            except (ValueError, KeyError, TypeError):
                broken += 1
    if broken:
        notes.append(f"metrics.jsonl: {broken} lines could not be read")
    return sorted(found, key=lambda line: line["step"])


def _curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    """Name -> (step, value); a dict of values (learning rates by group) gives one curve a key, as `name/key`."""
    found: dict[str, Curve] = {}
    for line in lines:
        for name, value in line.items():
            if name in OF_A_LINE:
                continue
            parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            for key, number in parts.items():
                if isinstance(number, int | float) and math.isfinite(number):
                    curve = found.setdefault(key, [])
                    if curve and curve[-1][0] == line["step"]:  # an evaluation that was made again
                        curve.pop()
                    curve.append((line["step"], float(number)))
    return found


def _groups(root: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    found = read_json(root / names.PARAM_GROUPS_NAME)
    if found is None:
        return ()
    if isinstance(found, list) and all(isinstance(group, dict) and "name" in group for group in found):
        return tuple(found)
    notes.append(f"{names.PARAM_GROUPS_NAME} is not a list of groups")
    return ()


def _predictions(root: Path, task: str) -> dict[int, Path]:
    pattern = TEXT_PREDICTIONS if task == "seq2seq" else SCORE_PREDICTIONS
    found = {int(match["step"]): path for path in root.iterdir() if (match := pattern.fullmatch(path.name))}
    return dict(sorted(found.items()))
