"""What is told and kept of a study's results: lines for people, and files that are made anew from its runs' reports.

Knows nothing of how runs run. What an ablation compares its variants by stands in its own file, so its own command makes that.
"""

from __future__ import annotations

from workflow.console import make_console
from workflow.errors import ResultsError
from workflow.evaluation.report import read_report
from workflow.results.study_files import write_study_tables
from workflow.sweep.points import Point
from workflow.sweep.study import Study


def make_files(study: Study) -> None:
    """table.md, table.csv and best.json; of a transfer matrix also the matrix and its heat map."""
    try:
        if study.kind == "transfer":
            from workflow.sweep.transfer_tables import write_matrix

            write_matrix(study.folder, which=study.extra.get("report", "final"))
        else:
            write_study_tables(study.folder, which=study.extra.get("ablation", {}).get("evaluation", "best"))
    except ResultsError as error:  # a report of another version, say: the runs go on, the tables are made later
        say(f"notice: no table was made: {error}")


def headline(study: Study, point: Point) -> str:
    """A finished run's own metrics at its best checkpoint: `mcc 0.312`."""
    best = read_report(study.run_paths(point).report).best
    found = {name: best.metrics[name].value for name in point.metrics if best and name in best.metrics}
    return ", ".join(
        f"{name} {'undefined' if value is None else format(value, '.4g')}" for name, value in found.items()
    )


def say(text: str) -> None:
    """A line for people, unbroken."""
    make_console().print(text, soft_wrap=True)
