"""Runs an ablation: every variant with every seed, then the table of what the differences are worth.

Knows nothing of statistics or files' forms.
"""

from __future__ import annotations

from pathlib import Path

from workflow.errors import ResultsError
from workflow.sweep.ablation_file import Ablation, read_ablation
from workflow.sweep.ablation_tables import write_ablation
from workflow.sweep.grid import check_count
from workflow.sweep.start import FAILED, Options, start
from workflow.sweep.study import Study, open_study, study_name
from workflow.sweep.summaries import say


def run_ablation(file: Path, folder: Path, mount: Path, options: Options, *, max_points: int) -> int:
    """Writes, shows and runs an ablation; gives an exit code. Its table is made of what is finished, however it ends.

    The code is 1 where everything is finished and yet no table could be made.
    """
    ablation = read_ablation(file, study=study_name(folder))
    points = ablation.points
    check_count(len(points), max_points, where=str(file))
    extra = {"ablation": {"baseline": ablation.baseline, "metric": ablation.metric, "evaluation": ablation.which}}
    study = Study(folder, "ablate", mount, points, extra)
    open_study(study)  # first, so that the tables of another study are left as they are
    try:
        code = start(study, options)
    finally:
        made = _write_tables(study, ablation)
    return code if made or not all(map(study.finished, points)) else FAILED


def _write_tables(study: Study, ablation: Ablation) -> bool:
    """Whether there are tables, of what is finished."""
    if not any(map(study.finished, study.points)):
        return False
    try:
        say("ablation: " + ", ".join(map(str, write_ablation(study, ablation))))
    except ResultsError as error:
        say(f"notice: no table of the ablation was made: {error}")
        return False
    return True
