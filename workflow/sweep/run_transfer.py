"""Makes a transfer matrix from its file: data sets, study, runs.

Knows nothing of arguments' texts or of how points run.
"""

from __future__ import annotations

from pathlib import Path

from workflow.console import make_console
from workflow.sweep.grid import check_count
from workflow.sweep.start import Options, start
from workflow.sweep.study import Study, open_study
from workflow.sweep.transfer import plan_matrix
from workflow.sweep.transfer_file import read_transfer


def run_transfer(file: Path, folder: Path, mount: Path, options: Options, *, pairs: bool, max_points: int) -> int:
    """Plans, writes, shows and, where asked, runs a matrix; gives an exit code."""
    console = make_console()
    given = read_transfer(file)
    matrix = plan_matrix(given, file, folder, pairs=pairs)
    runs = len({point.run for point in matrix.points})
    check_count(runs, max_points, where=str(file))
    for note in matrix.notes:
        console.print(f"note: {note}")
    study = Study(folder, "transfer", mount, list(matrix.points), {"report": given.report})
    open_study(study)  # first, so that a folder of another study leaves no data sets behind
    matrix.write_data(mount)
    console.print(f"{runs} runs on {len(matrix.data)} data sets fill {len(matrix.points)} cells")
    return start(study, options)
