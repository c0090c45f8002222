"""The files that a study keeps of its results: table.md, table.csv, best.json and best-why.json.

Knows nothing of jobs: the files are made from reports alone, and may be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow.files import whole_file, write_json
from workflow.paths import run_name
from workflow.results.best import Winner, best_settings, shared_settings
from workflow.results.formats import comma_separated, markdown
from workflow.results.runs import Which, read_study
from workflow.results.sheets import main_sheet, sheets_of
from workflow.results.tables import Table, make_table


def write_study_tables(
    folder: Path, *, which: Which = "best", rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> Table:
    """Makes a study's files anew from its runs' reports, and returns its table.

    best.json appears with the first finished run; with several tasks it holds what their best settings share, and
    best-TASK.json each task's. Raises ResultsError when `folder` is no study.
    """
    results = read_study(folder)
    table = make_table(results, rows=rows, columns=columns, which=which)
    with whole_file(folder / "table.md") as file:
        file.write(markdown(sheets_of(table)))
    with whole_file(folder / "table.csv") as file:
        file.write(comma_separated([main_sheet(table, spread=True)]))
    if winners := best_settings(results, which=which):
        _write_best(folder, winners)
    return table


def _write_best(folder: Path, winners: Mapping[str, Winner]) -> None:
    write_json(folder / "best.json", shared_settings(winners))
    write_json(folder / "best-why.json", {name: dict(winner.why) for name, winner in winners.items()})
    if len(winners) > 1:
        for name, winner in winners.items():
            write_json(folder / f"best-{run_name(name)}.json", dict(winner.settings))
