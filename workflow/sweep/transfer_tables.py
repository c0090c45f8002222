"""What a transfer matrix leaves: table.md, table.csv, matrix.html and a heat map, of its runs' reports alone.

Knows nothing of how the runs were made, so that the same reports give the same files wherever they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from workflow.evaluation.heatmap import Panel, write_heatmap
from workflow.files import whole_file
from workflow.results.formats import html
from workflow.results.runs import Which
from workflow.results.sheets import sheets_of, shown
from workflow.results.study_files import write_study_tables
from workflow.results.tables import Cell, Key, Table
from workflow.sweep.study import read_study

HEATMAP = "heatmap"
ROWS, COLUMNS = "trained on", "evaluated on"


def write_matrix(folder: Path, *, which: Which) -> None:
    """Makes a matrix's files anew. Raises ResultsError when `folder` is no study."""
    points = read_study(folder).points
    varied = [label for label in ("model", "type") if len({point.labels[label] for point in points}) > 1]
    table = write_study_tables(folder, which=which, rows=(*varied, "train"), columns=("eval",))
    metric = next((summary.metric for cell in table.cells.values() for summary in cell.summaries), "")
    paths = write_heatmap(
        folder / HEATMAP,
        panels_of(table),
        title=f"{metric}, {which} evaluation",
        row_label=ROWS,
        column_label=COLUMNS,
    )
    page = html(sheets_of(table))
    drawing = paths[1].read_text(encoding="utf-8").partition("<svg")
    figure = f'<figure style="overflow-x:auto" role="img" aria-label="{escape(metric)} as a heat map">{"".join(drawing[1:])}</figure>'
    with whole_file(folder / "matrix.html") as file:
        file.write(page.replace("<main>", f"<main>\n{figure}", 1))


def panels_of(table: Table) -> list[Panel]:
    """A panel for each model and model type: train sets by eval languages, of the first metric."""
    grouped: dict[Key, list[Key]] = {}
    for row in table.rows:
        grouped.setdefault(row[:-1], []).append(row)
    return [_panel(table, others, rows) for others, rows in grouped.items()]


def _panel(table: Table, others: Key, rows: Sequence[Key]) -> Panel:
    cells = [[table.cells.get((row, column)) for column in table.columns] for row in rows]
    return Panel(
        ", ".join(others),
        [row[-1] for row in rows],
        [", ".join(column) for column in table.columns],
        [[_value(cell) for cell in line] for line in cells],
        [[_text(cell) for cell in line] for line in cells],
    )


def _value(cell: Cell | None) -> float | None:
    return cell.summaries[0].mean if cell is not None and cell.summaries else None


def _text(cell: Cell | None) -> str:
    """The figure as the table has it, or why there is none."""
    if cell is None:
        return ""
    if _value(cell) is None:
        return "/".join(cell.statuses) or "undefined"
    first = cell.summaries[0]
    spread = f"\n\u00b1 {shown(first.metric, first.std)} ({first.n})" if first.n > 1 else ""
    return shown(first.metric, first.mean) + spread
