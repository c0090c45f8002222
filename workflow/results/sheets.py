"""A table of results as texts: the table itself, its details, and what is not in the means.

Knows nothing of file formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workflow.metric_names import NOT_PERCENT
from workflow.results.averages import average_columns
from workflow.results.tables import Cell, Key, Summary, Table

ABSENT = ""
UNDEFINED = "-"


@dataclass(frozen=True)
class Sheet:
    """Head and rows of texts; the first `num_labels` columns say what a row is."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int
    notes: tuple[str, ...] = ()


def sheets_of(table: Table) -> list[Sheet]:
    """The table, its details, and, where there are any, the runs that are not in the means."""
    left = left_sheet(table)
    return [main_sheet(table), details_sheet(table), *([left] if left.rows else [])]


def main_sheet(table: Table, *, spread: bool = False) -> Sheet:
    """A row a key, a column a key: "88.26/83.82 \u00b1 0.41/0.52 (3)". `spread` adds std, max and n as columns of their own."""
    averages = average_columns(table)
    head: list[str] = [*table.row_labels]
    for column in table.columns:
        head += _column_heads(_told(table.column_labels, column), spread=spread)
    head += [name for name, _ in averages]
    rows = []
    for row in table.rows:
        texts = [*row]
        for column in table.columns:
            texts += _cell_texts(table.cells.get((row, column)), spread=spread)
        rows.append((*texts, *(_average_text(values.get(row)) for _, values in averages)))
    return Sheet(_title(table), tuple(head), tuple(rows), len(table.row_labels), tuple(_notes(table, averages)))


def details_sheet(table: Table) -> Sheet:
    """A row a cell and metric: mean, std, n, 95 % interval, max, and how many runs are not done."""
    head = (*table.row_labels, *table.column_labels, "metric", "mean", "std", "n", "low", "high", "max", "not done")
    rows = []
    for row in table.rows:
        for column in table.columns:
            if (cell := table.cells.get((row, column))) is not None:
                rows += [(*row, *column, *_detail(cell, summary)) for summary in cell.summaries or (_NONE,)]
    return Sheet(
        f"Details, {table.which} evaluation", head, tuple(rows), len(table.row_labels) + len(table.column_labels) + 1
    )


_NONE = Summary(UNDEFINED, (), None, None)


def left_sheet(table: Table) -> Sheet:
    """The runs that are not in the means, and why."""
    rows = tuple((left.result.name, left.status, left.reason) for left in table.left)
    return Sheet(f"Not in the means ({len(rows)})", ("run", "status", "why"), rows, 3)


def shown(metric: str, value: float | None) -> str:
    """Shares and correlations times 100 with two decimals, losses and errors with four, BLEU and chrF with two."""
    if value is None:
        return UNDEFINED
    if metric in ("bleu", "chrf"):
        return f"{value:.2f}"
    return f"{value:.4f}" if metric in NOT_PERCENT else f"{100 * value:.2f}"


def _detail(cell: Cell, summary: Summary) -> tuple[str, ...]:
    numbers = (summary.mean, summary.std, summary.low, summary.high, summary.max)
    mean, std, low, high, highest = (shown(summary.metric, number) for number in numbers)
    return summary.metric, mean, std, str(summary.n), low, high, highest, str(len(cell.results) - summary.n)


def _title(table: Table) -> str:
    return f"{' and '.join(table.row_labels)} by {' and '.join(table.column_labels)}, {table.which} evaluation"


def _notes(table: Table, averages: Sequence[tuple[str, object]]) -> Iterator[str]:
    names = {
        _told(table.column_labels, column): "/".join(summary.metric for summary in cell.summaries)
        for (_, column), cell in table.cells.items()
        if cell.summaries
    }
    told: dict[str, list[str]] = {}
    for column, metrics in names.items():
        told.setdefault(metrics, []).append(column)
    yield "Metrics: " + "; ".join(
        metrics if len(told) == 1 else f"{metrics} ({', '.join(columns)})" for metrics, columns in told.items()
    )
    if any(summary.n > 1 for cell in table.cells.values() for summary in cell.summaries):
        yield "Mean \u00b1 sample standard deviation (runs); intervals are of a bootstrap over runs"
    if table.mixed:
        yield f"A cell's runs differ in {', '.join(table.mixed)} too: --rows or --columns sets them apart"
    if averages:
        yield "GLUE averages are over tasks, of each task's mean metric, MNLI's two halves as one task"


def _told(labels: Key, values: Key) -> str:
    """A column's head: its values, with their labels where several stand together."""
    return ", ".join(value or f"no {label}" for label, value in zip(labels, values, strict=True))


def _column_heads(name: str, *, spread: bool) -> list[str]:
    return [name, *(f"{name} {what}" for what in ("std", "max", "n"))] if spread else [name]


def _cell_texts(cell: Cell | None, *, spread: bool) -> list[str]:
    if cell is None:
        return [ABSENT] * (4 if spread else 1)
    summaries = cell.summaries
    if not any(summary.n for summary in summaries):
        why = "/".join(cell.statuses) or UNDEFINED
        return [why, *(["", "", "0"] if spread else [])]
    mean = "/".join(shown(summary.metric, summary.mean) for summary in summaries)
    std = "/".join(shown(summary.metric, summary.std) for summary in summaries)
    counts = "/".join(dict.fromkeys(str(summary.n) for summary in summaries))
    if spread:
        return [mean, std, "/".join(shown(summary.metric, summary.max) for summary in summaries), counts]
    several = any(summary.n > 1 for summary in summaries)
    runs = counts if counts == str(len(cell.results)) else f"{counts} of {len(cell.results)}"
    return [mean + (f" \u00b1 {std}" if several else "") + (f" ({runs})" if runs != "1" else "")]


def _average_text(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:.2f}"
