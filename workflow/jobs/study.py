"""The jobs of a study's folder, as its `study.json` lists them.

Knows nothing of what made the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow.errors import ConfigError, ResultsError, did_you_mean
from workflow.files import read_json
from workflow.jobs.job import ENTRIES, Job


def jobs_of(folder: Path, names: Sequence[str] = ()) -> list[Job]:
    """The study's jobs in order, or those that are named. Raises ConfigError, ResultsError."""
    study = read_json(folder / "study.json", broken=ResultsError)
    if study is None:
        raise ConfigError(f"{folder}: no study here (no study.json); `workflow sweep` and `workflow suite` make them")
    try:
        # Points that are parts of one run share the first one's job.
        first = {point.get("run", point["name"]): point for point in reversed(study["points"])}.values()
        points = {str(point["name"]): str(point.get("entry", ENTRIES[0])) for point in reversed(first)}
    except (AttributeError, KeyError, TypeError):
        raise ResultsError(f"{folder / 'study.json'}: not a study's list of points") from None
    if unknown := [name for name in names if name not in points]:
        raise ConfigError(
            f"{folder}: no job {unknown[0]!r}{did_you_mean(unknown[0], points)}; {len(points)} are in study.json"
        )
    return [Job(name, folder / "points" / name, points[name], ()) for name in (names or points)]
