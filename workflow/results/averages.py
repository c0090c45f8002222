"""GLUE's averages of a table whose columns are GLUE's tasks.

Knows nothing of how tables are shown. As on the leaderboard: the unweighted mean over tasks, each task its metrics'
mean, MNLI's matched and mismatched half together one task, AX none (Wang et al. 2018). WNLI is left out by many since
its dev set misleads (Devlin et al. 2018), hence two averages. They are of shares and correlations alone: a mean of
accuracies and losses says nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from workflow.metric_names import NOT_PERCENT
from workflow.results.tables import Cell, Key, Table

EIGHT = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
WNLI = "wnli"
HALVES = {"mnlim": "mnli", "mnlimm": "mnli", "mnlimatched": "mnli", "mnlimismatched": "mnli"}
Averages = tuple[str, Mapping[Key, float | None]]


def average_columns(table: Table) -> list[Averages]:
    """A name and each row's average, for as many averages as the columns allow; a row without a task has None."""
    if table.column_labels != ("task",):
        return []
    tasks = {column: plain(column[0]) for column in table.columns}
    known = set(tasks.values())
    found: list[Averages] = []
    for name, wanted in (("GLUE", (*EIGHT, WNLI)), ("GLUE without WNLI", EIGHT)):
        metrics = {
            summary.metric
            for (_, column), cell in table.cells.items()
            if tasks[column] in wanted
            for summary in cell.summaries
        }
        if known.issuperset(wanted) and not metrics & NOT_PERCENT:
            found.append((name, {row: _average(table, row, tasks, wanted) for row in table.rows}))
    return found


def plain(name: str) -> str:
    """A task's name without what people write differently; both halves of MNLI are "mnli"."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return HALVES.get(letters, letters)


def _average(table: Table, row: Key, tasks: Mapping[Key, str], wanted: tuple[str, ...]) -> float | None:
    values = []
    for task in wanted:
        cells = [table.cells.get((row, column)) for column, name in tasks.items() if name == task]
        halves = [_task_value(cell) for cell in cells]
        if not halves or any(value is None for value in halves):
            return None
        values.append(statistics.fmean(value for value in halves if value is not None))
    return statistics.fmean(values)


def _task_value(cell: Cell | None) -> float | None:
    """The mean of a task's metrics; None where one of them is missing."""
    means = [summary.mean for summary in cell.summaries] if cell else []
    known = [mean for mean in means if mean is not None]
    return statistics.fmean(known) if known and len(known) == len(means) else None
