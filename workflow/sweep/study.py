"""A study's folder: its points in study.json, and a folder for each point.

Knows nothing of what the points are for, or how they are run.

`study.json` is written before anything runs. Processes that share a study lock it (flock) while they change it; the lock
ends with the process that holds it, however it ends. Who runs which point is told by the locks of jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.errors import ConfigError, ResultsError
from workflow.files import read_json, write_json
from workflow.locks import acquire, release
from workflow.paths import RunPaths, checked_name
from workflow.sweep.points import Point

SCHEMA_VERSION = 1
STUDY_FILE = "study.json"
LOCK_FILE = "study.lock"
TRIALS = "trials"
"""The key of study.json for what a search is called in Optuna's storage; whoever opens the study first makes it up."""


@dataclass
class Study:
    """A study in its folder. `extra` are further keys of study.json that belong to its kind, such as a search's."""

    folder: Path
    kind: str
    mount: Path
    points: list[Point]
    extra: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, with which its runs' names begin."""
        return study_name(self.folder)

    def point_folder(self, point: Point) -> Path:
        """Where a point's settings, script and log stand."""
        return self.folder / "points" / point.name

    def run_paths(self, point: Point) -> RunPaths:
        """The point's run under the mount."""
        return RunPaths(self.mount / "models" / point.run)

    def finished(self, point: Point) -> bool:
        """Whether the point's run has its report."""
        return self.run_paths(point).report.is_file()

    def as_json(self) -> dict[str, Any]:
        """What study.json holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "name": self.name,
            "mount": str(self.mount),
            **self.extra,
            "points": [point.as_json() for point in self.points],
        }

    def write(self) -> None:
        """Writes study.json, and the settings of each point into its folder."""
        for point in self.points:
            write_settings(self.point_folder(point) / "settings.json", point)
        write_json(self.folder / STUDY_FILE, self.as_json())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Waits for its turn to change the study."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = acquire(self.folder / LOCK_FILE, wait=True)
        assert descriptor is not None
        try:
            yield
        finally:
            release(descriptor)

    def reread(self) -> None:
        """Takes up the points that other processes added. Only while `locked`."""
        self.points = read_study(self.folder).points

    def add(self, points: Sequence[Point]) -> None:
        """Adds points that a search has come to, beside those that other processes added. Only while `locked`."""
        self.reread()
        known = {point.name: point for point in (*self.points, *points)}
        self.points = list(known.values())
        for point in points:
            write_settings(self.point_folder(point) / "settings.json", point)
        write_json(self.folder / STUDY_FILE, self.as_json())


def study_name(folder: Path) -> str:
    """The name of a study in this folder. Raises ConfigError where it can be none."""
    return checked_name(Path(os.path.abspath(folder)).name, what="--out: the folder's name")  # noqa: PTH100  (no links followed)


def write_settings(path: Path, point: Point) -> None:
    """A settings file of everything in a point, for `--config`."""
    values = {**point.settings, "training_run_name": point.run}
    if read_json(path) != values:
        write_json(path, values)


def read_study(folder: Path) -> Study:
    """Reads study.json back. Raises ResultsError."""
    record = read_json(folder / STUDY_FILE, broken=ResultsError)
    if record is None:
        raise ResultsError(f"{folder}: no {STUDY_FILE} here; pass the --out of a sweep, suite or ablation")
    try:
        if record["schema_version"] != SCHEMA_VERSION:
            raise ResultsError(f"{folder / STUDY_FILE}: of another version of this program")
        points = [Point.from_json(point) for point in record["points"]]
        extra = {
            key: value
            for key, value in record.items()
            if key not in ("schema_version", "kind", "name", "mount", "points")
        }
        return Study(folder, str(record["kind"]), Path(record["mount"]), points, extra)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{folder / STUDY_FILE}: is no study: {error!r}") from None


def open_study(study: Study) -> Study:
    """Makes the study's folder, or continues the same study there.

    Raises ConfigError where the folder holds another study, with what differs.
    """
    with study.locked():
        if (study.folder / STUDY_FILE).is_file():
            before = read_study(study.folder)
            kept = {TRIALS: before.extra[TRIALS]} if TRIALS in before.extra else {}
            study.extra = {**{key: value for key, value in study.extra.items() if key != TRIALS}, **kept}
            _check_same(before, study)
            if study.kind == before.kind and study.extra.get("search"):
                study.points = before.points
        study.write()
    return study


def _check_same(before: Study, now: Study) -> None:
    """Points by name, which is by content; of a search, what is searched."""
    differences = []
    if before.kind != now.kind:
        differences.append(f"it is of kind {before.kind}, this is {now.kind}")
    if before.extra != now.extra:
        differences += [
            f"{key}: then {_short(before.extra.get(key))}, now {_short(now.extra.get(key))}"
            for key in sorted({*before.extra, *now.extra})
            if before.extra.get(key) != now.extra.get(key)
        ]
    if not now.extra.get("search"):
        then, these = {point.name for point in before.points}, {point.name for point in now.points}
        differences += [f"no longer: {name}" for name in sorted(then - these)]
        differences += [f"new: {name}" for name in sorted(these - then)]
    if differences:
        shown = [*differences[:8], *([f"and {len(differences) - 8} more"] if len(differences) > 8 else [])]
        raise ConfigError(
            f"{now.folder} holds another study; choose another --out, or go on with the files it was made of:\n"
            + "\n".join(f"  {line}" for line in shown)
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
